//! Tables as Markdown.

use std::fmt::{Display, Formatter, Result};

/// A table whose first column is text and whose others are numbers.
#[derive(Clone, Debug)]
pub struct Table {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With these columns.
    pub fn new<const N: usize>(head: [&str; N]) -> Table {
        Table { head: head.map(str::to_owned).into(), rows: Vec::new() }
    }

    /// One more row; as many cells as there are columns.
    pub fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.head.len(), "a cell for each column");
        self.rows.push(cells);
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
        writeln!(f, "{}", line(&self.head))?;
        writeln!(f, "| --- |{}", " ---: |".repeat(self.head.len() - 1))?;
        self.rows.iter().try_for_each(|row| writeln!(f, "{}", line(row)))
    }
}

/// Bytes in the largest unit of which there is at least one.
pub fn bytes(bytes: Option<u64>) -> String {
    bytes.map_or("–".into(), |bytes| granule_device::Bytes::new(bytes).to_string())
}

/// A count, or a dash.
pub fn count(count: Option<u64>) -> String {
    count.map_or("–".into(), |count| count.to_string())
}

/// Per cent of `part` over `whole`, which is what was asked for; a dash where it is not known.
pub fn over(part: Option<u64>, whole: u64) -> String {
    part.filter(|_| whole > 0)
        .map_or("–".into(), |part| format!("{:.1} %", 100.0 * (part as f64 / whole as f64 - 1.0)))
}
