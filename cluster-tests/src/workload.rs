//! What applications do meanwhile: a writer that remembers every answer, and pgbench.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::process::Command;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::application::{Answer, Application, Work};
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::postgres::APP;
use crate::process::{CommandError, run};
use crate::wait::{NotReached, wait_until};

/// Between two commits.
const PAUSE: Duration = Duration::from_millis(2);
/// Between two attempts to connect.
const RECONNECT_PAUSE: Duration = Duration::from_millis(20);

/// Commits one row after the other through the proxy, in one session as long as that lasts.
#[derive(Debug)]
pub struct Writer {
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicU64>,
    task: JoinHandle<Log>,
    table: String,
}

#[derive(Debug, Default)]
struct Log {
    acked: Vec<u64>,
    errors: BTreeMap<String, usize>,
    sessions_lost: usize,
    longest_gap: Duration,
}

/// What a writer saw, and what the database has of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Commits that were acknowledged.
    pub acked: usize,
    /// Of those, the ones that are gone.
    pub lost: Vec<u64>,
    /// Rows found more than once.
    pub duplicated: Vec<u64>,
    /// Failed statements by SQLSTATE, or by what else went wrong.
    pub errors: BTreeMap<String, usize>,
    /// How often the proxy closed the session.
    pub sessions_lost: usize,
    /// The longest time between two acknowledged commits.
    pub longest_gap: Duration,
}

impl Writer {
    /// Creates the table `writer_<name>` and starts to write.
    pub async fn start(cluster: &Cluster, name: &str) -> Result<Self, tokio_postgres::Error> {
        let table = format!("writer_{name}");
        let client = cluster.connect().await?;
        client.batch_execute(&format!("CREATE TABLE {table} (seq bigint)")).await?;
        let (stop, acked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let insert = format!("INSERT INTO {table} VALUES ($1)");
        let task =
            tokio::spawn(write(Application::new(cluster), insert, Arc::clone(&stop), Arc::clone(&acked)));
        Ok(Self { stop, acked, task, table })
    }

    /// How many commits were acknowledged so far.
    pub fn acknowledged(&self) -> u64 {
        self.acked.load(Ordering::Relaxed)
    }

    /// Waits for this many more acknowledged commits.
    pub async fn until_written(&self, more: u64, within: Duration) -> Result<(), NotReached> {
        let from = self.acked.load(Ordering::Relaxed);
        wait_until("the writer goes on", within, async || {
            let written = self.acked.load(Ordering::Relaxed) - from;
            if written >= more { Ok(()) } else { Err(format!("{written} of {more} commits")) }
        })
        .await
    }

    /// Stops writing and looks every acknowledged row up on the primary.
    pub async fn finish(self, cluster: &Cluster) -> Result<Outcome, Failure> {
        self.stop.store(true, Ordering::Relaxed);
        let log = self.task.await?;
        let primary = cluster.primary().await?;
        let client = cluster.connect_server(&primary, APP).await?;
        let rows =
            client.query(&format!("SELECT seq, count(*) FROM {} GROUP BY seq", self.table), &[]).await?;
        let number = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
        let found: BTreeMap<u64, i64> = rows.iter().map(|row| (number(row.get(0)), row.get(1))).collect();
        Ok(Outcome {
            acked: log.acked.len(),
            lost: log.acked.into_iter().filter(|seq| !found.contains_key(seq)).collect(),
            duplicated: found.into_iter().filter(|(_, times)| *times > 1).map(|(seq, _)| seq).collect(),
            errors: log.errors,
            sessions_lost: log.sessions_lost,
            longest_gap: log.longest_gap,
        })
    }
}

async fn write(
    mut application: Application,
    insert: String,
    stop: Arc<AtomicBool>,
    acked: Arc<AtomicU64>,
) -> Log {
    let mut log = Log::default();
    let mut last = Instant::now();
    let mut seq = 0u64;
    while !stop.load(Ordering::Relaxed) {
        seq += 1;
        let value = i64::try_from(seq).unwrap_or(i64::MAX);
        let mut count = |kind: String| *log.errors.entry(kind).or_default() += 1;
        match application.commit(Work::Statement, &insert, &[&value]).await {
            Answer::Committed => {
                log.acked.push(seq);
                acked.fetch_add(1, Ordering::Relaxed);
                log.longest_gap = log.longest_gap.max(last.elapsed());
                last = Instant::now();
                sleep(PAUSE).await;
            }
            Answer::Warned => count("a warning".to_owned()),
            Answer::Failed(kind) => count(kind),
            Answer::Unanswered => count("no answer".to_owned()),
            Answer::Refused(kind) => {
                count(format!("connect: {kind}"));
                sleep(RECONNECT_PAUSE).await;
            }
            Answer::Closed { kind, .. } => {
                count(kind);
                log.sessions_lost += 1;
            }
        }
    }
    log
}

/// Runs pgbench through the first proxy and returns what it printed.
pub async fn pgbench(cluster: &Cluster, arguments: &[&str]) -> Result<String, CommandError> {
    let bin_dir = cluster.nodes().iter().find_map(|node| Some(&node.postgres.as_ref()?.bin_dir));
    let proxy = cluster.proxy(0);
    let mut command = Command::new(bin_dir.map_or(Path::new(""), |dir| dir).join("pgbench"));
    command.args(["-h", &proxy.place.host, "-p", &proxy.port.to_string(), "-U", APP]);
    command.args(arguments).arg(APP).env("PGPASSWORD", APP).current_dir("/");
    run(command, Duration::from_secs(120)).await
}
