//! A context: sequences of tokens, their keys and values, and the memory to compute with.

#[cfg(feature = "cuda")]
mod draw;
mod eval;
mod info;
mod options;
mod prompt;
mod sequences;
mod slot;
mod state;

use std::sync::Arc;

use granule_device::DeviceKind;
use granule_kv::{Identity, KvLayout, Sequence};
use granule_ops::KvTransforms;
use granule_pool::PoolSlice;

use self::eval::Lane;
use self::slot::Slot;
use crate::cancel::CancelToken;
use crate::engine::{Engine, How, Part, patiently};
use crate::error::{Error, Result};
use crate::kv_transform::{KvTransformMode, SINKS};
use crate::model::{Model, Place};
use crate::shared::Shared;
use crate::tokenizer::TokenId;

pub use options::ContextOptions;
pub(crate) use options::RANK_TIMEOUT;
pub use slot::SequenceId;

/// Sequences of tokens over a shared model: one, until more are [added](Context::add_sequence). What names no sequence acts on
/// the first, so that who needs one need not know of others.
///
/// A call that fails leaves the context as it was before.
#[derive(Debug)]
pub struct Context {
    /// Goes first: it waits for what still uses the sequences' memory.
    engine: Engine,
    model: Arc<Model>,
    options: ContextOptions,
    /// Never empty; the first is there as long as the context.
    slots: Vec<Slot>,
    shared: Arc<Shared>,
    /// Logits that a call computes, a row each: room for those of the largest batch so far.
    rows: PoolSlice<f32>,
    /// Those that the last call left.
    last: PoolSlice<f32>,
    has_logits: bool,
    /// Where a token was drawn on a device: the logits it was drawn from are there, and here once somebody asked for them.
    #[cfg(feature = "cuda")]
    drawn: Option<std::sync::OnceLock<PoolSlice<f32>>>,
    cancel: CancelToken,
    n_batch: usize,
    // Lists that a call fills, kept so that the next one takes no memory.
    lanes: Vec<Lane>,
    parts: Vec<Part>,
    batch: Vec<TokenId>,
}

impl Context {
    /// A new context with one sequence, which is empty.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a size of zero, [`Error::Kv`] if the model's heads do not fit the cache's types,
    /// [`Error::Pool`] if there is no memory for a row of logits, and where a transform has yet to be made what
    /// [`Context::eval`] can fail with.
    pub fn new(model: Arc<Model>, options: ContextOptions) -> Result<Self> {
        Self::new_reporting(model, options, CancelToken::default(), &mut |_, _| {})
    }

    /// As [`Context::new`], for somebody who waits: where a transform has yet to be made, which takes as long as a prompt of 256
    /// tokens, `progress` is called with tokens done and tokens in all, first with none, and `cancel` stops it. The context is
    /// stopped by `cancel` from then on.
    ///
    /// # Errors
    /// As [`Context::new`]; [`Error::Cancelled`].
    pub fn new_reporting(
        model: Arc<Model>,
        options: ContextOptions,
        cancel: CancelToken,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let ContextOptions { type_k, type_v, layers_per_row, .. } = options;
        let n_ctx = positive("the context size", options.n_ctx.unwrap_or(model.config().n_ctx_train))?;
        positive("the batch size", options.n_batch)?;
        if options.cublas {
            check_cublas(&model)?;
        }
        let shape = model.config().kv_shape();
        // What cannot be is refused before anything is computed.
        KvLayout::new(shape, type_k, type_v, layers_per_row, 0)?;
        let tables = match options.kv_transform {
            KvTransformMode::Auto => model.kv_tables(type_k, type_v, &cancel, progress)?,
            KvTransformMode::None => None,
        };
        let sinks = if tables.is_some() { SINKS } else { 0 };
        let layout = |place: &Place| options.layout(place.config.kv_shape(), place.span.len(), sinks);
        let layouts = model.places().iter().map(layout).collect::<Result<Vec<_>>>()?;
        let shared = model.shared(&layouts, options.kv, tables)?;
        let first = Slot::new(patiently(|| shared.sequences(n_ctx))?, &[]);
        Self::over(model, options, shared, first, cancel)
    }

