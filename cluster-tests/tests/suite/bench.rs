//! Short runs of the benchmarks, to see that they measure. `cargo xtask bench` does it for longer.

use pgherd_cluster_tests::bench::failover::case::Case;
use pgherd_cluster_tests::bench::failover::system::System;
use pgherd_cluster_tests::bench::target::Target;
use pgherd_cluster_tests::bench::workload::Workload;
use pgherd_cluster_tests::bench::{self, Options, failover};
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

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_primary_gets_its_figures() -> TestResult {
    let cases = vec![Case::SwitchoverTransactions, Case::NodeLoss];
    let options =
        failover::Options { runs: 1, cases: cases.clone(), peers: Some(vec![]), pg_bin: None, patroni: None };
    let report = failover::run(&options, &say).await?;
    assert_eq!(
        report.rows.iter().map(|row| (row.system, row.case)).collect::<Vec<_>>(),
        [(System::Pgherd, Case::SwitchoverTransactions), (System::Pgherd, Case::NodeLoss),]
    );
    for row in &report.rows {
        assert!(row.failures.is_empty() && row.outage.is_some_and(|outage| outage.min > 0.0), "{row:?}");
        assert_eq!(row.duplicated.map(|rows| rows.max), Some(0.0), "{row:?}");
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "figures for people")]
fn say(text: &str) {
    println!("{text}");
}
