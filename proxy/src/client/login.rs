//! From the first byte to `AuthenticationOk`, and the first server connection.

use std::io;
use std::time::Duration;

use pgherd_common::errors::Chain;
use tokio::time::timeout;

use crate::clients::{Guest, Presence};
use crate::config::{AuthMethod, Config};
use crate::hba::{self, Facts};
use crate::pipe::Pipe;
use crate::shared::Shared;
use crate::sqlstate::Trouble;
use crate::upstream::{Login, VerifierError};
use crate::wire::backend;
use crate::wire::password::Stored;
use crate::wire::startup::{Replication, Start, Startup};

use super::opening::first_packet;
use super::prove::{self, Claim};

/// A client that may have a session.
pub(super) struct Admitted {
    pub(super) login: Login,
    pub(super) user: String,
    /// It counts among the clients for as long as this lives.
    pub(super) presence: Presence,
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
    let config = shared.config();
    let limit = config.startup_timeout;
    let opening = timeout(limit, first_packet(shared, pipe)).await.map_err(|_| Trouble::LoginTimeout)??;
    let start = match opening.startup {
        Startup::Start(start) => start,
        Startup::Cancel(key) => {
            shared.cancels.cancel(key, config.connect_timeout, &shared.server_tls).await;
            return Ok(Admission::Done);
        }
        Startup::Ssl | Startup::Gss => return Ok(Admission::Done),
    };
    let replication = start.replication().map_err(Trouble::Startup)?;
    let arrival = shared.clients.arrive(&config)?;
    let unknown = start.protocol_options();
    if start.minor > 0 || !unknown.is_empty() {
        backend::put_negotiate(&mut pipe.output, &unknown);
    }
    let user = start.parameter("user").unwrap_or_default().to_owned();
    let claim = Claim { user: &user, end_point: opening.end_point.as_deref() };
    let keys = match method(&config, pipe, &start, replication)? {
        AuthMethod::Trust => None,
        AuthMethod::Cert => {
            prove::by_certificate(pipe, &user)?;
            None
        }
        method @ (AuthMethod::ScramSha256 | AuthMethod::Md5 | AuthMethod::Reject) => {
            let stored = stored(shared, &config, &user).await?;
            let proof = prove::by_password(shared, pipe, &claim, method, stored);
            Some(timeout(limit, proof).await.map_err(|_| Trouble::LoginTimeout)??)
        }
    };
    // Only who has proven who it is takes anybody's place.
    let presence = shared.clients.enter(guest(&config, pipe, &start), &config)?;
    drop(arrival);
    backend::put_auth_ok(&mut pipe.output);
    let login = Login { parameters: start.parameters, keys, replication };
    Ok(Admission::Session(Box::new(Admitted { login, user, presence })))
}

/// Who it is, for the proxy's own records.
fn guest(config: &Config, pipe: &Pipe, start: &Start) -> Guest {
    let user = start.parameter("user").unwrap_or_default().to_owned();
    let database = start.parameter("database").filter(|name| !name.is_empty()).unwrap_or(&user).to_owned();
    Guest {
        admin: config.is_admin(&user),
        application: start.parameter("application_name").unwrap_or_default().to_owned(),
        address: address_of(pipe),
        encrypted: pipe.tls().is_some(),
        user,
        database,
    }
}

/// Where it comes from; `local` for a Unix socket.
fn address_of(pipe: &Pipe) -> String {
    match pipe.peer() {
        Ok(Some(address)) => address.to_string(),
        Ok(None) => "local".to_owned(),
        Err(_) => String::new(),
    }
}

/// How the client has to prove who it is.
fn method(
    config: &Config,
    pipe: &Pipe,
    start: &Start,
    replication: Option<Replication>,
) -> Result<AuthMethod, Refusal> {
    let rules = &config.hba;
    if rules.is_empty() {
        return Ok(config.auth.method);
    }
    let user = start.parameter("user").unwrap_or_default();
    let database = start.parameter("database").filter(|name| !name.is_empty()).unwrap_or(user);
    let (address, encrypted) = (pipe.peer()?, pipe.tls().is_some());
    let replication = replication == Some(Replication::Physical);
    let facts = Facts { address, encrypted, user, database, replication };
    match hba::method(rules, &facts) {
        Some(AuthMethod::Reject) => {
            let what = if replication { "replication connection" } else { "connection" };
            Err(Trouble::Unauthorized(format!("hba rejects {what} for {facts}")).into())
        }
        Some(method) => Ok(method),
        None => {
            let what = if replication { "replication connection from " } else { "" };
            Err(Trouble::Unauthorized(format!("no hba entry for {what}{facts}")).into())
        }
    }
}

/// Looks the role up, waiting for a server that knows it.
async fn stored(shared: &Shared, config: &Config, user: &str) -> Result<Stored, Trouble> {
    let mut topology = shared.cluster.follow();
    let attempts = async {
        loop {
            let current = topology.borrow_and_update().clone();
            let error = match current {
                Some(current) => match shared.verifiers.stored(user, &current).await {
                    Ok(stored) => return stored,
                    Err(error) => error,
                },
                None => VerifierError::NoServer,
            };
            tracing::warn!(error = %Chain(&error), "cannot look up a role; trying again");
            // Either something changes, or the server gets over it.
            drop(timeout(RETRY, topology.changed()).await);
        }
    };
    timeout(config.hold_timeout, attempts).await.map_err(|_| Trouble::NoVerifiers)
}

const RETRY: Duration = Duration::from_millis(250);
