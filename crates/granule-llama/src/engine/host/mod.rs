//! Steps on the host: `granule_ops`' `cpu` half, over packed weights or weights in place.

mod activations;
mod forward;

use std::borrow::BorrowMut;

use granule_kv::{KvLayout, Sequence};
use granule_ops::AttentionItem;
use granule_pool::PoolSlice;

use self::activations::{Activations, Heaps, Lengths};
use self::forward::{forward, output};
use super::{Batch, EngineMemory, Observer};
use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::model::Model;

/// What computes a context's steps on the host.
#[derive(Debug)]
pub(crate) struct HostEngine {
    lengths: Lengths,
    heaps: Heaps,
    /// What the last step computed with; its hidden states are in there.
    step: Option<Activations>,
    /// Room for a list, kept so that a step takes no memory.
    items: Vec<AttentionItem<'static>>,
}

impl HostEngine {
    pub(crate) fn new(model: &Model, layout: &KvLayout) -> Result<Self> {
        let (_, row) = layout.layer(0)?;
        let (lengths, heaps) = (Lengths::new(model.config(), row), Heaps::new(model.bank())?);
        Ok(Self { lengths, heaps, step: None, items: Vec::new() })
    }

    pub(crate) fn step<S: BorrowMut<Sequence>>(
        &mut self,
        model: &Model,
        batch: Batch<'_, S>,
        cancel: &CancelToken,
        observe: Option<Observer<'_>>,
    ) -> Result<()> {
        let n = batch.tokens.len();
        // What the last one had goes back first.
        self.rest();
        let mut activations = Activations::new(&self.heaps, &self.lengths, model.threads_for(n), n)?;
        forward(model, batch, &mut activations.step()?, &mut self.items, cancel, observe)?;
        self.step = Some(activations);
        Ok(())
    }

    pub(crate) fn logits(
        &mut self,
        model: &Model,
        tokens: impl Iterator<Item = usize>,
        logits: &mut PoolSlice<f32>,
        first: usize,
    ) -> Result<()> {
        let step = self.step.as_mut().ok_or(Error::NoLogits)?;
        let n_vocab = model.config().n_vocab;
        let logits = &mut logits.as_mut_slice()?[first * n_vocab..];
        output(model, &mut step.step()?, tokens, logits)
    }

    pub(crate) fn rest(&mut self) {
        self.step = None;
    }

    pub(crate) fn room_for_logits(&self, elements: usize) -> Result<PoolSlice<f32>> {
        Ok(self.heaps.activations.alloc_slice(elements)?)
    }

    pub(crate) fn trim(&mut self) -> Result<()> {
        self.rest();
        self.heaps.trim()
    }

    pub(crate) fn memory(&self) -> EngineMemory {
        let Heaps { activations, scratch } = &self.heaps;
        let (activations, scratch) = (activations.stats().reserved, scratch.stats().reserved);
        EngineMemory { activations, scratch, ..EngineMemory::default() }
    }
}
