//! Plain tables for people: columns as wide as their widest cell.

use std::fmt;

/// Where the cells of a column stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows of cells; the first row may be a heading.
pub(crate) struct Table {
    align: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(align: impl Into<Vec<Align>>) -> Self {
        Table { align: align.into(), rows: Vec::new() }
    }

    /// Adds a row; cells that the table has no column for are left out.
    ///
    /// Cells may hold what a file says: control characters are shown as escapes, and the end of a long text is left out.
    pub(crate) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(|cell| presentable(&cell.into())).collect());
    }
}

/// The most characters of a cell.
const WIDEST: usize = 400;

fn presentable(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(WIDEST) {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    if text.chars().nth(WIDEST).is_some() {
        out.push('…');
    }
    out
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wide = |i: usize| self.rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count()).max();
        let widths: Vec<usize> = (0..self.align.len()).map(|i| wide(i).unwrap_or(0)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, align), width) in row.iter().zip(&self.align).zip(&widths) {
                let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
                let (before, after) = match align {
                    Align::Left => ("", padding.as_str()),
                    Align::Right => (padding.as_str(), ""),
                };
                line.extend([before, cell, after, "  "]);
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// A count with commas between its thousands.
pub(crate) fn count(n: usize) -> String {
    let digits = n.to_string();
    let groups = digits.as_bytes().rchunks(3).rev().map(|g| String::from_utf8_lossy(g).into_owned());
    groups.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::{Align, Table, count};

    #[test]
    fn columns_line_up() {
        let mut table = Table::new([Align::Left, Align::Right]);
        table.row(["é", "1"]);
        table.row(["long", "1,000"]);
        assert_eq!(table.to_string(), "é         1\nlong  1,000\n");
    }

    #[test]
    fn hostile_cells_are_short_and_plain() {
        let mut table = Table::new([Align::Left]);
        table.row(["a\nb\u{1b}[31m".to_owned() + &"y".repeat(200_000)]);
        let shown = table.to_string();
        assert!(shown.starts_with("a\\nb\\u{1b}[31myyy") && shown.ends_with("…\n"), "{shown}");
        assert!(shown.chars().count() < 500 && shown.lines().count() == 1);
    }

    #[test]
    fn thousands() {
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
    }
}
