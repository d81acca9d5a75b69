//! Several threads, each on a stream of its own.

use super::{Effort, Field, GRANULE, Section, Visitor};
use crate::crowd::{crowd, handed_over};
use crate::table::Table;
use crate::workload::{Sizes, churn};
use crate::{Script, Subject};

pub(super) const TITLE: &str = "Threads and streams";

const ABOUT: &str = "Million pairs in a second, all threads together, random sizes to 1 MiB at 100 live blocks each; p99.9 is of \
    the 8 threads' batches, nanoseconds of a pair. Handed over: one thread allocates, another frees.";

struct Rows {
    effort: Effort,
    scripts: Vec<Script>,
    table: Table,
}

impl Visitor for Rows {
    fn visit<S: Subject>(&mut self, subject: S) {
        let crowds = [1, 2, 8].map(|threads| crowd(&subject, &self.scripts[..threads], self.effort.time));
        let million = |rate: f64| format!("{:.2}", rate / 1e6);
        let handed = handed_over(&subject, 20_000, self.effort.time);
        let mut cells = vec![subject.name().into()];
        cells.extend(crowds.iter().map(|crowd| million(crowd.pairs_per_second)));
        cells.push(format!("{:.1}", crowds[2].timing.pair(0.999)));
        cells.push(million(handed));
        self.table.row(cells);
    }
}

/// Scripts of that many threads: same sizes, other draws.
pub(super) fn scripts(effort: Effort, threads: usize) -> Vec<Script> {
    (0..threads as u64).map(|seed| churn(100, Sizes::CLASSES, effort.pairs, 100 + seed)).collect()
}

pub(super) fn section(effort: Effort) -> Section {
    let table = Table::new(["", "1 thread", "2 threads", "8 threads", "8 threads p99.9", "handed over"]);
    let scripts = scripts(effort, 8);
    let peak = scripts.iter().map(Script::peak_live).sum();
    let mut rows = Rows { effort, scripts, table };
    Field { streams: 8, peak, slow: false, granule: GRANULE }.visit(&mut rows);
    Section { title: TITLE.into(), about: ABOUT, table: rows.table }
}
