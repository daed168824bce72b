//! From the first byte to `AuthenticationOk`, and the first server connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pgherd_common::errors::Chain;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::config::AuthMethod;
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
    let opening = timeout(limit, first_packet(shared, pipe)).await.map_err(|_| Trouble::LoginTimeout)??;
    let start = match opening.startup {
        Startup::Start(start) => start,
        Startup::Cancel(key) => {
            shared.cancels.cancel(key, shared.config.connect_timeout, &shared.server_tls).await;
            return Ok(Admission::Done);
        }
        Startup::Ssl | Startup::Gss => return Ok(Admission::Done),
    };
    let replication = start.replication().map_err(Trouble::Startup)?;
    let place = Arc::clone(&shared.places).try_acquire_owned().map_err(|_| Trouble::TooManyClients)?;
    let unknown = start.protocol_options();
    if start.minor > 0 || !unknown.is_empty() {
        backend::put_negotiate(&mut pipe.output, &unknown);
    }
    let user = start.parameter("user").unwrap_or_default().to_owned();
    let claim = Claim { user: &user, end_point: opening.end_point.as_deref() };
    let keys = match method(shared, pipe, &start, replication)? {
        AuthMethod::Trust => None,
        AuthMethod::Cert => {
            prove::by_certificate(pipe, &user)?;
            None
        }
        method @ (AuthMethod::ScramSha256 | AuthMethod::Md5 | AuthMethod::Reject) => {
            let stored = stored(shared, &user).await?;
            let proof = prove::by_password(shared, pipe, &claim, method, stored);
            Some(timeout(limit, proof).await.map_err(|_| Trouble::LoginTimeout)??)
        }
    };
    backend::put_auth_ok(&mut pipe.output);
    let login = Login { parameters: start.parameters, keys, replication };
    Ok(Admission::Session(Box::new(Admitted { login, user, place })))
}

/// How the client has to prove who it is.
fn method(
    shared: &Shared,
    pipe: &Pipe,
    start: &Start,
    replication: Option<Replication>,
) -> Result<AuthMethod, Refusal> {
    let rules = &shared.config.hba;
    if rules.is_empty() {
        return Ok(shared.config.auth.method);
    }
    let user = start.parameter("user").unwrap_or_default();
    let database = start.parameter("database").filter(|name| !name.is_empty()).unwrap_or(user);
    let (address, encrypted) = (pipe.peer()?, pipe.tls().is_some());
    let replication = replication == Some(Replication::Physical);
    let facts = Facts { address, encrypted, user, database, replication };
    match hba::method(rules, &facts) {
        Some(AuthMethod::Reject) => Err(Trouble::Unauthorized(format!("hba rejects {facts}")).into()),
        Some(method) => Ok(method),
        None => Err(Trouble::Unauthorized(format!("no hba entry for {facts}")).into()),
    }
}

/// Looks the role up, waiting for a server that knows it.
async fn stored(shared: &Shared, user: &str) -> Result<Stored, Trouble> {
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
    timeout(shared.config.hold_timeout, attempts).await.map_err(|_| Trouble::NoVerifiers)
}

const RETRY: Duration = Duration::from_millis(250);