    fn over(
        model: Arc<Model>,
        options: ContextOptions,
        shared: Arc<Shared>,
        first: Slot,
        cancel: CancelToken,
    ) -> Result<Self> {
        let how = How {
            graphs: options.graphs,
            cublas: options.cublas.then_some(options.n_batch),
            timeout: options.rank_timeout,
        };
        let engine = patiently(|| Engine::new(&model, &shared.layouts(), how))?;
        let row = || patiently(|| engine.room_for_logits(model.config().n_vocab));
        let (rows, last) = (row()?, row()?);
        Ok(Self {
            model,
            options,
            slots: vec![first],
            shared,
            engine,
            rows,
            last,
            has_logits: false,
            #[cfg(feature = "cuda")]
            drawn: None,
            cancel,
            n_batch: options.n_batch,
            lanes: Vec::new(),
            parts: Vec::new(),
            batch: Vec::new(),
        })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The most tokens that fit into one of its sequences.
    #[must_use]
    pub fn n_ctx(&self) -> usize {
        self.sequence().n_ctx()
    }

    /// The tokens whose keys and values are in the cache.
    #[must_use]
    pub fn tokens(&self) -> &[TokenId] {
        &self.slots[0].tokens
    }

    /// The cache behind it, to look at: where the model's layers are in several [stages](Model::stages), that of the first of them.
    #[must_use]
    pub fn sequence(&self) -> &Sequence {
        self.slots[0].first()
    }

    /// What keys and values go through before they are stored, if there is something. It is part of what the stored bytes mean.
    #[must_use]
    pub fn kv_transforms(&self) -> Option<&KvTransforms> {
        self.shared.tables.as_ref().map(|tables| tables.transforms())
    }

    /// What the stored keys and values were made with: those of another context can stand for them where all of it is equal. The
    /// model is in it as a digest, a transform with all of its tables.
    ///
    /// # Errors
    /// None in practice: a loaded model has its weights.
    pub fn kv_identity(&self) -> Result<Identity> {
        self.identity_over(&self.shared)
    }

    fn identity_over(&self, shared: &Shared) -> Result<Identity> {
        let transform = shared.tables.as_ref().map_or_else(Vec::new, |tables| tables.bytes().to_vec());
        Ok(Identity { transform, ..self.model.identity()?.clone() })
    }

    /// A flag that stops a computation of this context, from any thread or a signal handler.
    #[must_use]
    pub fn cancel_token(&self) -> CancelToken {
        self.cancel.clone()
    }

    /// Replaces the flag that stops this context, so that several can share one.
    pub fn set_cancel_token(&mut self, token: CancelToken) {
        self.cancel = token;
    }

    /// Forgets all tokens. The memory stays with the context, for the next ones.
    ///
    /// # Errors
    /// None in practice.
    pub fn clear(&mut self) -> Result<()> {
        self.truncate(0)
    }

    /// Forgets all but the first `len` tokens (nothing where there are not more). The memory stays with the context.
    ///
    /// # Errors
    /// None in practice.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        self.slots[0].truncate(len)
    }

    /// Keeps what the context has in common with the beginning of `tokens`, forgets the rest, and returns how many
    /// tokens were kept: at most one fewer than `tokens` has, so that there is one left to evaluate.
    ///
    /// # Errors
    /// None in practice.
    pub fn rewind_to(&mut self, tokens: &[TokenId]) -> Result<usize> {
        let common = self.tokens().iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let kept = common.min(tokens.len().saturating_sub(1));
        self.truncate(kept)?;
        Ok(kept)
    }

    /// A second context with the same tokens, which goes its own way from here. The granules behind them are shared
    /// until one of the two writes there. Of several sequences it has the first; it has a flag of its own to stop it, and no
    /// logits yet.
    ///
    /// # Errors
    /// [`Error::Kv`], [`Error::Pool`] if there is no memory for its logits.
    pub fn fork(&mut self) -> Result<Self> {
        let first = patiently(|| self.slots[0].fork(usize::MAX))?;
        let (model, shared) = (Arc::clone(&self.model), Arc::clone(&self.shared));
        Self::over(model, self.options, shared, first, CancelToken::default())
    }

    /// Gives back memory that the present tokens do not need.
    ///
    /// # Errors
    /// [`Error::Kv`] if the device refuses.
    pub fn trim(&mut self) -> Result<()> {
        // Logits that are still on a device lie in memory that goes: they are brought here first.
        if self.logits().is_err() {
            self.forget_logits();
        }
        self.slots.iter_mut().try_for_each(Slot::trim)?;
        self.engine.trim()
    }
}

fn positive(option: &'static str, value: usize) -> Result<usize> {
    if value == 0 { Err(Error::InvalidOption { option, value, allowed: "at least 1" }) } else { Ok(value) }
}

/// Refuses what could only be left undone in silence.
fn check_cublas(model: &Model) -> Result<()> {
    let unsupported = |what: &str| Err(Error::Unsupported { what: what.to_owned() });
    if !cfg!(feature = "cublas") {
        return unsupported("cuBLAS in a build without the feature `cublas`");
    }
    if model.banks().all(|bank| bank.device().kind() == DeviceKind::Host) {
        return unsupported("cuBLAS for a model that is on the host");
    }
    Ok(())
}
