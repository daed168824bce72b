//! Opening a connection to a server and logging in to it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use bytes::Buf;
use pgherd_common::Lsn;
use pgherd_common::topology::Backend;
use tokio::time::timeout;

use crate::config::{ServerTls, ServerTlsMode};
use crate::control::Counts;
use crate::pipe::Pipe;
use crate::pool::Lease;
use crate::session::Known;
use crate::tls::{Kept, end_point};
use crate::topology::Role;
use crate::wire::backend::{self, Authentication, ServerError};
use crate::wire::frame::{self, BadFrame, Malformed};
use crate::wire::frontend;
use crate::wire::password::Credentials;
use crate::wire::scram::{Binding, ClientExchange, Keys, ScramError};
use crate::wire::startup::{self, CancelKey, Replication};
use crate::workers;

use super::cancel::Gate;
use super::dial::{DialError, dial, dial_in_clear};
use super::questions::Questions;
use super::server::{QueryError, Reported, Server};

/// As whom, and with which parameters.
#[derive(Debug)]
pub(crate) struct Login {
    /// As the client gave them, user and database among them.
    pub(crate) parameters: Vec<(String, String)>,
    /// What answers a server that asks for a password; `None` when the client gave no proof of one.
    pub(crate) keys: Option<Credentials>,
    /// What is replicated, if that is what the connection is for.
    pub(crate) replication: Option<Replication>,
}

