//! Steps on the host: `granule_ops`' `cpu` half, over packed weights or weights in place.

mod activations;
mod forward;

use granule_kv::KvLayout;
use granule_ops::{AttentionItem, KvRowLayout};
use granule_plan::host::HostStep;
use granule_pool::PoolSlice;

use self::activations::{Activations, Heaps};
use self::forward::{begin, forward, output};
use super::{Batch, EngineMemory, Hidden, Link, Observer, Staged};
use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::model::{Model, Place};
use crate::placement::Span;

/// What computes a context's steps on the host.
#[derive(Debug)]
pub(crate) struct HostEngine {
    span: Span,
    /// The rows of its layers' keys and values.
    row: KvRowLayout,
    heaps: Heaps,
    /// What the last step computed with; its hidden states are in there.
    step: Option<Activations>,
    /// Room for a list, kept so that a step takes no memory.
    items: Vec<AttentionItem<'static>>,
    link: Link,
}

impl HostEngine {
    pub(crate) fn new(place: &Place, layout: &KvLayout, link: Link) -> Result<Self> {
        let (_, row) = layout.layer(0)?;
        let heaps = Heaps::new(&place.bank)?;
        Ok(Self { span: place.span.clone(), row, heaps, step: None, items: Vec::new(), link })
    }

    pub(crate) fn step<S: Staged>(
        &mut self,
        model: &Model,
        batch: &mut Batch<'_, S>,
        hidden: Option<Hidden<'_>>,
        cancel: &CancelToken,
        observe: Option<Observer<'_>>,
    ) -> Result<()> {
        let n = batch.tokens.len();
        // What the last one had goes back first.
        self.rest();
        let place = self.place(model)?;
        let sizes = HostStep::of(&place.sizes(), &self.row, place.threads_for(n).count(), n);
        let mut activations = Activations::new(&self.heaps, &sizes)?;
        let mut step = activations.step()?;
        begin(model, batch, hidden, step.x)?;
        let link = self.link.as_deref();
        forward((model, place), link, batch, &mut step, &mut self.items, cancel, observe)?;
        self.step = Some(activations);
        Ok(())
    }

    pub(crate) fn hidden(&self) -> Result<Hidden<'_>> {
        let rows = self.step.as_ref().ok_or(Error::NoLogits)?.hidden()?;
        Ok(Hidden { rows, row_of: None })
    }

    pub(crate) fn logits(
        &mut self,
        model: &Model,
        tokens: impl Iterator<Item = usize>,
        logits: &mut PoolSlice<f32>,
        first: usize,
    ) -> Result<()> {
        let step = self.step.as_mut().ok_or(Error::NoLogits)?;
        let place = model.places().get(self.span.index).ok_or(Error::NoLogits)?;
        let logits = &mut logits.as_mut_slice()?[first * place.config.n_vocab..];
        output(model, place, &mut step.step()?, tokens, logits)
    }

    fn place<'m>(&self, model: &'m Model) -> Result<&'m Place> {
        model.places().get(self.span.index).ok_or(Error::NoLogits)
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
