//! The memory of a forward pass: what a step takes from its context's heap, and how much of each.
//!
//! Sizes are functions of the model and the batch alone, so that a planner can ask for them before anything is
//! allocated. All counts are f32 elements unless they say otherwise.

use granule_bank::Bank;
use granule_ops::{KvRowLayout, QuantScratch, Threads, attention};
use granule_pool::{Heap, Pool, PoolOptions, PoolSlice};

use crate::config::Config;
use crate::error::Result;

/// Whose the pools of a context are at its bank.
const ACTIVATIONS: &str = "activations";
/// As above, for temporaries of single operations.
const SCRATCH: &str = "scratch";

/// Lengths of everything that a step needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lengths {
    n_embd: usize,
    q_width: usize,
    kv_width: usize,
    n_ff: usize,
    rope_dims: usize,
    n_heads: usize,
    kv: KvRowLayout,
}

impl Lengths {
    pub(super) fn new(config: &Config, kv: KvRowLayout) -> Self {
        Self {
            n_embd: config.n_embd,
            q_width: config.q_width(),
            kv_width: config.kv_width(),
            n_ff: config.n_ff,
            rope_dims: config.rope_dims,
            n_heads: config.n_heads,
            kv,
        }
    }

    /// The widest row that is ever quantized.
    fn widest(&self) -> usize {
        self.n_embd.max(self.n_ff).max(self.q_width)
    }
}

/// The heaps of a context, each in a pool of its own: one for what goes from operation to operation, one for what an operation
/// needs for itself. With them goes all of their memory.
#[derive(Debug)]
pub(super) struct Heaps {
    pub(super) activations: Heap,
    pub(super) scratch: Heap,
}

impl Heaps {
    pub(super) fn new(bank: &Bank) -> Result<Self> {
        let heap = |owner| Pool::new(bank, PoolOptions::new().owner(owner))?.local();
        Ok(Self { activations: heap(ACTIVATIONS)?, scratch: heap(SCRATCH)? })
    }

    /// Gives what is not in use back to the bank.
    pub(super) fn trim(&self) -> Result<()> {
        self.activations.pool().trim()?;
        self.scratch.pool().trim()?;
        Ok(())
    }
}

/// What a step of `n` tokens works with; all of it goes back when this is dropped. Each array is `n` rows of the width that its
/// name says.
#[derive(Debug)]
pub(super) struct Activations {
    /// Hidden state, n_embd wide.
    x: PoolSlice<f32>,
    /// Normalized state, or what a projection adds to the hidden state; n_embd wide.
    h: PoolSlice<f32>,
    /// Queries, all heads.
    q: PoolSlice<f32>,
    /// New keys, all key-value heads.
    k: PoolSlice<f32>,
    /// New values.
    v: PoolSlice<f32>,
    /// Attention's result, as wide as the queries.
    attended: PoolSlice<f32>,
    /// Feed-forward gate.
    gate: PoolSlice<f32>,
    /// Feed-forward up.
    up: PoolSlice<f32>,
    /// Cosines and sines, rope_dims wide.
    angles: PoolSlice<f32>,
    /// Attention's own memory.
    attention: PoolSlice<f32>,
    quant: Quant,
}

/// Quantized activations of the product at hand.
#[derive(Debug)]
struct Quant {
    quants: PoolSlice<i8>,
    scales: PoolSlice<f32>,
    sums: PoolSlice<f32>,
}

impl Quant {
    fn new(heap: &Heap, elements: usize) -> Result<Self> {
        let (quants, scales) = QuantScratch::lengths(elements);
        Ok(Self {
            quants: heap.alloc_slice(quants)?,
            scales: heap.alloc_slice(scales)?,
            sums: heap.alloc_slice(scales)?,
        })
    }

    fn view(&mut self) -> Result<QuantScratch<'_>> {
        Ok(QuantScratch {
            quants: self.quants.as_mut_slice()?,
            scales: self.scales.as_mut_slice()?,
            sums: self.sums.as_mut_slice()?,
        })
    }
}

/// Views of the arrays of [`Activations`], to compute with.
pub(super) struct Step<'a> {
    pub(super) x: &'a mut [f32],
    pub(super) h: &'a mut [f32],
    pub(super) q: &'a mut [f32],
    pub(super) k: &'a mut [f32],
    pub(super) v: &'a mut [f32],
    pub(super) attended: &'a mut [f32],
    pub(super) gate: &'a mut [f32],
    pub(super) up: &'a mut [f32],
    pub(super) angles: &'a mut [f32],
    pub(super) attention: &'a mut [f32],
    pub(super) quant: QuantScratch<'a>,
}

impl Activations {
    /// The memory for a step of `n` tokens.
    pub(super) fn new(heaps: &Heaps, lengths: &Lengths, threads: &Threads, n: usize) -> Result<Self> {
        let Lengths { n_embd, q_width, kv_width, n_ff, rope_dims, n_heads, kv } = lengths;
        let take = |width: &usize| heaps.activations.alloc_slice(n * width);
        Ok(Self {
            x: take(n_embd)?,
            h: take(n_embd)?,
            q: take(q_width)?,
            k: take(kv_width)?,
            v: take(kv_width)?,
            attended: take(q_width)?,
            gate: take(n_ff)?,
            up: take(n_ff)?,
            angles: heaps.scratch.alloc_slice(n * rope_dims)?,
            attention: heaps.scratch.alloc_slice(attention::scratch_len(threads, kv, *n_heads, n))?,
            quant: Quant::new(&heaps.scratch, n * lengths.widest())?,
        })
    }

    /// Views of all of it.
    pub(super) fn step(&mut self) -> Result<Step<'_>> {
        Ok(Step {
            x: self.x.as_mut_slice()?,
            h: self.h.as_mut_slice()?,
            q: self.q.as_mut_slice()?,
            k: self.k.as_mut_slice()?,
            v: self.v.as_mut_slice()?,
            attended: self.attended.as_mut_slice()?,
            gate: self.gate.as_mut_slice()?,
            up: self.up.as_mut_slice()?,
            angles: self.angles.as_mut_slice()?,
            attention: self.attention.as_mut_slice()?,
            quant: self.quant.view()?,
        })
    }
}
