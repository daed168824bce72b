//! The plot: outages as bars, on a logarithmic scale.

use super::report::cases;
use super::system::System;
use super::tally::Row;
use crate::bench::chart::{self, BAR, GAP, LEFT, TOP, WIDTH};

/// Milliseconds at the left, and powers of ten from there to the right.
const LEAST: f64 = 10.0;
const DECADES: f64 = 4.0;

/// In colours that stand out from white and black.
const COLOURS: [(System, &str); 4] = [
    (System::Pgherd, "#d9730d"),
    (System::PatroniTuned, "#3b82c4"),
    (System::Patroni, "#2e8b57"),
    (System::Pgpool, "#8b5fbf"),
];

/// The whole picture.
pub(super) fn picture(rows: &[Row]) -> String {
    let (mut bars, mut y) = (String::new(), TOP);
    for case in cases(rows) {
        bars += &chart::group(y, case.name());
        for (system, colour) in COLOURS {
            let Some(row) = rows.iter().find(|row| (row.case, row.system) == (case, system)) else {
                continue;
            };
            bars += &match row.outage {
                Some(outage) => chart::bar(y, at(outage.median), colour, &told(outage.median)),
                None => chart::bar(y, LEFT, colour, &format!("{system} failed")),
            };
            y += BAR + 2.0;
        }
        y += GAP;
    }
    let drawn = COLOURS.into_iter().filter(|(system, _)| rows.iter().any(|row| row.system == *system));
    let names: Vec<(&str, &str)> = drawn.map(|(system, colour)| (system.name(), colour)).collect();
    let mut frame = chart::head("Median time without a commit (shorter is better; logarithmic)", &names);
    for (milliseconds, name) in
        [(10.0, "10 ms"), (1e2, "100 ms"), (1e3, "1 s"), (1e4, "10 s"), (1e5, "100 s")]
    {
        let class = if milliseconds > LEAST { "grid" } else { "axis" };
        frame += &chart::line(class, at(milliseconds), y - GAP, name);
    }
    chart::picture("Median time without a commit, by case and system", y, &(frame + &bars))
}

fn told(milliseconds: f64) -> String {
    if milliseconds < 1000.0 {
        format!("{milliseconds:.0} ms")
    } else {
        format!("{:.1} s", milliseconds / 1000.0)
    }
}

fn at(milliseconds: f64) -> f64 {
    LEFT + WIDTH * ((milliseconds / LEAST).log10() / DECADES).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::super::case::Case;
    use super::super::tally::tests::sample;
    use super::*;

    #[test]
    fn a_bar_for_each_row_as_long_as_its_logarithm() {
        assert!((at(1000.0) - (LEFT + WIDTH / 2.0)).abs() < 1e-9);
        assert!(at(1.0) <= LEFT && at(1e9) <= LEFT + WIDTH);
        let rows = [
            Row::of(System::Pgherd, Case::Crash, [sample(250, 0, &[])].iter()),
            Row::of(System::Patroni, Case::Crash, [sample(10_500, 0, &[])].iter()),
            Row::of(System::Pgpool, Case::Crash, [Err("no".to_owned())].iter()),
        ];
        let picture = picture(&rows);
        for told in [">250 ms<", ">10.5 s<", ">pgpool failed<", ">crash<", ">100 s<"] {
            assert!(picture.contains(told), "{told} in {picture}");
        }
        assert!(!picture.contains("patroni-tuned"), "{picture}");
        assert_eq!(picture.matches("<rect").count(), 6, "three in the legend: {picture}");
    }
}
