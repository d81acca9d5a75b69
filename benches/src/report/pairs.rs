//! Times, memory and calls of each subject on each script, one thread.

use super::{Effort, Field, GRANULE, Section, Visitor};
use crate::table::{Table, bytes, count, over};
use crate::workload::model::{LLAMA_1B, LLAMA_8B};
use crate::workload::{Sizes, churn, decode};
use crate::{Player, Script, Subject, Timing};

const ABOUT: &str = "Nanoseconds of an allocation and a free, from batches of 64 operations; nothing is taken off for the \
    harness. Waste: the most that was reserved over the most that was live, as asked for. Calls: to the driver, in the first \
    cycle and in the later ones together.";

/// The workloads of one thread.
pub(super) fn scripts(effort: Effort) -> Vec<Script> {
    let live = [100, 1_000, 10_000].into_iter().filter(|live| *live <= effort.most_live);
    let mut scripts: Vec<Script> =
        live.map(|live| churn(live, Sizes::CLASSES, effort.pairs, live as u64)).collect();
    scripts.push(churn(100, Sizes::WIDE, effort.pairs, 16));
    scripts.push(decode(&LLAMA_1B, 1, 1, 1000, 64));
    scripts.push(decode(&LLAMA_8B, 16, 16, 1000, 32));
    scripts.push(decode(&LLAMA_1B, 512, 1, 0, 8));
    scripts
}

struct Rows<'a> {
    effort: Effort,
    script: &'a Script,
    table: Table,
}

impl Visitor for Rows<'_> {
    fn visit<S: Subject>(&mut self, subject: S) {
        let mut player = Player::new(&subject, self.script, 0);
        let peak = peak(&subject, &mut player, self.script);
        let first = subject.footprint().calls;
        let mut timing = Timing::default();
        player.timed(self.effort.time, &mut timing);
        let later = subject.footprint().calls.zip(first).map(|(all, first)| all - first);
        let ns = |quantile| format!("{:.1}", timing.pair(quantile));
        let calls = format!("{} / {}", count(first), count(later));
        self.table.row(vec![
            subject.name().into(),
            ns(0.5),
            ns(0.99),
            ns(0.999),
            bytes(peak),
            over(peak, self.script.peak_live()),
            calls,
        ]);
    }
}

/// The first cycle, which is not timed; the most that was reserved after any operation.
fn peak<S: Subject>(subject: &S, player: &mut Player<'_, S>, script: &Script) -> Option<u64> {
    let mut peak = subject.footprint().reserved;
    for op in &script.cycle {
        player.play_on(1);
        if op.size != 0 {
            peak = peak.max(subject.footprint().reserved);
        }
    }
    peak
}

/// One workload.
pub(super) fn section(effort: Effort, script: &Script) -> Section {
    let table = Table::new(["", "p50", "p99", "p99.9", "peak reserved", "waste", "calls first / later"]);
    let mut rows = Rows { effort, script, table };
    let peak = script.peak_live();
    Field { streams: 1, peak, slow: script.slots <= 100, granule: GRANULE }.visit(&mut rows);
    Section { title: script.name.clone(), about: ABOUT, table: rows.table }
}
