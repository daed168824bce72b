//! One client that reads by primary key: how long it waits for each answer.
//!
//! Rounds are interleaved: each visits all targets in turn, every second one in reverse.

use std::time::Duration;

use rand::Rng;
use tokio::time::Instant;

use super::active::micros;
use super::client::{Client, ClientError};
use super::ground::{Faults, Ground, Way};
use super::text::maybe;
use super::{Figures, Row};
use crate::bench::stats::{Spread, percentile};
use crate::bench::target::Target;

/// Of each protocol in each round.
const TIME: Duration = Duration::from_secs(1);
const NAME: &str = "by_key";

/// Medians of the rounds, in microseconds.
#[derive(Debug, Clone, PartialEq)]
pub struct Latency {
    /// In the simple protocol: what half of the answers did not exceed.
    pub simple_p50_us: Option<f64>,
    /// What 99 of 100 did not.
    pub simple_p99_us: Option<f64>,
    /// Prepared once.
    pub prepared_p50_us: Option<f64>,
    /// Prepared once.
    pub prepared_p99_us: Option<f64>,
}

impl Figures for Latency {
    const HEADS: &'static [&'static str] =
        &["p50 us simple", "p99 us simple", "p50 us prepared", "p99 us prepared"];

    fn cells(&self) -> Vec<String> {
        let figures = [self.simple_p50_us, self.simple_p99_us, self.prepared_p50_us, self.prepared_p99_us];
        figures.into_iter().map(|figure| maybe(figure, 0)).collect()
    }
}

/// The rounds of one target.
#[derive(Default)]
struct Visited {
    faults: Faults,
    /// p50 and p99 of each round.
    simple: Vec<(f64, f64)>,
    prepared: Vec<(f64, f64)>,
}

pub(super) async fn measure(ground: &Ground<'_>) -> Vec<Row<Latency>> {
    let mut targets: Vec<(Target, Result<Way, String>, Visited)> = Vec::new();
    for running in &ground.stand.targets {
        targets.push((running.target, ground.way(running), Visited::default()));
    }
    for number in 0..ground.options.rounds {
        (ground.say)(&format!("  round {} of {}", number + 1, ground.options.rounds));
        for (_, way, visited) in &mut targets {
            match way {
                Ok(way) => visit(ground, way, visited).await,
                Err(trouble) => visited.faults.note(trouble),
            }
        }
        targets.reverse();
    }
    let place = |target| ground.stand.targets.iter().position(|running| running.target == target);
    targets.sort_by_key(|(target, _, _)| place(*target));
    targets.into_iter().map(|(target, _, visited)| visited.row(target)).collect()
}

async fn visit(ground: &Ground<'_>, way: &Way, visited: &mut Visited) {
    // Where transaction mode does not carry prepared statements, session mode stands in for them alone.
    let stands_in = way.target == Target::PgBouncerSession;
    let has_stand_in = ground.stand.targets.iter().any(|running| running.target == Target::PgBouncerSession);
    if !stands_in {
        let seen = simple(way, ground.accounts()).await;
        visited.simple.extend(visited.faults.passed(seen).and_then(percentiles));
    }
    if !(way.target == Target::PgBouncer && has_stand_in) {
        let seen = prepared(way, ground.accounts()).await;
        visited.prepared.extend(visited.faults.passed(seen).and_then(percentiles));
    }
}

async fn simple(way: &Way, accounts: u32) -> Result<Vec<u32>, ClientError> {
    let mut client = way.open().await?;
    let latencies = timed(accounts, &mut client, async |client, account| {
        let sql = format!("SELECT aid, abalance FROM pgbench_accounts WHERE aid = {account}");
        client.ask_known(&sql, account).await
    });
    let latencies = latencies.await?;
    client.close().await?;
    Ok(latencies)
}

async fn prepared(way: &Way, accounts: u32) -> Result<Vec<u32>, ClientError> {
    let mut client = way.open().await?;
    client.prepare(NAME, "SELECT aid, abalance FROM pgbench_accounts WHERE aid = $1").await?;
    let ask = async |client: &mut Client, account: &str| client.execute(NAME, account).await;
    let latencies = timed(accounts, &mut client, ask).await?;
    client.close().await?;
    Ok(latencies)
}

async fn timed(
    accounts: u32,
    client: &mut Client,
    ask: impl AsyncFn(&mut Client, &str) -> Result<(), ClientError>,
) -> Result<Vec<u32>, ClientError> {
    let until = Instant::now() + TIME;
    let mut latencies = Vec::new();
    while Instant::now() < until {
        let account = rand::rng().random_range(1..=accounts).to_string();
        let sent = Instant::now();
        ask(client, &account).await?;
        latencies.push(micros(sent.elapsed()));
    }
    Ok(latencies)
}

fn percentiles(mut latencies: Vec<u32>) -> Option<(f64, f64)> {
    Some((percentile(&mut latencies, 50)?, percentile(&mut latencies, 99)?))
}

impl Visited {
    fn row(self, target: Target) -> Row<Latency> {
        let p50 = |rounds: &[(f64, f64)]| median(rounds.iter().map(|(p50, _)| *p50));
        let p99 = |rounds: &[(f64, f64)]| median(rounds.iter().map(|(_, p99)| *p99));
        let latency = Latency {
            simple_p50_us: p50(&self.simple),
            simple_p99_us: p99(&self.simple),
            prepared_p50_us: p50(&self.prepared),
            prepared_p99_us: p99(&self.prepared),
        };
        let measured = !(self.simple.is_empty() && self.prepared.is_empty());
        self.faults.row(target, measured.then_some(latency))
    }
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    Spread::of(values).map(|spread| spread.median)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_medians_of_rounds_are_told() {
        let visited = Visited { simple: vec![(3.0, 30.0), (1.0, 90.0), (2.0, 20.0)], ..Visited::default() };
        let row = visited.row(Target::Direct);
        let figures = row.figures.unwrap();
        assert_eq!((figures.simple_p50_us, figures.simple_p99_us), (Some(2.0), Some(30.0)));
        assert_eq!(figures.prepared_p50_us, None);
        assert_eq!(Visited::default().row(Target::Direct).figures, None);
    }
}
