//! The plot: processor time for each transaction relative to the baseline, as bars, in an SVG that can be
//! read on a light and on a dark ground.

use std::fmt::Write;

use super::summary::{Row, Summary};
use super::target::Target;
use super::workload::Workload;

/// Beyond this a bar is cut off, and only its figure tells how long it would be.
const RATIO_MAX: f64 = 4.0;
const LEFT: f64 = 90.0;
const WIDTH: f64 = 560.0;
const BAR: f64 = 13.0;
const GAP: f64 = 14.0;
const TOP: f64 = 62.0;

const STYLE: &str = "text{font:12px sans-serif;fill:#1f2328}.title{font-size:15px;font-weight:bold}\
.axis{stroke:#59636e;stroke-width:1}.grid{stroke:#59636e;stroke-width:1;stroke-opacity:.25}\
@media(prefers-color-scheme:dark){text{fill:#f0f6fc}.axis{stroke:#9198a1}.grid{stroke:#9198a1}}";

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
        let _infallible =
            writeln!(body, "<text x=\"8\" y=\"{:.0}\">{}</text>", y + BAR - 2.0, summary.workload);
        for (row, colour) in bars {
            bar(&mut body, row, colour, y);
            y += BAR + 2.0;
        }
        y += GAP;
    }
    let height = y + 8.0;
    let width = LEFT + WIDTH + 90.0;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
         height=\"{height:.0}\" role=\"img\" aria-label=\"CPU time per transaction relative to PgBouncer\">\n\
         <style>{STYLE}</style>\n{}{body}</svg>\n",
        frame(y - GAP)
    )
}

/// Title, legend, and lines at whole ratios down to `bottom`.
fn frame(bottom: f64) -> String {
    let mut text = "<text class=\"title\" x=\"8\" y=\"20\">CPU per transaction, PgBouncer = 1 (shorter is better)</text>\n"
        .to_owned();
    let mut x = LEFT;
    for (target, colour) in DRAWN {
        let _infallible = writeln!(
            text,
            "<rect x=\"{x:.0}\" y=\"31\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{:.0}\" y=\"41\">{target}</text>",
            x + 16.0
        );
        x += 90.0;
    }
    for ratio in [0.0, 1.0, 2.0, 3.0, RATIO_MAX] {
        let (x, class) = (at(ratio), if ratio <= 1.0 { "axis" } else { "grid" });
        let _infallible = writeln!(
            text,
            "<line class=\"{class}\" x1=\"{x:.1}\" y1=\"{:.0}\" x2=\"{x:.1}\" y2=\"{bottom:.0}\"/>\
             <text x=\"{x:.1}\" y=\"{:.0}\" text-anchor=\"middle\" font-size=\"10\">{ratio:.0}x</text>",
            TOP - 5.0,
            TOP - 8.0
        );
    }
    text
}

fn bar(body: &mut String, row: &Row, colour: &str, y: f64) {
    let (length, told) = match row.cpu_ratio {
        Some(ratio) => (ratio.median, format!("{:.2}x", ratio.median)),
        None => (0.0, format!("{} failed", row.target)),
    };
    let end = at(length.min(RATIO_MAX));
    let cut = if length > RATIO_MAX { "\u{25b8} " } else { "" };
    let _infallible = writeln!(
        body,
        "<rect x=\"{LEFT:.1}\" y=\"{y:.0}\" width=\"{:.1}\" height=\"{BAR:.0}\" fill=\"{colour}\"/>\
         <text x=\"{:.1}\" y=\"{:.0}\">{cut}{told}</text>",
        end - LEFT,
        end + 5.0,
        y + BAR - 2.0
    );
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
