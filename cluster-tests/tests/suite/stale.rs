//! Some thousand pairs of a write and a read while replay is held back; `cargo xtask stale` does a million.

use std::path::Path;

use pgherd_cluster_tests::stale::{self, Consistency, Options, Tally};
use pgherd_cluster_tests::{Failure, TestResult};

async fn pairs(count: u64, consistency: Consistency) -> Result<Tally, Failure> {
    let logs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cluster-logs");
    let logs = logs.join(format!("stale-{}", consistency.name()));
    let options = Options { pairs: count, consistency, seed: 1, pg_bin: None, logs };
    let tally = stale::run(&options, &say).await?;
    say(&tally.told());
    Ok(tally)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_reads_what_it_wrote() -> TestResult {
    let tally = pairs(4_000, Consistency::Session).await?;
    assert!(tally.is_clean(), "{}", tally.told());
    assert!(tally.on_standbys > 1_000, "{}", tally.told());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_reads_what_anybody_wrote() -> TestResult {
    let tally = pairs(2_000, Consistency::Global).await?;
    assert!(tally.is_clean(), "{}", tally.told());
    Ok(())
}

/// The counter-check: replay is really held back.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_promise_reads_are_stale() -> TestResult {
    let tally = pairs(2_000, Consistency::Eventual).await?;
    assert!(tally.stale > 100 && tally.errors.is_empty(), "{}", tally.told());
    Ok(())
}

#[expect(clippy::print_stdout, reason = "figures for people")]
fn say(text: &str) {
    println!("{text}");
}
