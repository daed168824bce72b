//! The plot: processor time for each transaction relative to the baseline, as bars.

use super::chart::{self, BAR, GAP, LEFT, TOP, WIDTH};
use super::summary::{Row, Summary};
use super::target::Target;
use super::workload::Workload;

/// Beyond this a bar is cut off, and only its figure tells how long it would be.
const RATIO_MAX: f64 = 4.0;
/// The targets that have a bar, in colours that stand out from white and black.
const DRAWN: [(Target, &str); 4] = [
    (Target::Pgherd, "#d9730d"),
    (Target::Relay, "#2e8b57"),
    (Target::HaProxy, "#3b82c4"),
    (Target::Pgpool, "#8b5fbf"),
];

/// The whole picture.
pub fn svg(summaries: &[Summary]) -> String {
    let mut body = String::new();
    let mut y = TOP;
    let compared = |summary: &&Summary| {
        summary.workload != Workload::Latency && summary.rows.iter().any(|row| row.cpu_ratio.is_some())
    };
    for summary in summaries.iter().filter(compared) {
        let bars: Vec<_> = DRAWN
            .iter()
            .filter_map(|(target, colour)| Some((summary.row(*target)?, *colour)))
            .filter(|(row, _)| row.cpu_ratio.is_some() || row.failed())
            .collect();
        body += &chart::group(y, summary.workload.name());
        for (row, colour) in bars {
            body += &bar(row, colour, y);
            y += BAR + 2.0;
        }
        y += GAP;
    }
    chart::picture("CPU time per transaction relative to PgBouncer", y, &(frame(y - GAP) + &body))
}

/// Title, legend, and lines at whole ratios down to `bottom`.
fn frame(bottom: f64) -> String {
    let names = DRAWN.map(|(target, colour)| (target.name(), colour));
    let mut text = chart::head("CPU per transaction, PgBouncer = 1 (shorter is better)", &names);
    for ratio in [0.0, 1.0, 2.0, 3.0, RATIO_MAX] {
        let class = if ratio <= 1.0 { "axis" } else { "grid" };
        text += &chart::line(class, at(ratio), bottom, &format!("{ratio:.0}x"));
    }
    text
}

fn bar(row: &Row, colour: &str, y: f64) -> String {
    let (length, told) = match row.cpu_ratio {
        Some(ratio) => (ratio.median, format!("{:.2}x", ratio.median)),
        None => (0.0, format!("{} failed", row.target)),
    };
    let cut = if length > RATIO_MAX { "\u{25b8} " } else { "" };
    chart::bar(y, at(length.min(RATIO_MAX)), colour, &format!("{cut}{told}"))
}

fn at(ratio: f64) -> f64 {
    LEFT + WIDTH * ratio / RATIO_MAX
}

#[cfg(test)]
mod tests {
    use super::super::summary::tests::run;
    use super::*;

    #[test]
    fn a_bar_for_each_target_and_none_too_long() {
        let rounds = vec![vec![
            (Target::PgBouncer, run(17_000.0, 20.0)),
            (Target::Pgherd, run(15_300.0, 30.0)),
            (Target::Pgpool, run(1_000.0, 200.0)),
            (Target::HaProxy, Err("no".to_owned())),
        ]];
        let picture = svg(&[Summary::of(Workload::Simple, &rounds)]);
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
        for told in [">1.50x<", ">\u{25b8} 10.00x<", ">haproxy failed<", ">simple<"] {
            assert!(picture.contains(told), "{told} in {picture}");
        }
        let ends = picture.matches("/>").count() + picture.matches("</").count();
        assert_eq!(picture.matches('<').count() - picture.matches("</").count(), ends, "{picture}");
        assert!(picture.contains(&format!("width=\"{WIDTH:.1}\"")), "the long bar is cut: {picture}");
    }
}
