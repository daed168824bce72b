//! One run of pgbench against one target, with what the target used meanwhile.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use super::stand::{Running, Stand};
use super::stats::percentile;
use super::summary::{Latency, Outcome, Sample};
use super::usage;
use super::workload::{ROWS, Workload};
use crate::postgres::APP;

/// What pgbench may take beyond the time of its run: logins, and the last transactions.
const GRACE: Duration = Duration::from_secs(60);

/// Runs the workload through the target. What goes wrong is for the table.
pub(super) async fn run(stand: &Stand, target: &Running, workload: Workload, seconds: u64) -> Outcome {
    if let Some(trouble) = &target.trouble {
        return Err(trouble.clone());
    }
    let seconds = seconds + workload.seconds_more();
    let rows = stand.dir.join("rows.sql");
    std::fs::write(&rows, ROWS).map_err(|error| format!("cannot write {}: {error}", rows.display()))?;
    let used = || match target.pid {
        None => Ok(None),
        Some(pid) => usage::cpu_us(pid).map(Some).ok_or_else(|| "the proxy has ended".to_owned()),
    };
    let before = used()?;
    let mut command = Command::new(stand.bin_dir.join("pgbench"));
    command.args(["-n", "-j", "2", "-h", "127.0.0.1", "-U", APP]);
    command.args(["-p", &target.port.to_string(), "-c", &workload.clients().to_string()]);
    command.args(["-T", &seconds.to_string()]).args(workload.arguments(&rows)).arg(APP);
    command.env("PGPASSWORD", APP).env("LC_ALL", "C").current_dir(&stand.dir);
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(Duration::from_secs(seconds) + GRACE, command.output()).await;
    let after = used()?;
    let output = output.map_err(|_| "pgbench did not end".to_owned())?;
    let output = output.map_err(|error| format!("pgbench cannot be run: {error}"))?;
    // Taken in any case, so that the next run does not find it.
    let latency = latencies(&stand.dir);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if !output.status.success() {
        return Err(reason(&text(&output.stderr)));
    }
    let said = text(&output.stdout);
    if let Some(logins) = logins(&said).filter(|logins| *logins * 2 > Duration::from_secs(seconds)) {
        // The figures would be those of logins.
        return Err(format!("logging in took {:.1} of the {seconds} s", logins.as_secs_f64()));
    }
    let counted = counted(&said);
    let (tps, transactions) = counted.ok_or_else(|| "pgbench counted no transactions".to_owned())?;
    let cpu_us = before.zip(after).map(|(before, after)| per(after.saturating_sub(before), transactions));
    let pss_mb = target.pid.and_then(usage::pss_mb);
    Ok(Sample { tps, cpu_us, pss_mb, latency })
}

fn per(microseconds: u64, transactions: u64) -> f64 {
    microseconds as f64 / transactions as f64
}

/// Transactions in a second, and all in all.
fn counted(said: &str) -> Option<(f64, u64)> {
    let behind = |start: &str| said.lines().find_map(|line| line.strip_prefix(start));
    let tps = behind("tps = ")?.split_whitespace().next()?.parse().ok()?;
    let count = behind("number of transactions actually processed: ")?;
    let transactions = count.split(['/', ' ']).next()?.parse().ok()?;
    (transactions > 0).then_some((tps, transactions))
}

/// How long it took until all clients were logged in, which counts as time of the run.
fn logins(said: &str) -> Option<Duration> {
    let line = said.lines().find_map(|line| line.strip_prefix("initial connection time = "))?;
    let milliseconds: f64 = line.split_whitespace().next()?.parse().ok()?;
    Duration::try_from_secs_f64(milliseconds / 1000.0).ok()
}

/// The first thing that pgbench complained of.
fn reason(said: &str) -> String {
    let line = said.lines().find(|line| line.contains("error:")).or_else(|| said.lines().last());
    let line = line.unwrap_or("pgbench failed and said nothing").trim();
    line.strip_prefix("pgbench: error: ").unwrap_or(line).to_owned()
}

/// From the logs of single transactions, if there are any. They are removed.
fn latencies(dir: &Path) -> Option<Latency> {
    let is_log = |path: &PathBuf| {
        path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pgbench_log."))
    };
    let mut microseconds = Vec::new();
    for path in std::fs::read_dir(dir).ok()?.filter_map(|entry| Some(entry.ok()?.path())).filter(is_log) {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        microseconds.extend(text.lines().filter_map(microseconds_in));
        let _only_in_the_way = std::fs::remove_file(path);
    }
    let (p50, p99) = (percentile(&mut microseconds, 50)?, percentile(&mut microseconds, 99)?);
    Some(Latency { p50, p99 })
}

/// Client, number of the transaction, microseconds, and more.
fn microseconds_in(line: &str) -> Option<u32> {
    line.split(' ').nth(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pgbench_is_understood() {
        let said = "number of transactions actually processed: 1234\nlatency average = 0.1 ms\n\
             initial connection time = 6.6 ms\ntps = 617.25 (without initial connection time)\n";
        assert_eq!(counted(said), Some((617.25, 1234)));
        assert_eq!(logins(said), Some(Duration::from_micros(6600)));
        assert_eq!(logins("tps = 7.5 (including)"), None);
        assert_eq!(counted(&said.replace("1234", "0")), None);
        assert_eq!(counted("tps = 7.5 (including)"), None);
        assert!((per(90, 4) - 22.5).abs() < 1e-9);
    }

    #[test]
    fn the_first_complaint_is_the_reason() {
        let said = "pgbench (15)\npgbench: error: client 3 aborted: no\npgbench: error: Run was aborted\n";
        assert_eq!(reason(said), "client 3 aborted: no");
        assert_eq!(reason("killed\n"), "killed");
    }

    #[test]
    fn logs_are_read_once() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("pgbench_log.77");
        std::fs::write(&log, "0 1 50 0 1700000000 1\n0 2 70 0 1700000000 2\n0 3 60 0 1700000000 3\n")
            .unwrap();
        assert_eq!(latencies(dir.path()), Some(Latency { p50: 60.0, p99: 70.0 }));
        assert_eq!(latencies(dir.path()), None);
    }
}
