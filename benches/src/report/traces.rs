//! Recorded traces, played on each subject.

use std::path::Path;
use std::time::Instant;

use granule_pool::replay::Script;

use super::{Effort, Field, GRANULE, Section, Visitor};
use crate::table::{Table, bytes, count, over};
use crate::traced::{Streams, peak_live, read};
use crate::{Subject, Timing};

const ABOUT: &str = "A recorded program's leases, in its order, by one thread, each on its stream. Columns as above, from all passes but \
    the first. What plays a trace looks at each step's kind, stream and pool, so the harness costs more than above. Marks of \
    further streams, captures, alignments above 256 and trims (each pass would begin by taking memory anew) are left out.";

struct Rows<'a> {
    effort: Effort,
    script: &'a Script,
    peak: u64,
    table: Table,
}

impl Visitor for Rows<'_> {
    fn visit<S: Subject>(&mut self, subject: S) {
        let mut streams = Streams::new(&subject, self.script);
        let peak = streams.peak(self.script);
        let first = subject.footprint().calls;
        let mut timing = Timing::default();
        let (start, mut passes) = (Instant::now(), 0);
        while passes < 3 || start.elapsed() < self.effort.time {
            streams.pass(self.script, &mut timing);
            passes += 1;
        }
        let later = subject.footprint().calls.zip(first).map(|(all, first)| all - first);
        let ns = |quantile| format!("{:.1}", timing.pair(quantile));
        self.table.row(vec![
            subject.name().into(),
            ns(0.5),
            ns(0.99),
            ns(0.999),
            bytes(peak),
            over(peak, self.peak),
            format!("{} / {}", count(first), count(later)),
        ]);
    }
}

/// One trace.
pub(super) fn section(effort: Effort, path: &Path) -> Result<Section, Box<dyn std::error::Error>> {
    let script = read(path)?;
    let peak = peak_live(&script);
    let table = Table::new(["", "p50", "p99", "p99.9", "peak reserved", "waste", "calls first / later"]);
    let mut rows = Rows { effort, script: &script, peak, table };
    Field { streams: script.streams().len(), peak, slow: true, granule: GRANULE }.visit(&mut rows);
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let title = format!("Trace: {name}, {} steps", script.steps().len());
    Ok(Section { title, about: ABOUT, table: rows.table })
}
