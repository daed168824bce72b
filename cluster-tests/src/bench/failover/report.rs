//! The figures for a terminal and for docs/benchmarks.md.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use super::case::Case;
use super::picture;
use super::system::System;
use super::tally::Row;
use crate::bench::machine::Machine;
use crate::bench::sections;
use crate::bench::stats::Spread;
use crate::bench::table::spread;

/// The section's name in the document.
const SECTION: &str = "failover";
/// The plot's file, beside the document.
const PLOT: &str = "benchmarks-failover.svg";
/// What names no SQLSTATE, and how many more kinds than these there are, is no help in a table.
const KINDS_MAX: usize = 6;

/// How it was measured.
#[derive(Debug, Clone)]
pub struct Conditions {
    /// On what.
    pub machine: Machine,
    /// Name and version of each program.
    pub versions: Vec<(String, String)>,
    /// How often each case was done.
    pub runs: usize,
    /// Which peers were not measured, and why.
    pub left_out: Vec<String>,
}

/// What came of it.
#[derive(Debug, Clone)]
pub struct Report {
    /// One for each case of each system.
    pub rows: Vec<Row>,
    /// How it was measured.
    pub conditions: Conditions,
}

impl Report {
    /// Writes section and plot into this directory.
    pub fn write(&self, dir: &Path) -> std::io::Result<()> {
        sections::write(dir, SECTION, &section(self))?;
        std::fs::write(dir.join(PLOT), picture::picture(&self.rows))
    }

    /// All of it for a terminal: every figure, and what could not be measured.
    pub fn told(&self) -> String {
        let mut rows: Vec<Row> = self.rows.clone();
        rows.sort_by_key(|row| (row.case, row.system));
        let mut text = table(&rows);
        for line in missing(self) {
            let _infallible = writeln!(text, "{line}");
        }
        text
    }
}

/// A line for each row, with its errors and failures beneath.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "\n{:<15}{:<15}{:>5}{:>28}{:>14}{:>14}{:>14}\n",
        "case", "system", "runs", "outage ms", "dropped", "rows lost", "rows twice"
    );
    for row in rows {
        let Row { case, system, runs, .. } = row;
        let _infallible = write!(text, "{case:<15}{system:<15}{runs:>5}{:>28}", spread(row.outage, 0, ""));
        for figure in [row.dropped, row.lost, row.duplicated] {
            let _infallible = write!(text, "{:>14}", few(figure));
        }
        let _infallible = writeln!(text, "  {}", errors(row));
        if let Some(failure) = failures(row) {
            let _infallible = writeln!(text, "  {failure}");
        }
    }
    text
}

/// Median and ends, but one number where they are the same.
fn few(figure: Option<Spread>) -> String {
    match figure {
        None => "-".to_owned(),
        Some(Spread { median, min, max }) if min.total_cmp(&max).is_eq() => format!("{median:.0}"),
        Some(Spread { median, min, max }) => format!("{median} ({min:.0} to {max:.0})"),
    }
}

fn errors(row: &Row) -> String {
    if row.runs == 0 { "-".to_owned() } else { kinds(&row.errors) }
}

fn kinds(kinds: &BTreeMap<String, Spread>) -> String {
    let mut kinds: Vec<(&String, &Spread)> = kinds.iter().collect();
    kinds.sort_by(|(_, one), (_, other)| other.max.total_cmp(&one.max));
    let more = kinds.len().saturating_sub(KINDS_MAX);
    let told = kinds.iter().take(KINDS_MAX).map(|(kind, times)| format!("{kind}: {}", few(Some(**times))));
    let mut told: Vec<String> = told.collect();
    if more > 0 {
        told.push(format!("{more} more kinds"));
    }
    if told.is_empty() { "none".to_owned() } else { told.join("; ") }
}

/// How many runs failed, and why the first did.
fn failures(row: &Row) -> Option<String> {
    let first = row.failures.first()?;
    let why = first.lines().next().unwrap_or_default();
    Some(format!("{} of {} runs failed: {why}", row.failures.len(), row.failures.len() + row.runs))
}

/// Peers and cases that are not there.
fn missing(report: &Report) -> Vec<String> {
    let mut lines = report.conditions.left_out.clone();
    let mut systems: Vec<System> = report.rows.iter().map(|row| row.system).collect();
    systems.dedup();
    for case in cases(&report.rows) {
        let cannot = |system: &System| Some(format!("{system}, {case}: {}", system.cannot(case)?));
        lines.extend(systems.iter().filter_map(cannot));
    }
    lines
}

/// All cases, once each.
pub(super) fn cases(rows: &[Row]) -> Vec<Case> {
    let mut cases: Vec<Case> = rows.iter().map(|row| row.case).collect();
    cases.sort_unstable();
    cases.dedup();
    cases
}

