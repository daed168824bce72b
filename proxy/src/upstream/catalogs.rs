//! What each database's catalogs say about functions and relations, read in the background and kept.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pgherd_common::errors::Chain;
use pgherd_common::topology::{Availability, Backend};
use pgherd_common::{NodeName, Topology};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tokio_postgres::{Client, Row};

use crate::config::{Auth, ServerTls};
use crate::control::{Cluster, lock};
use crate::memory::Usage;
use crate::routing;
use crate::sql::{Defined, Edition, Facts, FunctionRow, RelationRow};
use crate::tls::Kept;

use super::dial::{DialError, Line, dial, hear_out};

/// Others may change the catalogs unseen: they are read again after so long.
const LIFE: Duration = Duration::from_secs(60);

/// Between two readings of one database, however much is redefined.
const PAUSE: Duration = Duration::from_millis(250);

/// Until it is tried again when nobody answered.
const RETRY: Duration = Duration::from_secs(5);

/// For all of one reading.
const LIMIT: Duration = Duration::from_secs(10);

/// So many databases are looked into; names have to be enough for the others.
const DATABASES_MAX: usize = 200;

/// A database with more functions, or more views and the like, is not looked into.
const ROWS_MAX: usize = 50_000;

/// Long texts of functions are not looked into.
const FUNCTIONS: &str = "SELECT p.oid, n.nspname, p.proname, p.provolatile, l.lanname, \
     CASE WHEN n.nspname = 'pg_catalog' THEN '' \
          WHEN length(p.prosrc) > 65536 OR to_jsonb(p) ->> 'prosqlbody' IS NOT NULL THEN NULL \
          ELSE p.prosrc END, \
     CASE WHEN a.aggfnoid IS NULL THEN '{}' ELSE ARRAY[a.aggtransfn, a.aggfinalfn, a.aggcombinefn, \
          a.aggserialfn, a.aggdeserialfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn]::oid[] END \
     FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace JOIN pg_language l ON l.oid = p.prolang \
     LEFT JOIN pg_aggregate a ON a.aggfnoid = p.oid \
     WHERE n.nspname NOT LIKE 'pg\\_temp%' LIMIT 50001";

/// What a view calls and reads is found in its stored tree: that takes no lock on anything, and names
/// PostgreSQL's own functions as well.
const RELATIONS: &str = "SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence <> 'u', \
     ARRAY(SELECT DISTINCT m[1]::oid FROM regexp_matches(v.tree, \
          ':(?:funcid|opfuncid|hashfuncid|negfuncid|aggfnoid|winfnoid) (\\d+)', 'g') m), \
     ARRAY(SELECT DISTINCT m[1]::oid FROM regexp_matches(v.tree, ':relid (\\d+)', 'g') m), \
     coalesce(v.tree LIKE '%:hasForUpdate true%', false) \
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace LEFT JOIN LATERAL ( \
          SELECT r.ev_action::text AS tree FROM pg_rewrite r \
          WHERE r.ev_class = c.oid AND r.rulename = '_RETURN' AND c.oid >= 16384) v ON true \
     WHERE c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND c.relpersistence <> 't' \
     AND (c.relkind IN ('v', 'S', 'f') OR c.relpersistence = 'u' \
          OR n.nspname IN ('pg_catalog', 'information_schema')) LIMIT 50001";

/// Why the catalogs could not be read.
#[derive(Debug, thiserror::Error)]
enum CatalogError {
    #[error("no server is up")]
    NoServer,
    #[error("server {server} did not tell what is in its catalogs")]
    Query {
        server: NodeName,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("server {server} cannot be reached to read its catalogs")]
    Dial {
        server: NodeName,
        #[source]
        source: DialError,
    },
    #[error("server {server} did not tell what is in its catalogs within {LIMIT:?}")]
    Timeout { server: NodeName },
    #[error("there are more than {ROWS_MAX} functions, or more than {ROWS_MAX} views and the like")]
    TooMany,
}

/// What became of a reading.
enum TakenIn {
    /// Nobody asked since the last one.
    Unused,
    /// It holds for its time.
    Settled,
    /// Some of it will be known better soon.
    Doubtful,
}

