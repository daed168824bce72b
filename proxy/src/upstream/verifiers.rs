//! What the cluster keeps of passwords (SCRAM verifiers, MD5 hashes), fetched from it and believed for a while.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgherd_common::time::RealClock;
use pgherd_common::topology::Backend;
use pgherd_common::{Clock, MonoTime, Topology};
use tokio::sync::Semaphore;
use tokio_postgres::error::SqlState;

use crate::config::{Auth, ServerTls, ServerTlsMode};
use crate::control::lock;
use crate::routing;
use crate::tls::Kept;
use crate::wire::password::Stored;
use crate::wire::scram::{DEFAULT_ITERATIONS, Key, Verifier};

use super::dial::{DialError, Line, dial, dial_in_clear, hear_out};

/// How long a verifier is believed. A server has the last word on every login anyway.
const LIFE: Duration = Duration::from_secs(60);

/// How long it is believed that a role has none: it may be created any moment.
const LIFE_OF_NOTHING: Duration = Duration::from_secs(5);

/// Bounds the memory that strangers can take with names they make up.
const ENTRIES_MAX: usize = 10_000;

/// So many lookups go on at a time: names that strangers make up must not use up a server's connections.
const LOOKUPS_MAX: usize = 2;

/// A verifier is doubted so often at most within [`DOUBTS_WINDOW`]: whoever tries wrong passwords causes no
/// more lookups.
const DOUBTS_MAX: u32 = 3;

const DOUBTS_WINDOW: Duration = Duration::from_secs(5);

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
    #[error("server {server} cannot be reached for the lookup of a role")]
    Dial {
        server: pgherd_common::NodeName,
        #[source]
        source: DialError,
    },
    #[error("server {server} did not answer the lookup of a role within {limit:?}")]
    Timeout { server: pgherd_common::NodeName, limit: Duration },
}

#[derive(Debug)]
struct Entry {
    stored: Option<Stored>,
    fetched: MonoTime,
    /// False when a login made it doubtful.
    believed: bool,
    /// How often it was doubted since when.
    doubts: (MonoTime, u32),
}

/// See [`Verifiers::secret`].
#[derive(Clone, Copy)]
enum Secret {
    /// Until the cluster was asked, and where it keeps nothing of the kind.
    Own(Key),
    /// That of all proxies.
    Common(Key),
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Verifiers {
    auth: Auth,
    limit: Duration,
    /// Makes up the verifiers of roles that do not exist. From what the cluster keeps of the password of the
    /// login that asks, which strangers cannot know, so that all proxies make up the same ones.
    secret: Mutex<Secret>,
    entries: Mutex<BTreeMap<String, Entry>>,
    lookups: Semaphore,
    tls: Arc<Kept<ServerTls>>,
    /// Of the last verifier that was looked up: made up ones must not stand out.
    iterations: AtomicU32,
}

impl Verifiers {
    pub(crate) fn new(auth: Auth, limit: Duration, tls: Arc<Kept<ServerTls>>) -> Self {
        let lookups = Semaphore::new(LOOKUPS_MAX);
        let iterations = AtomicU32::new(DEFAULT_ITERATIONS);
        let secret = Mutex::new(Secret::Own(rand::random()));
        Self { auth, limit, secret, entries: Mutex::default(), lookups, tls, iterations }
    }

    /// A verifier that no password fits, for a role that has none of use.
    pub(crate) fn fake(&self, user: &str) -> Verifier {
        let (Secret::Own(secret) | Secret::Common(secret)) = *lock(&self.secret);
        Verifier::fake(user, &secret, self.iterations.load(Relaxed))
    }

    /// What the cluster keeps of a role's password; something that no password fits when it keeps nothing.
    pub(crate) async fn stored(&self, user: &str, topology: &Topology) -> Result<Stored, VerifierError> {
        let stored = match self.known(user) {
            Some(stored) => stored,
            None => {
                // The semaphore is never closed.
                let _turn = self.lookups.acquire().await;
                // Somebody else may have asked for the same role meanwhile.
                match self.known(user) {
                    Some(stored) => stored,
                    None => self.learn(user, topology).await?,
                }
            }
        };
        Ok(stored.unwrap_or_else(|| Stored::Scram(self.fake(user))))
    }

