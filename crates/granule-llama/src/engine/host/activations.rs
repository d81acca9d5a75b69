//! The memory of a forward pass: what a step takes from its context's heaps, in the sizes and in the order that
//! [`HostStep`](granule_plan::host::HostStep) says, so that a plan knows them before anything is allocated.

use granule_bank::Bank;
use granule_ops::QuantScratch;
use granule_plan::host::HostStep;
use granule_pool::{Heap, Pool, PoolOptions, PoolSlice};

use crate::error::Result;

/// Whose the pools of a context are at its bank.
const ACTIVATIONS: &str = "activations";
/// As above, for temporaries of single operations.
const SCRATCH: &str = "scratch";

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

/// What a step of some tokens works with; all of it goes back when this is dropped. Each array is a row for each token, of the width
/// that its name says.
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
    fn new(heap: &Heap, sizes: &HostStep) -> Result<Self> {
        Ok(Self {
            quants: heap.alloc_slice(sizes.quants)?,
            scales: heap.alloc_slice(sizes.scales)?,
            sums: heap.alloc_slice(sizes.scales)?,
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
    /// The memory for a step of this size.
    pub(super) fn new(heaps: &Heaps, sizes: &HostStep) -> Result<Self> {
        let take = |len: usize| heaps.activations.alloc_slice(len);
        Ok(Self {
            x: take(sizes.x)?,
            h: take(sizes.h)?,
            q: take(sizes.q)?,
            k: take(sizes.k)?,
            v: take(sizes.v)?,
            attended: take(sizes.attended)?,
            gate: take(sizes.gate)?,
            up: take(sizes.up)?,
            angles: heaps.scratch.alloc_slice(sizes.angles)?,
            attention: heaps.scratch.alloc_slice(sizes.attention)?,
            quant: Quant::new(&heaps.scratch, sizes)?,
        })
    }

    /// The hidden states.
    pub(super) fn hidden(&self) -> Result<&[f32]> {
        Ok(self.x.as_slice()?)
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