#[derive(Debug)]
struct Entry {
    edition: Edition,
    /// Somebody asked since the last reading.
    used: bool,
    /// Tells that something was redefined.
    redefined: Arc<Notify>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Catalogs {
    auth: Auth,
    tls: Arc<Kept<ServerTls>>,
    /// Where they are read: to judge thousands of functions takes longer than a client should wait.
    runtime: Handle,
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Numbers editions, of all databases.
    last_number: Mutex<u64>,
    /// Counts what was done to the entries.
    changes: AtomicU64,
}

impl Catalogs {
    /// To be read on the current runtime.
    pub(crate) fn new(auth: Auth, tls: Arc<Kept<ServerTls>>) -> Self {
        Self {
            auth,
            tls,
            runtime: Handle::current(),
            entries: Mutex::default(),
            last_number: Mutex::default(),
            changes: AtomicU64::new(0),
        }
    }

    /// What is known of all databases takes so much; names are counted.
    pub(crate) fn usage(&self) -> Usage {
        let known: Vec<_> = lock(&self.entries).values().map(|entry| entry.edition.facts.clone()).collect();
        known.iter().map(|facts| facts.usage()).fold(Usage::default(), Usage::and)
    }

    /// What is known of a database by now.
    pub(crate) fn edition(&self, database: &str) -> Edition {
        let mut entries = lock(&self.entries);
        let known = entries.get_mut(database).map(|entry| {
            entry.used = true;
            entry.edition.clone()
        });
        known.unwrap_or_else(|| Edition { facts: Arc::new(Facts::by_names()), number: 0 })
    }

