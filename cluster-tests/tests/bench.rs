//! A short run of the proxy benchmark, to see that it measures. `cargo xtask bench proxy` does it for longer.

use pgherd_cluster_tests::bench::target::Target;
use pgherd_cluster_tests::bench::workload::Workload;
use pgherd_cluster_tests::bench::{self, Options};
use pgherd_cluster_tests::{Failure, TestResult};

#[tokio::test(flavor = "multi_thread")]
async fn each_target_gets_its_figures() -> TestResult {
    let options = Options {
        seconds: 1,
        rounds: 1,
        scale: 1,
        workloads: vec![Workload::Latency],
        targets: vec![Target::Direct, Target::Pgherd, Target::Relay],
        pg_bin: None,
        pgbouncer: None,
    };
    let report = bench::run(&options, &say).await?;
    let summary = report.summaries.first().ok_or_else(|| Failure::new("no workload was run"))?;
    for target in options.targets {
        let row = summary.row(target).ok_or_else(|| Failure::new(format!("no line for {target}")))?;
        assert!(row.failures.is_empty(), "{row:?}");
        let proxied = target != Target::Direct;
        let figures =
            (row.tps.is_some(), row.cpu_us.is_some(), row.pss_mb.is_some(), row.p99_added.is_some());
        assert_eq!(figures, (true, proxied, proxied, proxied), "{row:?}");
    }
    let dir = tempfile::tempdir()?;
    report.write(dir.path())?;
    let text = std::fs::read_to_string(dir.path().join("benchmarks.md"))?;
    assert!(text.contains("## Latency of one client"), "{text}");
    assert!(dir.path().join("benchmarks.svg").is_file());
    Ok(())
}

#[expect(clippy::print_stdout, reason = "figures for people")]
fn say(text: &str) {
    println!("{text}");
}
