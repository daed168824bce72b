//! Random sessions get the same answers from the proxy and from a server that stands alone: a few of those
//! that `cargo xtask difffuzz` runs by the thousand.

use std::path::Path;

use pgherd_cluster_tests::difffuzz::{self, Options};
use pgherd_cluster_tests::{Failure, TestResult};

#[tokio::test]
async fn nobody_can_tell_the_proxy_from_a_server() -> TestResult {
    let options = Options {
        seed: 4,
        first: 1,
        sessions: 60,
        parallel: 6,
        differences_max: 1,
        pg_bin: None,
        keep: Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cluster-logs/difffuzz"),
    };
    let tally = difffuzz::run(&options, &|line| println!("{line}")).await?;
    if tally.differences > 0 {
        return Err(Failure::new("an answer differed"));
    }
    let (standbys, _) = tally.reads;
    assert_eq!(tally.sessions, 60);
    assert!(standbys > 100, "only {standbys} reads went to standbys");
    Ok(())
}
