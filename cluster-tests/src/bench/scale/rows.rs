//! A result that is larger than any buffer, read to its end by a client that keeps nothing of it.

use super::client::ClientError;
use super::ground::{Faults, Ground, Way};
use super::memory::{Memory, watched};
use super::text::{maybe, number};
use super::{Figures, Promise, Row, TARGETS};
use crate::bench::target::Target;

/// Of each row.
pub(super) const ROW_BYTES: u64 = 1000;
/// While data stream through it, the proxy holds no more than a few buffers.
pub(super) const GROWTH_MB_MAX: f64 = 20.0;

/// What was measured of a stream of data.
#[derive(Debug, Clone, PartialEq)]
pub struct Stream {
    /// Of what the rows hold, without their heads.
    pub megabytes: f64,
    /// Megabytes (of 1,000,000 bytes) in a second.
    pub mb_per_second: f64,
    /// Of the proxy, if there is one.
    pub memory: Option<Memory>,
}

impl Figures for Stream {
    const HEADS: &'static [&'static str] = &["MB", "MB/s", "PSS before", "PSS peak", "growth MB"];

    fn cells(&self) -> Vec<String> {
        vec![
            number(self.megabytes, 0),
            number(self.mb_per_second, 0),
            maybe(self.memory.map(|memory| memory.before), 1),
            maybe(self.memory.map(|memory| memory.peak), 1),
            maybe(self.memory.map(|memory| memory.growth()), 1),
        ]
    }
}

impl Stream {
    /// So many bytes in so many seconds.
    pub(super) fn new(bytes: u64, seconds: f64, memory: Option<Memory>) -> Self {
        let megabytes = bytes as f64 / 1e6;
        Self { megabytes, mb_per_second: megabytes / seconds, memory }
    }
}

pub(super) async fn measure(ground: &Ground<'_>) -> Vec<Row<Stream>> {
    let rows = ground.options.rows_megabytes * 1_000_000 / ROW_BYTES;
    ground.each(&TARGETS, async |way: &Way, faults: &Faults| one(way, faults, rows).await).await
}

async fn one(way: &Way, faults: &Faults, rows: u64) -> Result<Stream, ClientError> {
    let mut client = way.open().await?.for_long_answers();
    let sql = format!("SELECT repeat('x', {ROW_BYTES}) FROM generate_series(1, {rows})");
    let begun = tokio::time::Instant::now();
    let (counts, memory) = watched(way.pid, client.ask(&sql)).await;
    let seconds = begun.elapsed().as_secs_f64();
    let counts = counts?;
    faults.expect(counts.rows, rows);
    // A row's payload is the number of its columns, the length of the one, and that one.
    faults.expect(counts.content_bytes, rows * (ROW_BYTES + 6));
    client.close().await?;
    Ok(Stream::new(rows * ROW_BYTES, seconds, memory))
}

/// Whether our proxy holds no more of a stream than it should.
pub(super) fn promises(what: &str, rows: &[Row<Stream>]) -> Vec<Promise> {
    let ours = rows.iter().filter(|row| row.target == Target::Pgherd);
    let memories = ours.filter_map(|row| row.figures.as_ref()?.memory);
    memories.map(|memory| bounded_growth(what, &memory)).collect()
}

/// Whether it grew no more than it should.
pub(super) fn bounded_growth(what: &str, memory: &Memory) -> Promise {
    Promise {
        what: format!(
            "{what}: the proxy grows by {:.1} MB, at most {GROWTH_MB_MAX} are promised",
            memory.growth()
        ),
        kept: memory.growth() <= GROWTH_MB_MAX,
    }
}
