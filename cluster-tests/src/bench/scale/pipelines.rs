//! Pipelines of the extended protocol: 64 KB of statements up to each `Sync`, one such batch at a time and ten.

use std::time::Duration;

use tokio::time::Instant;

use super::client::{Batch, ClientError, Piped};
use super::ground::{Faults, Ground, Way};
use super::memory::{Memory, watched};
use super::rows::bounded_growth;
use super::text::{maybe, number};
use super::{Figures, Promise, Row, TARGETS};
use crate::bench::target::Target;

const BATCH_BYTES: usize = 64 << 10;
/// So many batches are in flight in the second half.
const DEPTH: u64 = 10;
/// So many differ.
const BATCHES: u32 = 8;
const SQL: &str = "SELECT aid, abalance FROM pgbench_accounts WHERE aid = $1";

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipelines {
    /// Megabytes (of 1,000,000 bytes) in a second, both directions together, with one batch at a time.
    pub one_mb_per_second: f64,
    /// Statements in a second.
    pub one_statements_per_second: f64,
    /// Megabytes in a second with ten batches in flight.
    pub ten_mb_per_second: f64,
    /// Statements in a second.
    pub ten_statements_per_second: f64,
    /// Of the proxy, if there is one, all the time.
    pub memory: Option<Memory>,
}

impl Figures for Pipelines {
    const HEADS: &'static [&'static str] =
        &["MB/s by 1", "stmts/s by 1", "MB/s by 10", "stmts/s by 10", "PSS before", "PSS peak", "growth MB"];

    fn cells(&self) -> Vec<String> {
        vec![
            number(self.one_mb_per_second, 1),
            number(self.one_statements_per_second, 0),
            number(self.ten_mb_per_second, 1),
            number(self.ten_statements_per_second, 0),
            maybe(self.memory.map(|memory| memory.before), 1),
            maybe(self.memory.map(|memory| memory.peak), 1),
            maybe(self.memory.map(|memory| memory.growth()), 1),
        ]
    }
}

pub(super) async fn measure(ground: &Ground<'_>) -> Vec<Row<Pipelines>> {
    let measured = async |way: &Way, faults: &Faults| one(ground, way, faults).await;
    ground.each(&TARGETS, measured).await
}

async fn one(ground: &Ground<'_>, way: &Way, faults: &Faults) -> Result<Pipelines, ClientError> {
    let accounts = ground.accounts();
    let first = |number| number * (accounts / BATCHES) + 1;
    let batches = (0..BATCHES).map(|number| Batch::new(SQL, BATCH_BYTES, first(number), accounts));
    let batches: Result<Vec<Batch>, std::io::Error> = batches.collect();
    let batches = batches.map_err(|source| ClientError::Io { doing: "write a batch", source })?;
    let time = Duration::from_secs(ground.options.seconds);
    let work = async {
        let mut client = way.open().await?.for_long_answers();
        let mut halves = [(0.0, 0.0); 2];
        for (depth, half) in [1, DEPTH].into_iter().zip(&mut halves) {
            let begun = Instant::now();
            let piped = client.pipeline(&batches, depth, begun + time).await?;
            *half = rates(&piped, &batches, begun.elapsed().as_secs_f64(), faults);
        }
        client.close().await?;
        Ok::<_, ClientError>(halves)
    };
    let (halves, memory) = watched(way.pid, work).await;
    let [one, ten] = halves?;
    Ok(Pipelines {
        one_mb_per_second: one.0,
        one_statements_per_second: one.1,
        ten_mb_per_second: ten.0,
        ten_statements_per_second: ten.1,
        memory,
    })
}

/// Megabytes and statements in a second; all of them must have been answered.
fn rates(piped: &Piped, batches: &[Batch], seconds: f64, faults: &Faults) -> (f64, f64) {
    let sent = usize::try_from(piped.batches).unwrap_or(usize::MAX);
    let statements: u64 = batches.iter().cycle().take(sent).map(|batch| batch.statements).sum();
    let counts = &piped.counts;
    for answered in [counts.parsed, counts.bound, counts.rows, counts.commands] {
        faults.expect(answered, statements);
    }
    faults.expect(counts.ready, piped.batches);
    let megabytes = (piped.sent_bytes + counts.bytes) as f64 / 1e6;
    (megabytes / seconds, statements as f64 / seconds)
}

pub(super) fn promises(rows: &[Row<Pipelines>]) -> Vec<Promise> {
    let ours = rows.iter().filter(|row| row.target == Target::Pgherd);
    let memories = ours.filter_map(|row| row.figures.as_ref()?.memory);
    memories.map(|memory| bounded_growth("pipelines", &memory)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::scale::tally::Counts;

    #[test]
    fn an_answer_that_is_missing_is_an_error() {
        let batches = [Batch { bytes: vec![], statements: 3 }, Batch { bytes: vec![], statements: 4 }];
        let all = Counts {
            parsed: 10,
            bound: 10,
            rows: 10,
            commands: 10,
            ready: 3,
            bytes: 3_000_000,
            ..Counts::default()
        };
        let piped = Piped { batches: 3, sent_bytes: 1_000_000, counts: all.clone() };
        let faults = Faults::default();
        assert_eq!(rates(&piped, &batches, 2.0, &faults), (2.0, 5.0));
        let short = Piped { counts: Counts { rows: 9, ..all }, ..piped };
        rates(&short, &batches, 2.0, &faults);
        assert_eq!(faults.row(Target::Pgherd, Some(())).errors, 1);
    }
}