    /// Looks a role up and remembers what was found.
    async fn learn(&self, user: &str, topology: &Topology) -> Result<Option<Stored>, VerifierError> {
        if matches!(*lock(&self.secret), Secret::Own(_)) {
            // Whatever comes of it, who asked goes on.
            if let Ok(Some(Stored::Scram(own))) = self.look_up(&self.auth.user, topology).await {
                *lock(&self.secret) = Secret::Common(own.made_up_secret());
            }
        }
        let stored = self.look_up(user, topology).await?;
        if let Some(Stored::Scram(verifier)) = &stored {
            self.iterations.store(verifier.iterations, Relaxed);
        }
        let now = RealClock.now();
        let mut entries = lock(&self.entries);
        if entries.len() >= ENTRIES_MAX {
            entries.clear();
        }
        let doubts = entries.get(user).map_or((now, 0), |entry| entry.doubts);
        let entry = Entry { stored: stored.clone(), fetched: now, believed: true, doubts };
        entries.insert(user.to_owned(), entry);
        Ok(stored)
    }

    /// What was looked up not long ago; `Some(None)` when the role has no password.
    fn known(&self, user: &str) -> Option<Option<Stored>> {
        let now = RealClock.now();
        let entries = lock(&self.entries);
        let fresh = |entry: &&Entry| {
            // Whoever keeps trying must not learn from the time it takes whether there is something.
            let tried = entry.doubts.1 > DOUBTS_MAX;
            let life = if entry.stored.is_some() && !tried { LIFE } else { LIFE_OF_NOTHING };
            entry.believed && now.since(entry.fetched) < life
        };
        entries.get(user).filter(fresh).map(|entry| entry.stored.clone())
    }

    /// A login failed: the password may have changed.
    pub(crate) fn doubt(&self, user: &str) {
        let (mut entries, now) = (lock(&self.entries), RealClock.now());
        if let Some(entry) = entries.get_mut(user) {
            let (begun, count) = entry.doubts;
            let fresh = now.since(begun) >= DOUBTS_WINDOW;
            entry.doubts = if fresh { (now, 1) } else { (begun, count.saturating_add(1)) };
            entry.believed &= entry.doubts.1 > DOUBTS_MAX;
        }
    }

    /// Asks the primary, then the others that are up.
    async fn look_up(&self, user: &str, topology: &Topology) -> Result<Option<Stored>, VerifierError> {
        let primary = routing::writable(topology);
        let up = |backend: &&Backend| backend.availability == pgherd_common::topology::Availability::Up;
        let others =
            topology.backends().iter().filter(up).filter(|backend| Some(backend.id) != primary.map(|p| p.id));
        let mut last = VerifierError::NoServer;
        for backend in primary.into_iter().chain(others) {
            let server = backend.name.clone();
            last = match tokio::time::timeout(self.limit, self.ask(backend, user)).await {
                Ok(Ok(stored)) => return Ok(stored),
                Ok(Err(error)) => error,
                Err(_) => VerifierError::Timeout { server, limit: self.limit },
            };
        }
        Err(last)
    }

    async fn ask(&self, backend: &Backend, user: &str) -> Result<Option<Stored>, VerifierError> {
        let server = || backend.name.clone();
        let unreachable = |source| VerifierError::Dial { server: server(), source };
        let line = dial(&backend.address, &self.tls).await.map_err(unreachable)?;
        let may_be_clear =
            matches!(line, Line::Encrypted(_)) && self.tls.current().mode == ServerTlsMode::Prefer;
        let mut asked = self.ask_over(line, user).await;
        // Its pg_hba.conf may want this login in clear.
        let refused = |error: &tokio_postgres::Error| {
            error.code() == Some(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION)
        };
        if may_be_clear && asked.as_ref().is_err_and(refused) {
            let line = dial_in_clear(&backend.address).await.map_err(unreachable)?;
            asked = self.ask_over(line, user).await;
        }
        asked.map_err(|source| VerifierError::Lookup { server: server(), source })
    }

    async fn ask_over(&self, line: Line, user: &str) -> Result<Option<Stored>, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.user(&self.auth.user).password(&self.auth.password.0).dbname(&self.auth.database);
        config.application_name("pgherd_proxy");
        let (client, connection) = line.log_in(&mut config).await?;
        let row = client.query_opt(&self.auth.query, &[&user]).await;
        drop(client);
        hear_out(connection);
        let text: Option<String> = match row? {
            Some(row) => row.try_get(0)?,
            None => None,
        };
        Ok(text.as_deref().and_then(Stored::parse))
    }
}
