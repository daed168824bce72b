//! COPY in both directions. What goes in goes into an unlogged table, so that not the disks are measured.

use tokio::time::Instant;

use super::client::{Client, ClientError};
use super::ground::{Faults, Ground, Way};
use super::memory::watched;
use super::rows::{ROW_BYTES, Stream};
use super::{Row, TARGETS};

const TABLE: &str = "pgherd_copied";
/// Lines in each `CopyData` that is sent: about what libpq sends at once.
const LINES: u64 = 64;

/// In, then out.
pub(super) async fn measure(ground: &Ground<'_>) -> (Vec<Row<Stream>>, Vec<Row<Stream>>) {
    let rows = (ground.options.copy_megabytes * 1_000_000 / ROW_BYTES).next_multiple_of(LINES);
    (ground.say)(" in");
    let copied =
        ground.each(&TARGETS, async |way: &Way, faults: &Faults| copy_in(way, faults, rows).await).await;
    (ground.say)(" out");
    let read =
        ground.each(&TARGETS, async |way: &Way, faults: &Faults| copy_out(way, faults, rows).await).await;
    (copied, read)
}

async fn copy_in(way: &Way, faults: &Faults, rows: u64) -> Result<Stream, ClientError> {
    let mut client = way.open().await?;
    client.ask(&format!("DROP TABLE IF EXISTS {TABLE}; CREATE UNLOGGED TABLE {TABLE} (line text)")).await?;
    let begun = Instant::now();
    let (tag, memory) = watched(way.pid, fill(&mut client, rows)).await;
    let seconds = begun.elapsed().as_secs_f64();
    faults.expect(tag?, format!("COPY {rows}"));
    client.ask(&format!("DROP TABLE {TABLE}")).await?;
    client.close().await?;
    Ok(Stream::new(rows * ROW_BYTES, seconds, memory))
}

async fn fill(client: &mut Client, rows: u64) -> Result<String, ClientError> {
    client.begin_copy(&format!("COPY {TABLE} FROM STDIN")).await?;
    let data = message();
    for _ in 0..rows / LINES {
        client.say(&data).await?;
    }
    Ok(client.end_copy().await?.tag)
}

/// A `CopyData` with that many lines.
fn message() -> Vec<u8> {
    let width = usize::try_from(ROW_BYTES).unwrap_or(0);
    let lines = format!("{}\n", "x".repeat(width)).repeat(usize::try_from(LINES).unwrap_or(0));
    let length = u32::try_from(lines.len() + 4).unwrap_or(0);
    [b"d", length.to_be_bytes().as_slice(), lines.as_bytes()].concat()
}

async fn copy_out(way: &Way, faults: &Faults, rows: u64) -> Result<Stream, ClientError> {
    let mut client = way.open().await?.for_long_answers();
    let query = format!("SELECT repeat('x', {ROW_BYTES}) FROM generate_series(1, {rows})");
    let begun = Instant::now();
    let (counts, memory) = watched(way.pid, client.ask(&format!("COPY ({query}) TO STDOUT"))).await;
    let seconds = begun.elapsed().as_secs_f64();
    let counts = counts?;
    faults.expect(&counts.tag, format!("COPY {rows}"));
    // Each line has its end.
    faults.expect(counts.content_bytes, rows * (ROW_BYTES + 1));
    client.close().await?;
    Ok(Stream::new(rows * ROW_BYTES, seconds, memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_a_copy_is_as_long_as_it_says() {
        let message = message();
        assert_eq!(message[0], b'd');
        let said = u32::from_be_bytes(message[1..5].try_into().unwrap());
        assert_eq!(usize::try_from(said).unwrap() + 1, message.len());
        assert_eq!(message.iter().filter(|byte| **byte == b'\n').count(), 64);
    }
}
