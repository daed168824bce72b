//! Columns as wide as their widest cell.

/// A table of text.
#[derive(Debug)]
pub(super) struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

const GAP: usize = 2;

impl Table {
    pub(super) fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row with a cell for every heading.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.headings.len(), "a row has a cell for every heading");
        self.rows.push(cells);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Headings, a rule, and the rows; every line ends with a line break and without blanks.
    pub(super) fn render(&self) -> String {
        let mut widths: Vec<usize> = self.headings.iter().map(|heading| heading.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let line = |cells: &mut dyn Iterator<Item = &str>| {
            let padded: Vec<String> =
                cells.zip(&widths).map(|(cell, width)| format!("{cell:<width$}", width = *width)).collect();
            format!("{}\n", padded.join(&" ".repeat(GAP)).trim_end())
        };
        let total = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        let mut text = line(&mut self.headings.iter().copied());
        text += &format!("{}\n", "-".repeat(total));
        for row in &self.rows {
            text += &line(&mut row.iter().map(String::as_str));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stretch() {
        let mut table = Table::new(&["Name", "DB", "Info"]);
        table.row(vec!["a-long-name".into(), "UP".into(), String::new()]);
        table.row(vec!["b".into(), "UNKNOWN".into(), "x".into()]);
        assert_eq!(
            table.render(),
            "Name         DB       Info\n\
             --------------------------\n\
             a-long-name  UP\n\
             b            UNKNOWN  x\n"
        );
    }
}
