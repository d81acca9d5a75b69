//! Models that are loaded and unloaded while sequences of mixed lengths come and go: what a server's memory goes through.

use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64;

use super::Model;
use crate::Phase;
use crate::script::Writer;

/// A history and the slots it needs.
#[derive(Debug)]
pub struct Residency {
    /// Entries of the table of live blocks.
    pub slots: usize,
    /// Memory is trimmed and looked at after each.
    pub phases: Vec<Phase>,
}

/// What a sequence's keys and values lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvBlocks {
    /// One block for all layers.
    One,
    /// Two for each layer: harder on an allocator, since what pins a granule is smaller than one.
    PerLayer,
}

struct Sequence {
    model: usize,
    slots: Vec<u32>,
}

struct History<'a> {
    models: &'a [Model],
    kv: KvBlocks,
    shrink: u64,
    random: Pcg64,
    writer: Writer,
    loaded: Vec<Option<Vec<u32>>>,
    sequences: Vec<Sequence>,
}

/// `cycles` times: load a model that is not there (one of each at most), start and finish sequences on all that are there,
/// unload one with its sequences. A phase ends after each of the three. In the last cycle everything goes.
///
/// A sequence has keys and values in f16 for its prompt and its answer, 32 to 4,000 tokens, most of them short, which it takes
/// when it starts and frees when it ends. Activations of its steps are allocated and freed in between. All sizes are divided by
/// `shrink`, for tests.
pub fn residency(models: &[Model], kv: KvBlocks, cycles: usize, shrink: u64, seed: u64) -> Residency {
    let loaded = models.iter().map(|_| None).collect();
    let (random, writer) = (Pcg64::seed_from_u64(seed), Writer::new());
    let mut history = History { models, kv, shrink, random, writer, loaded, sequences: Vec::new() };
    let mut phases = Vec::new();
    for cycle in 0..cycles {
        if let Some(model) = history.choose(|slots| slots.is_none()) {
            history.load(model);
            phases.push(history.phase(cycle, "load", model));
        }
        let busy = history.serve(24);
        phases.push(history.phase(cycle, "serve", busy));
        // Two of three stay, so that what is looked at is never empty before the end.
        if history.loaded.iter().flatten().count() * 2 > models.len()
            && let Some(model) = history.choose(|slots| slots.is_some())
        {
            history.unload(model);
            phases.push(history.phase(cycle, "unload", model));
        }
    }
    for model in 0..models.len() {
        history.unload(model);
    }
    phases.push(Phase { name: "end".into(), ops: history.writer.take() });
    Residency { slots: history.writer.slots(), phases }
}

impl History<'_> {
    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.random.next_u64()) * u128::from(n)) >> 64) as u64
    }

    fn phase(&mut self, cycle: usize, what: &str, model: usize) -> Phase {
        Phase { name: format!("{cycle}: {what} {}", self.models[model].name), ops: self.writer.take() }
    }

    fn alloc(&mut self, size: u64) -> u32 {
        self.writer.alloc((size / self.shrink).max(1))
    }

    fn choose(&mut self, of: impl Fn(&Option<Vec<u32>>) -> bool) -> Option<usize> {
        let all: Vec<usize> = (0..self.models.len()).filter(|&model| of(&self.loaded[model])).collect();
        let chosen = self.below(all.len().max(1) as u64) as usize;
        all.get(chosen).copied()
    }

    fn load(&mut self, model: usize) {
        let sizes = self.models[model].tensors();
        self.loaded[model] = Some(sizes.into_iter().map(|size| self.alloc(size)).collect());
    }

    fn unload(&mut self, model: usize) {
        while let Some(at) = self.sequences.iter().position(|sequence| sequence.model == model) {
            self.finish(at);
        }
        self.writer.free_all(self.loaded[model].take().into_iter().flatten());
    }

    /// Answers the model that was served last.
    fn serve(&mut self, events: usize) -> usize {
        let mut last = 0;
        for _ in 0..events {
            let Some(model) = self.choose(|slots| slots.is_some()) else { return last };
            last = model;
            // Five sequences at a time, about.
            if self.below(10) < 10 - self.sequences.len().min(10) as u64 {
                self.start(model);
            } else {
                let at = self.below(self.sequences.len() as u64) as usize;
                self.finish(at);
            }
        }
        last
    }

    fn start(&mut self, model: usize) {
        let shape = self.models[model];
        // Each doubling from 32 to 4,096 is as likely as the next.
        let doublings = self.below(7);
        let tokens = (32u64 << doublings) + self.below(32 << doublings);
        let layer = tokens.min(4000) * 2 * shape.kv_width();
        let (blocks, size) = match self.kv {
            KvBlocks::One => (1, 2 * shape.layers * layer),
            KvBlocks::PerLayer => (2 * shape.layers, layer),
        };
        let slots = (0..blocks).map(|_| self.alloc(size)).collect();
        self.sequences.push(Sequence { model, slots });
        // One step's widest moment.
        let step: Vec<u32> =
            [shape.embd, shape.embd, shape.ff, shape.ff, shape.vocab].map(|n| self.alloc(4 * n)).into();
        self.writer.free_all(step);
    }

    fn finish(&mut self, at: usize) {
        self.writer.free_all(self.sequences.swap_remove(at).slots);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Script;
    use crate::workload::model::{LLAMA_1B, QWEN, SMOL};

    #[test]
    fn everything_goes_in_the_end_and_something_stays_until_then() {
        let Residency { slots, phases } = residency(&[SMOL, QWEN, LLAMA_1B], KvBlocks::PerLayer, 6, 16, 3);
        let cycle: Vec<_> = phases.iter().flat_map(|phase| phase.ops.clone()).collect();
        Script { name: "all".into(), slots, prologue: Vec::new(), cycle }.check().unwrap();
        let unloaded = phases.iter().filter(|phase| phase.name.contains("unload")).count();
        assert!(unloaded >= 3, "{unloaded}");
        let mut live = std::collections::BTreeMap::new();
        for phase in &phases {
            for op in &phase.ops {
                live.insert(op.slot, op.size);
            }
            let left: u64 = live.values().map(|size| u64::from(*size)).sum();
            assert_eq!(left == 0, phase.name == "end", "{}", phase.name);
        }
    }
}
