//! Steps on the host: what they take, and what a context that takes them comes to hold.

use granule_ops::{KvRowLayout, QuantScratch, attention};

use crate::heaps::{Heaps, Leased, Which};
use crate::{Error, ModelShape};

/// Lengths of what a step on the host computes with, in f32 elements unless they say otherwise: the arrays of activations, and, from
/// the angles on, those of scratch, in the order in which the engine takes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostStep {
    /// Hidden states.
    pub x: usize,
    /// Normalized states, or what a projection adds.
    pub h: usize,
    /// Queries.
    pub q: usize,
    /// New keys.
    pub k: usize,
    /// New values.
    pub v: usize,
    /// Attention's result.
    pub attended: usize,
    /// Feed-forward gate.
    pub gate: usize,
    /// Feed-forward up.
    pub up: usize,
    /// Cosines and sines.
    pub angles: usize,
    /// Attention's own memory.
    pub attention: usize,
    /// Quantized activations, i8.
    pub quants: usize,
    /// Their scales, and as many sums again.
    pub scales: usize,
}

impl HostStep {
    /// Of a step of `n` tokens, by so many threads, over rows of this layout.
    #[must_use]
    pub fn of(shape: &ModelShape, row: &KvRowLayout, threads: usize, n: usize) -> HostStep {
        let (n_embd, q_width, kv_width, n_ff) = (shape.n_embd, shape.q_width(), shape.kv_width(), shape.n_ff);
        // The widest row that is ever quantized.
        let (quants, scales) = QuantScratch::lengths(n * n_embd.max(n_ff).max(q_width));
        HostStep {
            x: n * n_embd,
            h: n * n_embd,
            q: n * q_width,
            k: n * kv_width,
            v: n * kv_width,
            attended: n * q_width,
            gate: n * n_ff,
            up: n * n_ff,
            angles: n * shape.rope_dims,
            attention: attention::scratch_len_for(threads, row, shape.n_heads, n),
            quants,
            scales,
        }
    }

    /// Heap and bytes of each array, in order.
    fn arrays(&self) -> impl Iterator<Item = (Which, usize)> {
        let HostStep { x, h, q, k, v, attended, gate, up, angles, attention, quants, scales } = *self;
        let floats = |which| move |len: usize| (which, len * size_of::<f32>());
        let activations = [x, h, q, k, v, attended, gate, up].map(floats(Which::Activations));
        let scratch = [angles, attention].map(floats(Which::Scratch));
        let quants = [(Which::Scratch, quants)];
        let scales = [scales, scales].map(floats(Which::Scratch));
        activations.into_iter().chain(scratch).chain(quants).chain(scales)
    }
}

/// A stage's engine on the host, dry.
#[derive(Debug)]
pub(crate) struct HostRun {
    row: KvRowLayout,
    /// Those for steps of one token, and of more.
    threads: [usize; 2],
    /// What the last step computed with.
    step: Vec<Leased>,
}

impl HostRun {
    pub(crate) fn new(row: KvRowLayout, threads: [usize; 2]) -> HostRun {
        HostRun { row, threads, step: Vec::new() }
    }

    /// A step of sequences with so many tokens and, with those, rows. It draws nothing.
    pub(crate) fn step(
        &mut self,
        shape: &ModelShape,
        heaps: &mut Heaps,
        parts: &[(usize, usize)],
        _draws_of: usize,
    ) -> Result<(), Error> {
        let n = parts.iter().map(|(tokens, _)| tokens).sum();
        // What the last one had goes back first.
        self.rest(heaps);
        let threads = self.threads[usize::from(n > 1)];
        for (which, bytes) in HostStep::of(shape, &self.row, threads, n).arrays() {
            self.step.push(heaps.take(which, bytes)?);
        }
        Ok(())
    }

    /// Logits go to the caller's memory, from what the step has.
    pub(crate) fn logits(&mut self, _: &ModelShape, _: &mut Heaps, _: usize) -> Result<(), Error> {
        Ok(())
    }

    pub(crate) fn rest(&mut self, heaps: &mut Heaps) {
        heaps.give_all(self.step.drain(..));
    }
}
