//! From the first byte to `AuthenticationOk`, and the first server connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Buf;
use pgherd_common::errors::Chain;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::config::AuthMethod;
use crate::pipe::Pipe;
use crate::shared::Shared;
use crate::sqlstate::Trouble;
use crate::upstream::{Login, VerifierError, nonce};
use crate::wire::backend;
use crate::wire::frame;
use crate::wire::frontend;
use crate::wire::scram::{self, Keys, ScramError, ServerExchange, Verifier};
use crate::wire::startup::{STARTUP_MAX, Startup};

use super::opening;

/// A client that may have a session.
pub(super) struct Admitted {
    pub(super) login: Login,
    pub(super) user: String,
    /// Frees the client's place when it is dropped.
    pub(super) place: OwnedSemaphorePermit,
}

/// What a connection turned out to be.
pub(super) enum Admission {
    /// Not a login; it is served.
    Done,
    /// A login.
    Session(Box<Admitted>),
}

/// Why a client is not let in.
pub(super) enum Refusal {
    /// It left.
    Gone(io::Error),
    /// It is told why.
    Trouble(Trouble),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Gone(error)
    }
}

impl From<Trouble> for Refusal {
    fn from(trouble: Trouble) -> Self {
        Self::Trouble(trouble)
    }
}

/// Reads the startup packet and has the client prove who it is.
pub(super) async fn admit(shared: &Shared, pipe: &mut Pipe) -> Result<Admission, Refusal> {
    let limit = shared.config.startup_timeout;
    let start = match timeout(limit, opening::first_packet(shared, pipe))
        .await
        .map_err(|_| Trouble::LoginTimeout)??
    {
        Startup::Start(start) => start,
        Startup::Cancel(key) => {
            shared.cancels.cancel(key, shared.config.connect_timeout, &shared.server_tls).await;
            return Ok(Admission::Done);
        }
        Startup::Ssl | Startup::Gss => return Ok(Admission::Done),
    };
    if start.parameter("replication").is_some_and(|value| !matches!(value, "" | "0" | "false" | "off" | "no"))
    {
        return Err(Trouble::NotOffered(
            "replication connections are not offered: connect to the server itself",
        )
        .into());
    }
    let place = Arc::clone(&shared.places).try_acquire_owned().map_err(|_| Trouble::TooManyClients)?;
    let unknown = start.protocol_options();
    if start.minor > 0 || !unknown.is_empty() {
        backend::put_negotiate(&mut pipe.output, &unknown);
    }
    let user = start.parameter("user").unwrap_or_default().to_owned();
    let keys = match shared.config.auth.method {
        AuthMethod::Trust => None,
        AuthMethod::ScramSha256 => {
            let verifier = verifier(shared, &user).await?;
            Some(
                timeout(limit, prove(shared, pipe, &user, verifier))
                    .await
                    .map_err(|_| Trouble::LoginTimeout)??,
            )
        }
    };
    backend::put_auth_ok(&mut pipe.output);
    let login = Login { parameters: start.parameters, keys };
    Ok(Admission::Session(Box::new(Admitted { login, user, place })))
}

/// Looks the role up, waiting for a server that knows it.
async fn verifier(shared: &Shared, user: &str) -> Result<Verifier, Trouble> {
    let mut topology = shared.cluster.follow();
    let attempts = async {
        loop {
            let current = topology.borrow_and_update().clone();
            let error = match current {
                Some(current) => match shared.verifiers.verifier(user, &current).await {
                    Ok(verifier) => return verifier,
                    Err(error) => error,
                },
                None => VerifierError::NoServer,
            };
            tracing::warn!(error = %Chain(&error), "cannot look up a role; trying again");
            // Either something changes, or the server gets over it.
            drop(timeout(RETRY, topology.changed()).await);
        }
    };
    timeout(shared.config.hold_timeout, attempts).await.map_err(|_| Trouble::NoVerifiers)
}

const RETRY: Duration = Duration::from_millis(250);

/// The SCRAM exchange; the keys that the client's proof gave away.
async fn prove(shared: &Shared, pipe: &mut Pipe, user: &str, verifier: Verifier) -> Result<Keys, Refusal> {
    let refuse = |error: ScramError| match error {
        ScramError::WrongProof => {
            shared.verifiers.doubt(user);
            Trouble::WrongPassword { user: user.to_owned() }
        }
        other => Trouble::Protocol(other.to_string()),
    };
    backend::put_auth_sasl(&mut pipe.output, scram::MECHANISM);
    let first = sasl_message(pipe).await?;
    let malformed = |_| Trouble::Protocol("malformed SASL message".to_owned());
    let (mechanism, data) = frontend::sasl_initial(&first).map_err(malformed)?;
    if mechanism != scram::MECHANISM {
        return Err(
            Trouble::Protocol("client selected an invalid SASL authentication mechanism".to_owned()).into()
        );
    }
    let (exchange, answer) = ServerExchange::begin(verifier, data, &nonce()).map_err(refuse)?;
    backend::put_auth_sasl_continue(&mut pipe.output, &answer);
    let proof = sasl_message(pipe).await?;
    let (keys, last) = exchange.finish(&proof).map_err(refuse)?;
    backend::put_auth_sasl_final(&mut pipe.output, &last);
    Ok(keys)
}

async fn sasl_message(pipe: &mut Pipe) -> Result<Vec<u8>, Refusal> {
    pipe.flush().await?;
    loop {
        let bad = |_| Trouble::Protocol("invalid password packet".to_owned());
        let header = frame::header(&pipe.input).map_err(bad)?;
        if header.is_some_and(|header| header.tag != b'p' || header.len > STARTUP_MAX) {
            return Err(Trouble::Protocol("expected a SASL response".to_owned()).into());
        }
        if let Some((header, payload)) = frame::message(&pipe.input).map_err(bad)? {
            let payload = payload.to_vec();
            pipe.input.advance(header.len);
            return Ok(payload);
        }
        pipe.fill().await?;
    }
}
