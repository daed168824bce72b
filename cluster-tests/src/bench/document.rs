//! The proxy's section of docs/benchmarks.md.

use std::fmt::Write;

use super::machine::Machine;
use super::summary::{Row, Summary};
use super::table::{failures, number, spread};
use super::target::Target;
use super::workload::Workload;

/// How it was measured.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// On what.
    pub machine: Machine,
    /// Name and version of each program.
    pub versions: Vec<(String, String)>,
    /// How long each run was.
    pub seconds: u64,
    /// How often each was done.
    pub rounds: usize,
    /// pgbench's scale.
    pub scale: u32,
}

/// The plot's file, beside the document.
pub const PLOT: &str = "benchmarks.svg";

/// The section's name.
pub const SECTION: &str = "proxy";

/// The whole section.
pub fn document(summaries: &[Summary], conditions: &Conditions) -> String {
    let mut text = format!(
        "Written by `cargo xtask bench proxy --write`; [testing.md](testing.md) says how it measures.\n\n\
         ![CPU per transaction relative to PgBouncer]({PLOT})\n\n\
         Processor time is the figure to go by: it hardly depends on what else the machine does. Throughput\n\
         is what is left when pgbench, servers and proxy share the cores. Each figure is the median of\n\
         {rounds} rounds (of {seconds} s); ratios are taken within a round, and the brackets hold the rounds furthest apart.\n",
        rounds = conditions.rounds,
        seconds = conditions.seconds,
    );
    text += &machine(conditions);
    let (latency, others): (Vec<_>, Vec<_>) =
        summaries.iter().partition(|summary| summary.workload == Workload::Latency);
    let ratio = |row: &Row| spread(row.cpu_ratio, 2, "x");
    text += &grid("Processor time per transaction, relative to PgBouncer", &others, ratio);
    text += &grid("Processor time per transaction, microseconds", &others, |row| number(row.cpu_us, 1));
    text += &grid("Transactions per second", &others, |row| {
        let relative = row.tps_ratio.map(|_| format!(", {}x", number(row.tps_ratio, 2)));
        format!("{}{}", number(row.tps, 0), relative.unwrap_or_default())
    });
    text += &grid("Memory at the end of a run, MB (PSS)", &others, |row| number(row.pss_mb, 1));
    for summary in latency {
        text += &latencies(summary);
    }
    text + &failed(summaries) + &legend(summaries)
}

fn machine(conditions: &Conditions) -> String {
    let Machine { processor, cores, gigabytes, kernel, system, load } = &conditions.machine;
    let mut text = format!(
        "\n## Machine\n\n{cores} cores of {processor}, {gigabytes:.0} GB; {system}, Linux {kernel}. Primary, two \
         standbys, agents, proxies and pgbench (scale {scale}) on it, over loopback. The load average was \
         {load} when it began.\n\n| Program | Version |\n|---|---|\n",
        scale = conditions.scale,
    );
    for (name, version) in &conditions.versions {
        let _infallible = writeln!(text, "| {name} | {version} |");
    }
    text
}

/// A line for each target, a column for each workload.
fn grid(title: &str, summaries: &[&Summary], cell: impl Fn(&Row) -> String) -> String {
    let names: Vec<&str> = summaries.iter().map(|summary| summary.workload.name()).collect();
    if names.is_empty() {
        return String::new();
    }
    let mut text =
        format!("\n## {title}\n\n| | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for target in targets(summaries) {
        let cells: Vec<String> = summaries
            .iter()
            .map(|summary| match summary.row(target) {
                Some(row) if row.failed() => "failed".to_owned(),
                Some(row) => cell(row),
                None => String::new(),
            })
            .collect();
        if cells.iter().any(|cell| !matches!(cell.as_str(), "" | "-")) {
            let _infallible = writeln!(text, "| {target} | {} |", cells.join(" | "));
        }
    }
    text
}

fn latencies(summary: &Summary) -> String {
    let mut text = "\n## Latency of one client, microseconds\n\n| | p50 | added to direct | p99 | added to direct |\n|---|---|---|---|---|\n"
        .to_owned();
    for row in &summary.rows {
        let cells = [
            number(row.p50, 0),
            spread(row.p50_added, 0, ""),
            number(row.p99, 0),
            spread(row.p99_added, 0, ""),
        ];
        let cells = if row.failed() { "failed | | | ".to_owned() } else { cells.join(" | ") };
        let _infallible = writeln!(text, "| {} | {cells} |", row.target);
    }
    text
}

fn failed(summaries: &[Summary]) -> String {
    let mut lines = String::new();
    for summary in summaries {
        for row in summary.rows.iter().filter(|row| !row.failures.is_empty()) {
            let _infallible = writeln!(lines, "- {}, {}: {}", row.target, summary.workload, failures(row));
        }
    }
    if lines.is_empty() { lines } else { format!("\n## What failed\n\n{lines}") }
}

fn legend(summaries: &[Summary]) -> String {
    let mut text = "\n## What was measured\n\n| Workload | Clients | |\n|---|---|---|\n".to_owned();
    for Summary { workload, .. } in summaries {
        let _infallible = writeln!(text, "| {workload} | {} | {} |", workload.clients(), workload.told());
    }
    text += "\n| Target | |\n|---|---|\n";
    for target in targets(&summaries.iter().collect::<Vec<_>>()) {
        let _infallible = writeln!(text, "| {target} | {} |", target.told());
    }
    text
}

/// Every target once.
fn targets(summaries: &[&Summary]) -> Vec<Target> {
    let mut targets: Vec<Target> = summaries.iter().flat_map(|s| &s.rows).map(|row| row.target).collect();
    targets.sort();
    targets.dedup();
    targets
}

#[cfg(test)]
mod tests {
    use super::super::summary::Sample;
    use super::super::summary::tests::run;
    use super::*;

    #[test]
    fn every_figure_has_its_place() {
        let direct = |tps| run(tps, 1.0).map(|sample| Sample { cpu_us: None, ..sample });
        let simple = vec![vec![
            (Target::Direct, direct(30_000.0)),
            (Target::PgBouncer, run(17_000.0, 20.0)),
            (Target::Pgherd, run(15_300.0, 30.0)),
        ]];
        let prepared = vec![vec![
            (Target::PgBouncer, Err("no such statement".to_owned())),
            (Target::Pgherd, run(15_300.0, 30.0)),
        ]];
        let summaries = [Summary::of(Workload::Simple, &simple), Summary::of(Workload::Prepared, &prepared)];
        let conditions = Conditions {
            machine: Machine { processor: "Abacus".to_owned(), cores: 2, ..Machine::default() },
            versions: vec![("PostgreSQL".to_owned(), "15".to_owned())],
            seconds: 4,
            rounds: 3,
            scale: 10,
        };
        let text = document(&summaries, &conditions);
        for told in [
            "| | simple | prepared |\n|---|---|---|",
            "| pgherd | 1.50x (1.50 to 1.50) | - |",
            "| pgbouncer | 17000, 1.00x | failed |",
            "- pgbouncer, prepared: 1 of the rounds failed: no such statement",
            "2 cores of Abacus",
            "| PostgreSQL | 15 |",
        ] {
            assert!(text.contains(told), "{told} in {text}");
        }
        assert!(!text.contains("Latency of one client"));
    }
}
