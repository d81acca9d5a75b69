//! Models that come and go: what is held beside what is live.

use super::{Effort, Field, Section, Visitor};
use crate::table::{Table, bytes, count, over};
use crate::workload::model::{LLAMA_1B, QWEN, SMOL};
use crate::workload::{Residency, residency};
use crate::{Handle, Subject};

pub(super) const TITLE: &str = "Loading and unloading";

const ABOUT: &str = "SmolLM2-135M, Qwen2.5-0.5B and Llama-3.2-1B in Q4_0 come and go with sequences of 32 to 4,000 tokens. After \
    each phase everyone trims. Held: what is reserved then. Live: what was asked for, rounded up to whole granules; the figure \
    is the worst of all phases but the last, in which everything goes.";

/// Memory after a phase and a trim.
#[derive(Clone, Debug)]
pub struct Look {
    /// The phase.
    pub phase: String,
    /// Bytes live, as asked for.
    pub live: u64,
    /// Bytes reserved.
    pub held: Option<u64>,
}

/// Plays all phases, with a trim after each; answers what there was to see, and the most that was held before a trim.
pub fn look_at<S: Subject>(subject: &S, history: &Residency) -> (Vec<Look>, Option<u64>) {
    let mut handle = subject.handle(0);
    let mut blocks: Vec<Option<S::Block>> = (0..history.slots).map(|_| None).collect();
    let mut sizes = vec![0u64; history.slots];
    let (mut looks, mut peak) = (Vec::new(), None);
    for phase in &history.phases {
        for op in &phase.ops {
            let slot = op.slot as usize;
            sizes[slot] = u64::from(op.size);
            if op.size == 0 {
                handle.free_moved(blocks[slot].take().expect("a live block"));
            } else {
                blocks[slot] = Some(handle.alloc(op.size));
            }
        }
        peak = peak.max(subject.footprint().reserved);
        subject.trim();
        let held = subject.footprint().reserved;
        looks.push(Look { phase: phase.name.clone(), live: sizes.iter().sum(), held });
    }
    (looks, peak)
}

impl Look {
    /// How much more is held than the granules that the live bytes would fill, as a ratio.
    pub fn ratio(&self, granule: u64) -> Option<f64> {
        let live = self.live.next_multiple_of(granule);
        self.held.filter(|_| live > 0).map(|held| held as f64 / live as f64)
    }
}

/// The history that is played.
pub(super) fn history(effort: Effort) -> Residency {
    residency(&[SMOL, QWEN, LLAMA_1B], effort.loads, effort.shrink, 5)
}

/// Bytes of a granule: 2 MiB, made smaller with the models.
pub(super) fn granule(effort: Effort) -> u64 {
    (2 << 20) / effort.shrink
}

struct Rows<'a> {
    effort: Effort,
    history: &'a Residency,
    table: Table,
}

impl Visitor for Rows<'_> {
    fn visit<S: Subject>(&mut self, subject: S) {
        let (looks, peak) = look_at(&subject, self.history);
        let live = looks.iter().map(|look| look.live).max().unwrap_or(0);
        let granule = granule(self.effort);
        let worst = looks.iter().filter_map(|look| look.ratio(granule)).fold(f64::NAN, f64::max);
        self.table.row(vec![
            subject.name().into(),
            bytes(peak),
            over(peak, live),
            if worst.is_nan() { "–".into() } else { format!("{worst:.3}") },
            bytes(looks.last().and_then(|look| look.held)),
            count(subject.footprint().calls),
        ]);
    }
}

pub(super) fn section(effort: Effort) -> Section {
    let history = history(effort);
    let table = Table::new(["", "peak reserved", "over live", "held / live", "held in the end", "calls"]);
    let mut rows = Rows { effort, history: &history, table };
    Field { streams: 1, peak: 8 << 30, slow: true }.visit(&mut rows);
    Section { title: TITLE.into(), about: ABOUT, table: rows.table }
}
