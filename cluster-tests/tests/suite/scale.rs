//! A short run of the benchmark at the edges, to see that each part measures. `cargo xtask bench scale` does it
//! for real.

use pgherd_cluster_tests::bench::scale::part::Part;
use pgherd_cluster_tests::bench::scale::{Options, Row, run};
use pgherd_cluster_tests::bench::target::Target;
use pgherd_cluster_tests::{Failure, TestResult};

#[tokio::test]
async fn each_part_gets_its_figures() -> TestResult {
    let options = Options {
        parts: Part::ALL.to_vec(),
        targets: vec![Target::Direct, Target::Pgherd],
        idle: 50,
        active: 50,
        at_once: 10,
        seconds: 1,
        rows_megabytes: 20,
        copy_megabytes: 10,
        rounds: 1,
        scale: 1,
        pg_bin: None,
        pgbouncer: None,
    };
    let report = run(&options, &say).await?;
    assert_eq!(report.alarms, [] as [String; 0]);
    // Where nobody may make control groups, that is said, and nothing else goes wrong.
    let held = |told: &String| !told.contains("control groups have to be writable");
    let without_groups = report.reads.iter().filter(|row| !row.told.iter().all(held)).count();
    assert_eq!(report.errors(), u64::try_from(without_groups)?);
    if without_groups == 0 {
        let times: Vec<_> = report.reads.iter().filter_map(|row| row.figures.as_ref()).collect();
        assert!(times.len() == 4 && times.iter().all(|reads| reads.times.median > 0.2), "{times:?}");
    }
    let idle = ours(&report.idle)?;
    assert_eq!(idle.clients, 50);
    let active = ours(&report.active)?;
    assert!(active.clients == 50 && active.per_second > 0.0 && active.p99_us.is_some(), "{active:?}");
    assert!(active.memory.is_some() && active.server_connections.is_some(), "{active:?}");
    for (rows, megabytes) in [(&report.rows, 20.0), (&report.copy_in, 10.0), (&report.copy_out, 10.0)] {
        let stream = ours(rows)?;
        assert!(stream.megabytes >= megabytes && stream.mb_per_second > 0.0, "{stream:?}");
        assert!(stream.memory.is_some() && rows.len() == 2, "{stream:?}");
    }
    let logins = ours(&report.logins)?;
    assert!(logins.per_second > 0.0 && logins.cpu_us.is_some(), "{logins:?}");
    assert!(logins.quiet_p99_us.is_some() && logins.burst_p99_us.is_some(), "{logins:?}");
    let pipelines = ours(&report.pipelines)?;
    assert!(pipelines.one_mb_per_second > 0.0 && pipelines.ten_mb_per_second > 0.0, "{pipelines:?}");
    let latency = ours(&report.latency)?;
    assert!(latency.simple_p99_us.is_some() && latency.prepared_p99_us.is_some(), "{latency:?}");
    Ok(())
}

fn ours<F: std::fmt::Debug>(rows: &[Row<F>]) -> Result<&F, Failure> {
    let row = rows.iter().find(|row| row.target == Target::Pgherd);
    row.and_then(|row| row.figures.as_ref()).ok_or_else(|| Failure::new(format!("no figures: {rows:?}")))
}

#[expect(clippy::print_stdout, reason = "figures for people")]
fn say(text: &str) {
    println!("{text}");
}
