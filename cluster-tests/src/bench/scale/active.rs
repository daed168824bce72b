//! Many clients of whom some ask at any time, over few server connections.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::time::Duration;

use futures_util::future::join_all;
use rand::Rng;
use tokio::time::Instant;

use super::client::{Client, ClientError};
use super::ground::{Faults, Ground, Way};
use super::idle::{all, leave};
use super::memory::{Memory, watched};
use super::text::{maybe, number};
use super::{Figures, Promise, Row, SERVER_CONNECTIONS};
use crate::bench::stats::percentile;
use crate::bench::target::Target;
use crate::bench::usage::pss_mb;

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Active {
    /// How many there were.
    pub clients: usize,
    /// How many of them asked at the same time.
    pub at_once: usize,
    /// Connections to the node that had most of them, where it can be told whose they are.
    pub server_connections: Option<u64>,
    /// Answers in a second.
    pub per_second: f64,
    /// Median of the time that an answer took, in microseconds.
    pub p50_us: Option<f64>,
    /// What 99 of 100 answers did not exceed.
    pub p99_us: Option<f64>,
    /// Before the first of them, while they asked, and with all of them when none asked any more.
    pub memory: Option<Memory>,
    /// Proportional set size when all had left, in megabytes.
    pub left_mb: Option<f64>,
}

impl Figures for Active {
    const HEADS: &'static [&'static str] = &[
        "clients",
        "at once",
        "servers",
        "tps",
        "p50 us",
        "p99 us",
        "MB before",
        "MB during",
        "MB after",
        "MB left",
    ];

    fn cells(&self) -> Vec<String> {
        vec![
            self.clients.to_string(),
            self.at_once.to_string(),
            maybe(self.server_connections.map(|count| count as f64), 0),
            number(self.per_second, 0),
            maybe(self.p50_us, 0),
            maybe(self.p99_us, 0),
            maybe(self.memory.map(|memory| memory.before), 1),
            maybe(self.memory.map(|memory| memory.peak), 1),
            maybe(self.memory.map(|memory| memory.after), 1),
            maybe(self.left_mb, 1),
        ]
    }
}

pub(super) async fn measure(ground: &Ground<'_>) -> Vec<Row<Active>> {
    let measured = async |way: &Way, faults: &Faults| one(ground, way, faults).await;
    ground.each(&[Target::PgBouncer, Target::Pgherd], measured).await
}

async fn one(ground: &Ground<'_>, way: &Way, faults: &Faults) -> Result<Active, ClientError> {
    let options = ground.options;
    let waiting = RefCell::new(VecDeque::new());
    let work = async {
        let logged_in = all(way, faults, options.active).await;
        let clients = logged_in.len();
        waiting.borrow_mut().extend(logged_in);
        let begun = Instant::now();
        let until = begun + Duration::from_secs(options.seconds);
        let ask = || asked(&waiting, ground.accounts(), until, faults);
        let latencies = join_all((0..options.at_once).map(|_| ask())).await.concat();
        (clients, latencies, begun.elapsed().as_secs_f64())
    };
    let ((clients, mut latencies, seconds), memory) = watched(way.pid, work).await;
    let server_connections = connections(ground, way).await;
    leave(waiting.into_inner().into(), faults).await;
    Ok(Active {
        clients,
        at_once: options.at_once.min(clients),
        server_connections,
        per_second: latencies.len() as f64 / seconds,
        p50_us: percentile(&mut latencies, 50),
        p99_us: percentile(&mut latencies, 99),
        memory,
        left_mb: way.pid.and_then(pss_mb),
    })
}

/// Lets one client after the other ask, whoever has waited longest; how long each answer took.
pub(super) async fn asked(
    waiting: &RefCell<VecDeque<Client>>,
    accounts: u32,
    until: Instant,
    faults: &Faults,
) -> Vec<u32> {
    let mut latencies = Vec::new();
    while Instant::now() < until {
        let next = waiting.borrow_mut().pop_front();
        let Some(mut client) = next else { break };
        let account = rand::rng().random_range(1..=accounts).to_string();
        let sql = format!("SELECT aid, abalance FROM pgbench_accounts WHERE aid = {account}");
        let sent = Instant::now();
        if faults.passed(client.ask_known(&sql, &account).await).is_some() {
            latencies.push(micros(sent.elapsed()));
            waiting.borrow_mut().push_back(client);
        }
    }
    latencies
}

pub(super) fn micros(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

/// The application's sessions on the standby that has most of them: only our proxy goes there.
async fn connections(ground: &Ground<'_>, way: &Way) -> Option<u64> {
    if way.target != Target::Pgherd {
        return None;
    }
    let cluster = ground.stand.cluster();
    let mut most = None;
    for node in cluster.nodes().iter().filter(|node| node.postgres.is_some()) {
        let client = cluster.connect_server(&node.name, crate::postgres::APP).await.ok()?;
        let counted = "SELECT count(*), pg_is_in_recovery() FROM pg_stat_activity WHERE usename = $1";
        let row = client.query_one(counted, &[&crate::postgres::APP]).await.ok()?;
        let (count, standby): (i64, bool) = (row.get(0), row.get(1));
        if standby {
            most = most.max(u64::try_from(count).ok());
        }
    }
    most
}

pub(super) fn promises(rows: &[Row<Active>]) -> Vec<Promise> {
    let counts = rows.iter().filter_map(|row| row.figures.as_ref()?.server_connections);
    let of = |count| Promise {
        what: format!(
            "active: the proxy opens {count} connections to one node, at most {SERVER_CONNECTIONS} (`pool.size`) \
             are promised"
        ),
        kept: count <= SERVER_CONNECTIONS,
    };
    counts.map(of).collect()
}
