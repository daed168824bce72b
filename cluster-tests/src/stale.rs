//! Does a session ever miss on a standby what it has just written? Clients write and read in pairs through
//! the proxy of a cluster with two standbys, while replay on these is delayed and stopped at random.

mod delay;
mod pairs;
mod tally;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::postgres::APP;
use delay::Delays;
use pairs::{Pairs, SCHEMA};
pub use tally::Tally;

/// Clients that write and read, each for itself.
const CLIENTS: u64 = 24;
/// Durability is not in question here.
const POSTGRES_SETTINGS: &str = "fsync = off\n";
/// Between two lines that tell how far it is.
const TOLD_EVERY: Duration = Duration::from_secs(30);
/// How long the proxy waits for a standby.
const CAUSAL_WAIT: &str = "20ms";

/// What reads are sure to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Consistency {
    /// Nothing in particular: the counter-check.
    Eventual,
    /// What the session wrote, and what was written before it began.
    Session,
    /// What anybody wrote.
    Global,
}

impl Consistency {
    /// As the configuration calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Eventual => "eventual",
            Self::Session => "session",
            Self::Global => "global",
        }
    }
}

/// What is wanted.
#[derive(Debug, Clone)]
pub struct Options {
    /// So many pairs of a write and a read.
    pub pairs: u64,
    /// The proxy's `read_consistency`.
    pub consistency: Consistency,
    /// Decides what is left to chance, but for the interleaving of real processes.
    pub seed: u64,
    /// PostgreSQL's programs, if not the newest installed.
    pub pg_bin: Option<PathBuf>,
    /// Where the logs are kept if anything was wrong.
    pub logs: PathBuf,
}

/// Runs it and tells its progress to `say`.
pub async fn run(options: &Options, say: &dyn Fn(&str)) -> Result<Tally, Failure> {
    say("starting a primary, two standbys, their agents and a proxy");
    let routing = format!(
        "[routing]\nread_consistency = '{}'\ncausal_wait = '{CAUSAL_WAIT}'",
        options.consistency.name()
    );
    let cluster = Cluster::builder()
        .name("stale")
        .pg_bin(options.pg_bin.clone())
        .postgres_settings(POSTGRES_SETTINGS)
        .proxy_settings(&routing)
        .keep_logs(options.logs.clone())
        .start()
        .await?;
    let primary = cluster.primary().await?;
    let setup = cluster.connect().await?;
    setup.batch_execute(SCHEMA).await?;
    setup
        .execute("INSERT INTO stale_pairs SELECT c, 0 FROM generate_series(1, $1::bigint) c", &[&slots()])
        .await?;
    for node in databases(&cluster) {
        name(&cluster, &node).await?;
    }
    let cluster = Arc::new(cluster);
    let mut delays = JoinSet::new();
    for (number, node) in (1..).zip(databases(&cluster).filter(|node| *node != primary)) {
        let delay = Delays::new(&cluster, &node, options.seed.wrapping_mul(31).wrapping_add(number));
        delays.spawn(delay.go_on());
    }
    let tally = work(options, &cluster, say).await?;
    // Where replay was stopped it is over with the servers.
    delays.shutdown().await;
    let as_it_should = tally.is_clean() || options.consistency == Consistency::Eventual;
    if let Some(cluster) = Arc::into_inner(cluster).filter(|_| as_it_should)
        && let Err(alarms) = cluster.finish(&[])
    {
        say(&tally.told());
        return Err(alarms.into());
    }
    Ok(tally)
}

/// Lets sessions of a server ask for its port in a manner that any server may answer: nobody knows this
/// setting.
async fn name(cluster: &Cluster, node: &str) -> Result<(), Failure> {
    let client = cluster.connect_server(node, "postgres").await?;
    let port = cluster.node(node).postgres.as_ref().map_or(0, |postgres| postgres.port);
    // It has to be known in the session before it can be set for all.
    for set in ["SET", "ALTER SYSTEM SET"] {
        client.batch_execute(&format!("{set} pgherd.port = '{port}'")).await?;
    }
    Ok(client.batch_execute("SELECT pg_reload_conf()").await?)
}

fn slots() -> i64 {
    i64::try_from(CLIENTS).unwrap_or(i64::MAX)
}

fn databases(cluster: &Cluster) -> impl Iterator<Item = String> {
    cluster.nodes().iter().filter(|node| node.postgres.is_some()).map(|node| node.name.clone())
}

/// All the pairs.
async fn work(options: &Options, cluster: &Cluster, say: &dyn Fn(&str)) -> Result<Tally, Failure> {
    let proxy = cluster.proxy(0);
    let mut config = tokio_postgres::Config::new();
    config.host(&proxy.place.host).port(proxy.port).user(APP).password(APP).dbname(APP);
    let primary = cluster.primary().await?;
    let port = cluster.node(&primary).postgres.as_ref().map_or(0, |postgres| postgres.port);
    let pairs = Arc::new(Pairs::new(config, port, options));
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for client in 1..=CLIENTS {
        clients.spawn(Arc::clone(&pairs).run(client));
    }
    let (mut tally, mut tick) = (Tally::default(), interval(TOLD_EVERY));
    loop {
        tokio::select! {
            part = clients.join_next() => match part {
                Some(part) => tally.add(part?),
                None => break,
            },
            _ = tick.tick() => say(&pairs.progress(begun.elapsed())),
        }
    }
    tally.took = begun.elapsed();
    Ok(tally)
}