impl Login {
    /// The database; PostgreSQL takes the one named like the user when none is given.
    pub(crate) fn database(&self) -> &str {
        let value =
            |key: &str| self.parameters.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str());
        value("database").filter(|name| !name.is_empty()).or_else(|| value("user")).unwrap_or_default()
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("the connection broke")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Refused(ServerError),
    #[error("the server broke the protocol")]
    Frame(#[from] BadFrame),
    #[error("the server broke the protocol")]
    Content(#[from] Malformed),
    #[error("the server asks for {0}, which needs a password that is not stored here")]
    Method(&'static str),
    #[error("the SCRAM exchange failed")]
    Scram(#[from] ScramError),
    #[error("the server is still in recovery, though it is to be primary")]
    InRecovery,
    #[error("cannot find out whether the server is in recovery")]
    Recovery(#[source] QueryError),
}

impl ConnectError {
    /// Whether other sessions would fare no better on this server.
    pub(crate) fn concerns_everybody(&self) -> bool {
        let full = matches!(self, Self::Refused(error) if error.code == "53300");
        full || self.is_passing()
    }

    /// Whether the same attempt may well succeed a moment later, or on another node.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Self::Dial(error) => error.is_passing(),
            Self::Io(_) | Self::Timeout(_) | Self::InRecovery | Self::Recovery(_) => true,
            // Starting up, shutting down, crashed.
            Self::Refused(error) => error.code.starts_with("57P"),
            Self::Frame(_) | Self::Content(_) | Self::Method(_) | Self::Scram(_) => false,
        }
    }
}

/// Opens a connection to `backend` for `role`. Bounded by `limit` for the socket and again for the login.
pub(crate) async fn connect(
    backend: &Backend,
    role: Role,
    login: &Login,
    known: Known,
    counts: Arc<Counts>,
    lease: Lease,
    (tls, limit): (&Kept<ServerTls>, Duration),
) -> Result<Box<Server>, ConnectError> {
    let late = |_| ConnectError::Timeout(limit);
    let line = timeout(limit, dial(&backend.address, tls)).await.map_err(late)??;
    let mut server = Box::new(Server {
        node: backend.id,
        name: backend.name.clone(),
        role,
        pipe: line.into_pipe()?,
        parameters: Reported::default(),
        known,
        counts,
        questions: Questions::default(),
        replayed: Lsn::default(),
        at_rest: true,
        worker: workers::current(),
        owner: 0,
        gate: Arc::new(Gate::new(backend.address.clone(), CancelKey { pid: 0, secret: 0 })),
        lease,
    });
    let prepared = async {
        match log_in(&mut server, login).await {
            // Its pg_hba.conf may want this login in clear.
            Err(ConnectError::Refused(error))
                if tls.current().mode == ServerTlsMode::Prefer
                    && server.pipe.tls().is_some()
                    && error.code == "28000" =>
            {
                server.pipe = dial_in_clear(&backend.address).await?.into_pipe()?;
                log_in(&mut server, login).await?;
            }
            other => other?,
        }
        match role {
            Role::Primary(_) => out_of_recovery(&mut server).await,
            Role::Standby => Ok(()),
        }
    };
    timeout(limit, prepared).await.map_err(late)??;
    Ok(server)
}

/// The next message: its tag and payload.
async fn message(pipe: &mut Pipe) -> Result<(u8, Vec<u8>), ConnectError> {
    loop {
        if let Some((header, payload)) = frame::message(&pipe.input)? {
            let found = (header.tag, payload.to_vec());
            pipe.input.advance(header.len);
            return Ok(found);
        }
        pipe.fill().await?;
    }
}

async fn log_in(server: &mut Server, login: &Login) -> Result<(), ConnectError> {
    let parameters = login.parameters.iter().filter(|(name, _)| !name.starts_with("_pq_."));
    startup::put_start(
        &mut server.pipe.output,
        parameters.map(|(name, value)| (name.as_str(), value.as_str())),
    );
    server.pipe.flush().await?;
    loop {
        let (tag, payload) = message(&mut server.pipe).await?;
        match tag {
            b'R' => authenticate(&mut server.pipe, &payload, login).await?,
            b'S' => {
                let (name, value) = backend::parameter(&payload)?;
                server.parameters.note(name, value);
            }
            b'K' => server.gate = Arc::new(server.gate.with_key(backend::key(&payload)?)),
            b'E' => return Err(ConnectError::Refused(ServerError::read(&payload)?)),
            b'Z' => return Ok(()),
            _ => {}
        }
    }
}

async fn authenticate(pipe: &mut Pipe, payload: &[u8], login: &Login) -> Result<(), ConnectError> {
    match Authentication::read(payload)? {
        Authentication::Ok => Ok(()),
        Authentication::Sasl(offered) => {
            let shown = pipe.tls().and_then(|tls| tls.get_ref().1.peer_certificates()?.first());
            let binding = Binding::choose(shown.and_then(end_point), &offered);
            if !offered.iter().any(|name| name == binding.mechanism()) {
                return Err(ConnectError::Method("a SASL mechanism other than SCRAM-SHA-256"));
            }
            match &login.keys {
                Some(Credentials::Scram(keys)) => prove(pipe, keys, binding).await,
                Some(Credentials::Md5(_)) | None => Err(ConnectError::Method("scram-sha-256")),
            }
        }
        Authentication::Md5(salt) => match &login.keys {
            Some(Credentials::Md5(hash)) => {
                frontend::put_password(&mut pipe.output, &hash.answer(salt));
                Ok(pipe.flush().await?)
            }
            Some(Credentials::Scram(_)) | None => Err(ConnectError::Method("md5")),
        },
        Authentication::Other(3) => Err(ConnectError::Method("a password in clear text")),
        Authentication::Other(_) => Err(ConnectError::Method("an unknown authentication method")),
        Authentication::SaslContinue(_) | Authentication::SaslFinal(_) => {
            Err(ConnectError::Content(Malformed))
        }
    }
}

async fn sasl_turn(pipe: &mut Pipe) -> Result<Authentication, ConnectError> {
    pipe.flush().await?;
    match message(pipe).await? {
        (b'R', payload) => Ok(Authentication::read(&payload)?),
        (b'E', payload) => Err(ConnectError::Refused(ServerError::read(&payload)?)),
        _ => Err(ConnectError::Content(Malformed)),
    }
}

async fn prove(pipe: &mut Pipe, keys: &Keys, binding: Binding) -> Result<(), ConnectError> {
    let mechanism = binding.mechanism();
    let (exchange, first) = ClientExchange::begin(&nonce(), binding);
    frontend::put_sasl_initial(&mut pipe.output, mechanism, &first);
    let Authentication::SaslContinue(answer) = sasl_turn(pipe).await? else {
        return Err(ConnectError::Content(Malformed));
    };
    let (exchange, proof) = exchange.answer(&answer, keys)?;
    frontend::put_sasl_response(&mut pipe.output, &proof);
    let Authentication::SaslFinal(last) = sasl_turn(pipe).await? else {
        return Err(ConnectError::Content(Malformed));
    };
    Ok(exchange.verify(&last)?)
}

/// A fresh nonce for a SCRAM exchange.
pub(crate) fn nonce() -> String {
    base64::engine::general_purpose::STANDARD.encode(rand::random::<[u8; 18]>())
}

/// A promotion takes its time: until it is through, the server is no primary.
async fn out_of_recovery(server: &mut Server) -> Result<(), ConnectError> {
    let in_recovery = match server.parameters.get("in_hot_standby") {
        Some(value) => value == "on",
        // Before PostgreSQL 14 it has to be asked.
        None => {
            let row = server
                .query("SELECT pg_catalog.pg_is_in_recovery()")
                .await
                .map_err(ConnectError::Recovery)?;
            row.is_none_or(|row| row.last() != Some(&b'f'))
        }
    };
    if in_recovery { Err(ConnectError::InRecovery) } else { Ok(()) }
}
