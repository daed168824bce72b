//! The figures of one workload for a terminal.

use std::fmt::Write;

use super::stats::Spread;
use super::summary::{Row, Summary};
use super::workload::Workload;

/// The table of a workload, with a line for each reason of a failure beneath.
pub fn table(summary: &Summary) -> String {
    let base = summary.baseline.map_or("nothing", |target| target.name());
    let mut text = format!(
        "\n{} ({} clients); x is relative to {base}, in brackets the rounds furthest apart\n",
        summary.workload,
        summary.workload.clients()
    );
    let latency = summary.workload == Workload::Latency;
    let heads = if latency {
        ["p50 us", "added p50", "p99 us", "added p99"]
    } else {
        ["tps", "tps x", "CPU us/txn", "CPU x"]
    };
    let [first, second, third, fourth] = heads;
    let _infallible =
        writeln!(text, "{:<18}{first:>10}{second:>25}{third:>13}{fourth:>25}{:>9}", "target", "PSS MB");
    for row in &summary.rows {
        if row.failed() {
            let _infallible = writeln!(text, "{:<18}{:>10}", row.target, "failed");
            continue;
        }
        let cells = if latency {
            [
                number(row.p50, 0),
                spread(row.p50_added, 0, ""),
                number(row.p99, 0),
                spread(row.p99_added, 0, ""),
            ]
        } else {
            [
                number(row.tps, 0),
                spread(row.tps_ratio, 2, "x"),
                number(row.cpu_us, 1),
                spread(row.cpu_ratio, 2, "x"),
            ]
        };
        let [first, second, third, fourth] = cells;
        let memory = number(row.pss_mb, 1);
        let _infallible =
            writeln!(text, "{:<18}{first:>10}{second:>25}{third:>13}{fourth:>25}{memory:>9}", row.target);
    }
    for row in summary.rows.iter().filter(|row| !row.failures.is_empty()) {
        let _infallible = writeln!(text, "{}: {}", row.target, failures(row));
    }
    text
}

/// How many rounds failed, and why the first did.
pub fn failures(row: &Row) -> String {
    let why = row.failures.first().map(String::as_str).unwrap_or_default();
    let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{} of the rounds failed: {why}", row.failures.len())
}

/// The median.
pub fn number(figure: Option<Spread>, digits: usize) -> String {
    figure.map_or_else(|| "-".to_owned(), |figure| format!("{:.digits$}", figure.median))
}

/// The median, and from where to where the rounds go.
pub fn spread(figure: Option<Spread>, digits: usize, unit: &str) -> String {
    let told = |figure: Spread| {
        format!("{:.digits$}{unit} ({:.digits$} to {:.digits$})", figure.median, figure.min, figure.max)
    };
    figure.map_or_else(|| "-".to_owned(), told)
}

#[cfg(test)]
mod tests {
    use super::super::summary::tests::run;
    use super::super::target::Target;
    use super::*;

    #[test]
    fn failures_are_shown_with_their_reason() {
        let rounds = vec![
            vec![
                (Target::PgBouncer, run(17_000.0, 23.0)),
                (Target::Pgherd, run(15_300.0, 34.5)),
                (Target::Pgpool, Err("no such\n  program".to_owned())),
            ],
            vec![
                (Target::PgBouncer, run(17_000.0, 23.0)),
                (Target::Pgherd, run(17_000.0, 23.0)),
                (Target::Pgpool, Err("no".to_owned())),
            ],
        ];
        let text = table(&Summary::of(Workload::Simple, &rounds));
        let line = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_default();
        assert!(line("pgherd").contains("1.25x (1.00 to 1.50)"), "{text}");
        assert!(line("pgpool ").ends_with("failed"), "{text}");
        assert_eq!(line("pgpool:"), "pgpool: 2 of the rounds failed: no such program");
    }
}
