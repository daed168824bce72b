//! Figures for a terminal.

use std::fmt::Write;

use super::{Figures, Row};

/// So many places behind the point.
pub(super) fn number(value: f64, places: usize) -> String {
    if value.is_finite() { format!("{value:.places$}") } else { "-".to_owned() }
}

/// The same, or a dash.
pub(super) fn maybe(value: Option<f64>, places: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| number(value, places))
}

/// A part's table, and beneath it what went wrong.
pub(super) fn table<F: Figures>(title: &str, rows: &[Row<F>]) -> String {
    let mut heads = vec!["target".to_owned()];
    heads.extend(F::HEADS.iter().map(|head| (*head).to_owned()));
    heads.push("errors".to_owned());
    let mut lines = vec![heads];
    for row in rows {
        let mut cells = vec![row.target.name().to_owned()];
        match &row.figures {
            Some(figures) => cells.extend(figures.cells()),
            None => cells.extend(F::HEADS.iter().map(|_| "-".to_owned())),
        }
        cells.push(row.errors.to_string());
        lines.push(cells);
    }
    let mut text = format!("\n{title}\n");
    for line in &lines {
        for (at, cell) in line.iter().enumerate() {
            let widths = lines.iter().filter_map(|line| line.get(at)).map(String::len);
            let width = widths.max().unwrap_or(0);
            let _infallible =
                if at == 0 { write!(text, "{cell:<width$}") } else { write!(text, "  {cell:>width$}") };
        }
        text.push('\n');
    }
    for row in rows {
        for told in &row.told {
            let _infallible = writeln!(text, "ERROR {}: {told}", row.target);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::target::Target;

    struct Two(f64);

    impl Figures for Two {
        const HEADS: &'static [&'static str] = &["tps", "p50 us"];

        fn cells(&self) -> Vec<String> {
            vec![number(self.0, 0), maybe(None, 1)]
        }
    }

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let row = |target, figures, told: &[&str]| Row {
            target,
            figures,
            errors: told.len() as u64,
            told: told.iter().map(|told| (*told).to_owned()).collect(),
        };
        let rows = [row(Target::Pgherd, Some(Two(12_345.6)), &[]), row(Target::Direct, None, &["closed"])];
        let text = table("title", &rows);
        let expected = "\ntitle\ntarget    tps  p50 us  errors\npgherd  12346       -       0\n\
                        direct      -       -       1\nERROR direct: closed\n";
        assert_eq!(text, expected);
        assert_eq!(number(f64::NAN, 2), "-");
    }
}
