//! Three minutes of random faults, always the same ones. `cargo xtask campaign` does it for longer.

use std::path::Path;
use std::time::Duration;

use pgherd_cluster_tests::TestResult;
use pgherd_cluster_tests::campaign::kind::Replication;
use pgherd_cluster_tests::campaign::{self, Options};

#[tokio::test(flavor = "multi_thread")]
async fn three_minutes_of_faults() -> TestResult {
    let options = Options {
        length: Duration::from_secs(160),
        seed: 1,
        only: Vec::new(),
        count: None,
        hold_max: Duration::from_secs(8),
        replication: Replication::Asynchronous,
        logs: Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cluster-logs/campaign"),
    };
    let outcome = campaign::run(&options, &say).await?;
    say(&campaign::summary(&options, &outcome));
    assert!(outcome.violations.is_empty(), "{} violations, see above", outcome.violations.len());
    Ok(())
}

#[expect(clippy::print_stdout, reason = "figures for people")]
fn say(text: &str) {
    println!("{text}");
}