    /// A number that is another one when any edition may be another one, or when it is to be found out whether anybody
    /// still asks for one.
    pub(crate) fn version(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// With the entries locked, so that nobody takes what was before for what is behind the change.
    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// These names may mean something else soon.
    pub(crate) fn doubt(&self, database: &str, defined: &[Defined]) {
        let number = self.next_number();
        let mut entries = lock(&self.entries);
        if let Some(entry) = entries.get_mut(database) {
            Arc::make_mut(&mut entry.edition.facts).doubt(defined);
            entry.edition.number = number;
            self.changed();
        }
    }

    /// What was doubted was committed, or not: it is to be found out.
    pub(crate) fn renew(&self, database: &str) {
        if let Some(entry) = lock(&self.entries).get(database) {
            entry.redefined.notify_one();
        }
    }

    fn next_number(&self) -> u64 {
        let mut last = lock(&self.last_number);
        *last += 1;
        *last
    }

    /// Begins to keep an eye on a database that a client has logged in to. `user`: who it logged in as.
    pub(crate) fn follow(
        self: &Arc<Self>,
        cluster: &Arc<Cluster>,
        stopping: &watch::Receiver<bool>,
        database: &str,
        user: &str,
    ) {
        let number = self.next_number();
        let redefined = {
            let mut entries = lock(&self.entries);
            if entries.contains_key(database) || entries.len() >= DATABASES_MAX {
                return;
            }
            let edition = Edition { facts: Arc::new(Facts::pending()), number };
            let redefined = Arc::new(Notify::new());
            entries.insert(database.to_owned(), Entry { edition, used: true, redefined: redefined.clone() });
            self.changed();
            redefined
        };
        let (own, cluster, mut stopping) = (self.clone(), cluster.clone(), stopping.clone());
        let (database, user) = (database.to_owned(), self.user(user));
        self.runtime.spawn(async move {
            tokio::select! {
                () = own.keep(&cluster, &database, &user, &redefined) => {}
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
            let mut entries = lock(&own.entries);
            entries.remove(&database);
            own.changed();
        });
    }

    /// Where clients are trusted there need be no login of the proxy's own.
    fn user(&self, client: &str) -> String {
        if self.auth.user.is_empty() { client.to_owned() } else { self.auth.user.clone() }
    }

    /// Reads a database's catalogs over and over, as long as anybody asks for them.
    async fn keep(&self, cluster: &Cluster, database: &str, user: &str, redefined: &Notify) {
        loop {
            let result = match cluster.topology() {
                Some(topology) => self.read(&topology, database, user).await,
                None => Err(CatalogError::NoServer),
            };
            let mut life = if result.is_ok() { LIFE } else { RETRY };
            if let Err(error) = &result {
                tracing::warn!(database, error = %Chain(error), "which functions and views only read is not known");
            }
            match self.take_in(database, result.ok()) {
                TakenIn::Unused => return,
                TakenIn::Settled => {}
                TakenIn::Doubtful => life = Duration::ZERO,
            }
            sleep(PAUSE).await;
            tokio::select! {
                () = redefined.notified() => {}
                () = sleep(life) => {}
            }
        }
    }

    /// Puts facts into effect, if there are any.
    fn take_in(&self, database: &str, facts: Option<Facts>) -> TakenIn {
        let number = self.next_number();
        let mut entries = lock(&self.entries);
        let Some(entry) = entries.get_mut(database) else { return TakenIn::Unused };
        // Before the lock is given up.
        self.changed();
        let mut facts = match facts {
            Some(facts) => facts,
            // What was known before is better than nothing.
            None if entry.edition.facts.is_pending() => Facts::by_names(),
            None => return TakenIn::Settled,
        };
        let doubtful = facts.replaces(&entry.edition.facts);
        if *entry.edition.facts != facts {
            entry.edition = Edition { facts: Arc::new(facts), number };
        }
        match (std::mem::take(&mut entry.used), doubtful) {
            (_, true) => TakenIn::Doubtful,
            (true, false) => TakenIn::Settled,
            (false, false) => TakenIn::Unused,
        }
    }

    /// Asks the primary, then the others that are up.
    async fn read(&self, topology: &Topology, database: &str, user: &str) -> Result<Facts, CatalogError> {
        let primary = routing::writable(topology);
        let up = |backend: &&Backend| backend.availability == Availability::Up;
        let others =
            topology.backends().iter().filter(up).filter(|backend| Some(backend.id) != primary.map(|p| p.id));
        let mut last = CatalogError::NoServer;
        for backend in primary.into_iter().chain(others) {
            let server = backend.name.clone();
            last = match timeout(LIMIT, self.ask(backend, database, user)).await {
                Ok(Ok((functions, relations))) => {
                    if functions.len().max(relations.len()) > ROWS_MAX {
                        return Err(CatalogError::TooMany);
                    }
                    return Ok(Facts::of(&functions, &relations));
                }
                Ok(Err(error)) => error,
                Err(_) => CatalogError::Timeout { server },
            };
        }
        Err(last)
    }

    async fn ask(
        &self,
        backend: &Backend,
        database: &str,
        user: &str,
    ) -> Result<(Vec<FunctionRow>, Vec<RelationRow>), CatalogError> {
        let server = || backend.name.clone();
        let line = dial(&backend.address, &self.tls).await;
        let line = line.map_err(|source| CatalogError::Dial { server: server(), source })?;
        let asked = self.ask_over(line, database, user).await;
        asked.map_err(|source| CatalogError::Query { server: server(), source })
    }

    async fn ask_over(
        &self,
        line: Line,
        database: &str,
        user: &str,
    ) -> Result<(Vec<FunctionRow>, Vec<RelationRow>), tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.user(user).password(&self.auth.password.0).dbname(database);
        config.application_name("pgherd_proxy");
        config.options("-c search_path=pg_catalog -c statement_timeout=10s");
        let (client, connection) = line.log_in(&mut config).await?;
        let rows = read_rows(&client).await;
        drop(client);
        hear_out(connection);
        rows
    }
}

async fn read_rows(client: &Client) -> Result<(Vec<FunctionRow>, Vec<RelationRow>), tokio_postgres::Error> {
    let (functions, relations) =
        futures_util::future::try_join(client.query(FUNCTIONS, &[]), client.query(RELATIONS, &[])).await?;
    let functions = functions.iter().map(function).collect::<Result<_, _>>()?;
    Ok((functions, relations.iter().map(relation).collect::<Result<_, _>>()?))
}

/// What the catalogs of the database that `client` is connected to say, as the proxy reads them.
///
/// # Errors
///
/// The server's, or the connection's.
pub async fn read_facts(client: &Client) -> Result<Facts, tokio_postgres::Error> {
    let (functions, relations) = read_rows(client).await?;
    Ok(Facts::of(&functions, &relations))
}

fn function(row: &Row) -> Result<FunctionRow, tokio_postgres::Error> {
    Ok(FunctionRow {
        oid: row.try_get(0)?,
        schema: row.try_get(1)?,
        name: row.try_get(2)?,
        volatility: character(row.try_get(3)?),
        language: row.try_get(4)?,
        body: row.try_get(5)?,
        calls: numbers(row.try_get(6)?),
    })
}

fn relation(row: &Row) -> Result<RelationRow, tokio_postgres::Error> {
    Ok(RelationRow {
        oid: row.try_get(0)?,
        schema: row.try_get(1)?,
        name: row.try_get(2)?,
        kind: character(row.try_get(3)?),
        logged: row.try_get(4)?,
        calls: numbers(row.try_get(5)?),
        reads: numbers(row.try_get(6)?),
        locks: row.try_get(7)?,
    })
}

/// PostgreSQL's type of one byte.
fn character(byte: i8) -> char {
    char::from(byte.cast_unsigned())
}

/// 0 stands for nothing.
fn numbers(all: Vec<u32>) -> Vec<u32> {
    all.into_iter().filter(|oid| *oid != 0).collect()
}
