//! Models that come and go: what is held beside what is live.

use super::{Effort, Field, GRANULE, Section, Visitor};
use crate::table::{Table, bytes, count, over};
use crate::workload::model::{LLAMA_1B, QWEN, SMOL};
use crate::workload::{KvBlocks, Residency, residency};
use crate::{Handle, Subject};

pub(super) const TITLE: &str = "Loading and unloading";

const ABOUT: &str = "SmolLM2-135M, Qwen2.5-0.5B and Llama-3.2-1B in Q4_0, tensor by tensor, come and go with sequences of 32 to \
    4,000 tokens, each with one block for its keys and values. After each phase everyone trims. Held: what is reserved then. \
    Live: what was asked for, rounded up to whole granules. The mean is all that was held over all that was live; the worst is of \
    all phases but the last, in which everything goes. Under `per layer` a sequence has two blocks for each layer.";

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

/// The mean and the worst ratio of held over live, and where the worst was.
pub(super) fn ratios(looks: &[Look], granule: u64) -> Option<(f64, f64, &str)> {
    let looks = || looks.iter().filter(|look| look.live > 0);
    let (held, live) = looks().try_fold((0, 0), |(held, live), look| {
        Some((held + look.held?, live + look.live.next_multiple_of(granule)))
    })?;
    let worst = looks().filter_map(|look| Some((look.ratio(granule)?, look.phase.as_str())));
    let (worst, phase) = worst.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    Some((held as f64 / live as f64, worst, phase))
}

/// The history that is played.
pub(super) fn history(effort: Effort, kv: KvBlocks) -> Residency {
    residency(&[SMOL, QWEN, LLAMA_1B], kv, effort.loads, effort.shrink, 5)
}

/// Bytes of a granule: 2 MiB, made smaller with the models.
pub(super) fn granule(effort: Effort) -> u64 {
    GRANULE / effort.shrink
}

struct Rows {
    effort: Effort,
    histories: [Residency; 2],
    table: Table,
}

impl Visitor for Rows {
    fn visit<S: Subject>(&mut self, subject: S) {
        let granule = granule(self.effort);
        let (looks, peak) = look_at(&subject, &self.histories[0]);
        let live = looks.iter().map(|look| look.live).max().unwrap_or(0);
        let left = looks.last().and_then(|look| look.held);
        let calls = subject.footprint().calls;
        let (per_layer, _) = look_at(&subject, &self.histories[1]);
        let mut cells = vec![subject.name().into(), bytes(peak), over(peak, live)];
        for looks in [&looks, &per_layer] {
            let ratios = ratios(looks, granule);
            cells.push(ratios.map_or("–".into(), |(mean, worst, _)| format!("{mean:.3} / {worst:.3}")));
        }
        cells.extend([bytes(left), count(calls)]);
        self.table.row(cells);
    }
}

pub(super) fn section(effort: Effort) -> Section {
    let histories = [KvBlocks::One, KvBlocks::PerLayer].map(|kv| history(effort, kv));
    let head = [
        "",
        "peak reserved",
        "over live",
        "held / live, mean / worst",
        "per layer, mean / worst",
        "held in the end",
        "calls",
    ];
    let mut rows = Rows { effort, histories, table: Table::new(head) };
    Field { streams: 1, peak: 8 << 30, slow: true, granule: granule(effort) }.visit(&mut rows);
    Section { title: TITLE.into(), about: ABOUT, table: rows.table }
}
