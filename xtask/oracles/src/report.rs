//! Counts what was compared and what agreed, group by group.

use std::time::Instant;

use anyhow::{Result, bail};

/// Disagreements of a group that are printed in full.
const TOLD: usize = 5;

/// All groups so far.
pub(crate) struct Report {
    only: Option<String>,
    compared: usize,
    agreed: usize,
    groups: usize,
    empty: Vec<String>,
}

/// One group of comparisons.
pub(crate) struct Group {
    name: String,
    compared: usize,
    agreed: usize,
    notes: Vec<String>,
}

impl Report {
    pub(crate) fn new(only: Option<String>) -> Self {
        Report { only, compared: 0, agreed: 0, groups: 0, empty: Vec::new() }
    }

    /// Runs a group and prints its line.
    pub(crate) fn group(&mut self, name: &str, run: impl FnOnce(&mut Group) -> Result<()>) -> Result<()> {
        if self.only.as_ref().is_some_and(|part| !name.contains(part.as_str())) {
            return Ok(());
        }
        let start = Instant::now();
        let mut group = Group { name: name.to_owned(), compared: 0, agreed: 0, notes: Vec::new() };
        run(&mut group)?;
        let Group { compared, agreed, notes, .. } = group;
        println!("{name}: {agreed} of {compared} agree ({:.1} s)", start.elapsed().as_secs_f64());
        for note in &notes {
            println!("    {note}");
        }
        self.compared += compared;
        self.agreed += agreed;
        self.groups += 1;
        if compared == 0 {
            self.empty.push(name.to_owned());
        }
        Ok(())
    }

    /// The last line; an error where anything disagrees or a group compared nothing.
    pub(crate) fn end(&self) -> Result<()> {
        println!("in all: {} of {} comparisons agree, in {} groups", self.agreed, self.compared, self.groups);
        if self.groups == 0 {
            bail!("no group was compared");
        }
        if !self.empty.is_empty() {
            bail!("nothing was compared in: {}", self.empty.join(", "));
        }
        match self.compared - self.agreed {
            0 => Ok(()),
            n => bail!("{n} comparisons disagree"),
        }
    }
}

impl Group {
    /// Counts a comparison; `what` describes it where it disagrees.
    pub(crate) fn check(&mut self, agrees: bool, what: impl FnOnce() -> String) {
        self.compared += 1;
        if agrees {
            self.agreed += 1;
            return;
        }
        let disagreements = self.compared - self.agreed;
        if disagreements <= TOLD {
            println!("{}: {}", self.name, what());
        } else if disagreements == TOLD + 1 {
            println!("{}: …", self.name);
        }
    }

    /// A line below the group's.
    pub(crate) fn note(&mut self, note: String) {
        self.notes.push(note);
    }
}
