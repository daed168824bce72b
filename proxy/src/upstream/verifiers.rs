//! SCRAM verifiers, fetched from the cluster and kept for a while.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use pgherd_common::time::RealClock;
use pgherd_common::topology::Backend;
use pgherd_common::{Clock, MonoTime, Topology};
use tokio_postgres::NoTls;

use crate::config::Auth;
use crate::control::lock;
use crate::routing;
use crate::wire::scram::{Key, Verifier};

/// How long a verifier is believed. A server has the last word on every login anyway.
const LIFE: Duration = Duration::from_secs(60);

/// Bounds the memory that strangers can take with names they make up.
const ENTRIES_MAX: usize = 10_000;

/// Why a verifier could not be looked up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VerifierError {
    #[error("no server is up")]
    NoServer,
    #[error("server {server} did not answer the lookup of a role")]
    Lookup {
        server: pgherd_common::NodeName,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("server {server} did not answer the lookup of a role within {limit:?}")]
    Timeout { server: pgherd_common::NodeName, limit: Duration },
}

#[derive(Debug)]
struct Entry {
    verifier: Option<Verifier>,
    fetched: MonoTime,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Verifiers {
    auth: Auth,
    limit: Duration,
    /// Makes up the verifiers of roles that do not exist.
    secret: Key,
    entries: Mutex<BTreeMap<String, Entry>>,
}

impl Verifiers {
    pub(crate) fn new(auth: Auth, limit: Duration) -> Self {
        Self { auth, limit, secret: rand::random(), entries: Mutex::default() }
    }

    /// The verifier of a role; one that no password fits when the role has none.
    pub(crate) async fn verifier(&self, user: &str, topology: &Topology) -> Result<Verifier, VerifierError> {
        let now = RealClock.now();
        let known = lock(&self.entries)
            .get(user)
            .filter(|entry| now.since(entry.fetched) < LIFE)
            .map(|entry| entry.verifier.clone());
        let verifier = match known {
            Some(verifier) => verifier,
            None => {
                let verifier = self.look_up(user, topology).await?;
                let mut entries = lock(&self.entries);
                if entries.len() >= ENTRIES_MAX {
                    entries.clear();
                }
                entries.insert(user.to_owned(), Entry { verifier: verifier.clone(), fetched: now });
                verifier
            }
        };
        Ok(verifier.unwrap_or_else(|| Verifier::fake(user, &self.secret)))
    }

    /// A login failed: the password may have changed.
    pub(crate) fn doubt(&self, user: &str) {
        lock(&self.entries).remove(user);
    }

    /// Asks the primary, then the others that are up.
    async fn look_up(&self, user: &str, topology: &Topology) -> Result<Option<Verifier>, VerifierError> {
        let primary = routing::writable(topology);
        let up = |backend: &&Backend| backend.availability == pgherd_common::topology::Availability::Up;
        let others =
            topology.backends().iter().filter(up).filter(|backend| Some(backend.id) != primary.map(|p| p.id));
        let mut last = VerifierError::NoServer;
        for backend in primary.into_iter().chain(others) {
            let server = backend.name.clone();
            last = match tokio::time::timeout(self.limit, self.ask(backend, user)).await {
                Ok(Ok(verifier)) => return Ok(verifier),
                Ok(Err(source)) => VerifierError::Lookup { server, source },
                Err(_) => VerifierError::Timeout { server, limit: self.limit },
            };
        }
        Err(last)
    }

    async fn ask(&self, backend: &Backend, user: &str) -> Result<Option<Verifier>, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host(&backend.address.host).port(backend.address.port);
        config.user(&self.auth.user).password(&self.auth.password.0).dbname(&self.auth.database);
        config.application_name("pgherd_proxy").connect_timeout(self.limit);
        let (client, connection) = config.connect(NoTls).await?;
        let connection = tokio::spawn(connection);
        let row = client.query_opt(&self.auth.query, &[&user]).await;
        drop(client);
        connection.abort();
        let text: Option<String> = match row? {
            Some(row) => row.try_get(0)?,
            None => None,
        };
        Ok(text.as_deref().and_then(Verifier::parse))
    }
}