/// The section of the document.
fn section(report: &Report) -> String {
    let Conditions { machine, runs, versions, .. } = &report.conditions;
    let Machine { processor, cores, gigabytes, kernel, system, load } = machine;
    let mut text = format!(
        "## Failover and switchover\n\n\
         Written by `cargo xtask bench failover --write`; [testing.md](testing.md) says how it measures.\n\n\
         ![Outage of each system in each case]({PLOT})\n\n\
         The outage is the longest time in which none of four writers got a commit acknowledged. Each figure is the\n\
         median of {runs} runs, with the least and the greatest in brackets. A session is dropped when its socket is\n\
         closed; errors are those that applications got, by SQLSTATE.\n\n\
         {cores} cores of {processor}, {gigabytes:.0} GB; {system}, Linux {kernel}. Three servers and a fourth machine\n\
         for what applications connect to are network namespaces on it. The load average was {load} when it began.\n\n\
         | Program | Version |\n|---|---|\n"
    );
    for (name, version) in versions {
        let _infallible = writeln!(text, "| {name} | {version} |");
    }
    for case in cases(&report.rows) {
        let _infallible = write!(
            text,
            "\n### {case}\n\n{}.\n\n| | Outage, ms | Dropped sessions | Errors | Rows lost | Rows twice | Runs |\n\
             |---|---|---|---|---|---|---|\n",
            sentence(case.told())
        );
        for row in report.rows.iter().filter(|row| row.case == case) {
            let cells = [
                spread(row.outage, 0, ""),
                few(row.dropped),
                errors(row).replace('|', "\\|"),
                few(row.lost),
                few(row.duplicated),
            ];
            let _infallible = writeln!(text, "| {} | {} | {} |", row.system, cells.join(" | "), row.runs);
        }
    }
    text + &not_measured(report) + &legend(&report.rows)
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

fn not_measured(report: &Report) -> String {
    let failed = report.rows.iter().filter_map(|row| {
        let failure = failures(row)?;
        Some(format!("{}, {}: {failure}", row.system, row.case))
    });
    let lines: Vec<String> =
        missing(report).into_iter().chain(failed).map(|line| format!("- {line}\n")).collect();
    if lines.is_empty() {
        String::new()
    } else {
        format!("\n### What was not measured, or failed\n\n{}", lines.concat())
    }
}

fn legend(rows: &[Row]) -> String {
    let mut systems: Vec<System> = rows.iter().map(|row| row.system).collect();
    systems.sort_unstable();
    systems.dedup();
    let mut text = "\n### Systems\n\n| | |\n|---|---|\n".to_owned();
    for system in systems {
        let _infallible = writeln!(text, "| {system} | {} |", system.told());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::tally::tests::sample;
    use super::*;

    fn report() -> Report {
        let crash = [sample(200, 0, &[]), sample(400, 0, &[("57P01", 4)])];
        let failed = [sample(2000, 1, &[("08006", 4)]), Err("not back\nlog".to_owned())];
        let rows = vec![
            Row::of(System::Pgherd, Case::Crash, crash.iter()),
            Row::of(System::Pgherd, Case::CrashSynchronous, crash.iter()),
            Row::of(System::Pgpool, Case::Crash, failed.iter()),
        ];
        let left_out = vec!["patroni is not measured: `apt-get install patroni`".to_owned()];
        let machine = Machine { processor: "Abacus".to_owned(), cores: 2, ..Machine::default() };
        let versions = vec![("PostgreSQL".to_owned(), "15".to_owned())];
        Report { rows, conditions: Conditions { machine, versions, runs: 2, left_out } }
    }

    #[test]
    fn every_figure_has_its_place() {
        let text = section(&report());
        for told in [
            "| pgherd | 300 (200 to 400) | 4 | 57P01: 2 (0 to 4) | 0 | 0 | 2 |",
            "| pgpool | 2000 (2000 to 2000) | 4 | 08006: 4 | 1 | 0 | 1 |",
            "- pgpool, crash: 1 of 2 runs failed: not back\n",
            "- pgpool, crash-sync: it promotes",
            "- patroni is not measured",
            "### crash\n\n`kill -9` of the primary's postmaster",
            "2 cores of Abacus",
        ] {
            assert!(text.contains(told), "{told} in {text}");
        }
    }

    #[test]
    fn the_terminal_gets_the_same_by_case() {
        let text = report().told();
        let at = |start: &str| text.find(start).unwrap_or_else(|| panic!("{start} in {text}"));
        assert!(at("crash          pgherd") < at("crash          pgpool"));
        assert!(at("crash          pgpool") < at("crash-sync     pgherd"));
        assert!(text.contains("1 of 2 runs failed: not back"), "{text}");
        assert!(text.contains("patroni is not measured"), "{text}");
    }

    #[test]
    fn section_and_plot_are_written_and_nothing_else_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        sections::write(dir.path(), "proxy", "the proxy's").unwrap();
        report().write(dir.path()).unwrap();
        report().write(dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join(sections::FILE)).unwrap();
        assert!(text.contains("the proxy's"), "{text}");
        assert_eq!(text.matches("## Failover and switchover").count(), 1);
        assert!(std::fs::read_to_string(dir.path().join(PLOT)).unwrap().starts_with("<svg "));
    }

    #[test]
    fn only_some_kinds_of_errors_are_told() {
        let kinds_of = (0..8).map(|n| (format!("E{n}"), Spread { median: 1.0, min: 1.0, max: f64::from(n) }));
        let text = kinds(&kinds_of.collect());
        assert!(text.starts_with("E7: 1 (1 to 7)") && text.ends_with("2 more kinds"), "{text}");
        assert_eq!(kinds(&BTreeMap::new()), "none");
    }
}
