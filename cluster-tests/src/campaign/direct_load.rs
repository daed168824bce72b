//! Applications that know no better: sessions on every server, past the proxy and the network, that
//! try to write all the time. What a server accepts it accepts as a primary.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Config, NoTls};

use super::terms::{Terms, Write};
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::postgres::APP;

/// The sessions log in as this role, whose refused statements are not logged. They wait for no standby: a
/// server that is alone must be heard to accept what it accepts.
const ROLE: &str = "campaign_direct";
/// Between two commits on a primary.
const PAUSE: Duration = Duration::from_millis(5);
/// After a refusal, and before another attempt to connect.
const REFUSED_PAUSE: Duration = Duration::from_millis(20);
/// An attempt to connect to a stopped postmaster hangs.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(1);
/// A server that is frozen answers when it wakes up, and that is what one wants to hear.
const STATEMENT_TIME_MAX: Duration = Duration::from_secs(90);

/// A row, and what it was written on: the timeline, and the start of the server.
const INSERT: &str = "INSERT INTO campaign_direct VALUES ($1::text, $2::bigint) RETURNING \
    substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8), pg_postmaster_start_time()::text";

/// The sessions.
pub(crate) struct DirectLoad {
    terms: Arc<Mutex<Terms>>,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<()>>,
}

impl DirectLoad {
    /// Creates the role and the table, and two sessions on every server.
    pub(crate) async fn start(cluster: &Cluster) -> Result<Self, Failure> {
        let primary = cluster.connect_server(&cluster.primary().await?, APP).await?;
        let role = format!(
            "CREATE ROLE {ROLE} LOGIN; ALTER ROLE {ROLE} SET log_min_messages = 'fatal'; \
             ALTER ROLE {ROLE} SET synchronous_commit = 'local'; \
             CREATE TABLE campaign_direct (node text, seq bigint); \
             GRANT ALL ON campaign_direct TO {ROLE}"
        );
        primary.batch_execute(&role).await?;
        let (terms, stop) = (Arc::new(Mutex::new(Terms::default())), Arc::new(AtomicBool::new(false)));
        let mut tasks = Vec::new();
        for node in cluster.nodes() {
            let Some(postgres) = &node.postgres else { continue };
            let mut config = Config::new();
            config.host_path(&postgres.socket_dir).port(postgres.port).user(ROLE).dbname(APP);
            for _ in 0..2 {
                let write = write(node.name.clone(), config.clone(), Arc::clone(&terms), Arc::clone(&stop));
                tasks.push(tokio::spawn(write));
            }
        }
        Ok(Self { terms, stop, tasks })
    }

    /// Looks at what was accepted.
    pub(crate) fn with_terms<T>(&self, look: impl FnOnce(&mut Terms) -> T) -> T {
        look(&mut self.terms.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends the sessions.
    pub(crate) fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks.drain(..) {
            task.abort();
        }
    }
}

async fn write(node: String, config: Config, terms: Arc<Mutex<Terms>>, stop: Arc<AtomicBool>) {
    let mut seq = 0i64;
    while !stop.load(Ordering::Relaxed) {
        let Ok(Ok((client, connection))) = timeout(CONNECT_TIME_MAX, config.connect(NoTls)).await else {
            sleep(REFUSED_PAUSE).await;
            continue;
        };
        tokio::spawn(connection);
        while !client.is_closed() && !stop.load(Ordering::Relaxed) {
            seq += 1;
            let sent = Instant::now();
            match timeout(STATEMENT_TIME_MAX, client.query_one(INSERT, &[&node, &seq])).await {
                Ok(Ok(row)) => {
                    let acked = Instant::now();
                    let write = Write { timeline: row.get(0), server: row.get(1), sent, acked };
                    terms.lock().unwrap_or_else(PoisonError::into_inner).record(&node, write);
                    sleep(PAUSE).await;
                }
                Ok(Err(_)) => sleep(REFUSED_PAUSE).await,
                Err(_) => break,
            }
        }
    }
}
