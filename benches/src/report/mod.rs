//! The report of one run: who needs how long and how much memory, and the ratios that the pool has to hold.

mod field;
mod memory;
mod pairs;
mod ratios;
mod threads;
mod traces;

use std::fmt;
use std::time::Duration;

use crate::machine::machine;
use crate::table::Table;
use crate::traced;

pub use field::{Field, Visitor};
pub use memory::{Look, look_at};

/// Bytes of a granule, as on today's GPUs.
const GRANULE: u64 = 2 << 20;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Pairs in a cycle of random sizes, at least.
    pub pairs: usize,
    /// How long one subject plays one script.
    pub time: Duration,
    /// Rounds of those that take turns, and how long a turn is.
    pub rounds: usize,
    /// The length of one turn.
    pub turn: Duration,
    /// The most live blocks.
    pub most_live: usize,
    /// By how much models are smaller than they are.
    pub shrink: u64,
    /// Cycles of loading and unloading.
    pub loads: usize,
}

impl Effort {
    /// What a record takes: some minutes.
    pub const FULL: Effort = Effort {
        pairs: 1 << 16,
        time: Duration::from_millis(1500),
        rounds: 101,
        turn: Duration::from_millis(5),
        most_live: 10_000,
        shrink: 1,
        loads: 12,
    };
    /// What a look while writing code takes: some seconds.
    pub const QUICK: Effort = Effort {
        pairs: 1 << 14,
        time: Duration::from_millis(60),
        rounds: 11,
        turn: Duration::from_millis(2),
        most_live: 10_000,
        shrink: 16,
        loads: 6,
    };
}

/// A heading, what is to be known about the table, and the table.
pub struct Section {
    title: String,
    about: &'static str,
    table: Table,
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "## {}\n", self.title)?;
        if !self.about.is_empty() {
            writeln!(f, "{}\n", self.about)?;
        }
        writeln!(f, "{}", self.table)
    }
}

/// Measures everything whose heading contains `only`, and tells each section as soon as it is there.
///
/// # Errors
/// A committed trace that cannot be read.
pub fn report(
    effort: Effort,
    only: &str,
    mut tell: impl FnMut(&dyn fmt::Display),
) -> Result<(), Box<dyn std::error::Error>> {
    tell(&format!("# The pool and others: {}\n", machine()));
    let wanted = |title: &str| title.to_lowercase().contains(&only.to_lowercase());
    if wanted(ratios::TITLE) {
        tell(&ratios::section(effort));
    }
    for script in pairs::scripts(effort) {
        if wanted(&script.name) {
            tell(&pairs::section(effort, &script));
        }
    }
    for path in traced::files()? {
        if wanted(&format!("trace: {}", path.display())) {
            tell(&traces::section(effort, &path)?);
        }
    }
    if wanted(threads::TITLE) {
        tell(&threads::section(effort));
    }
    if wanted(memory::TITLE) {
        tell(&memory::section(effort));
    }
    Ok(())
}
