//! A context: one sequence of tokens, its KV cache, and the memory to compute with.

use std::sync::Arc;

use granule_device::Bytes;
use granule_kv::{KvCache, KvLayout, KvOptions, KvType, Sequence};
use granule_ops::KvTransforms;
use granule_pool::PoolSlice;

use crate::activations::{Activations, Heaps, Lengths};
use crate::cancel::CancelToken;
use crate::error::{Error, Result};
use crate::forward::{forward, output};
use crate::kv_transform::{KvTransformMode, SINKS, Tables};
use crate::memory::MemoryInfo;
use crate::model::Model;
use crate::tokenizer::TokenId;

/// Logit rows that are computed at a time when a caller wants those of many tokens.
const LOGIT_ROWS: usize = 16;

/// The index of the first token whose logits are wanted, and who wants them.
type Wanted<'a> = (usize, &'a mut dyn FnMut(usize, &[f32]));

/// How to make a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextOptions {
    /// The most tokens it holds. None: as many as the model was trained for. Only addresses are reserved for them;
    /// memory is taken as the sequence grows.
    pub n_ctx: Option<usize>,
    /// The most tokens of a prompt that are computed in one go.
    pub n_batch: usize,
    /// The type that keys are stored in.
    pub type_k: KvType,
    /// The type that values are stored in.
    pub type_v: KvType,
    /// Layers whose rows lie together in the cache; None: the cache's default.
    pub layers_per_row: Option<usize>,
    /// Whether keys and values are transformed before they are stored.
    pub kv_transform: KvTransformMode,
}

impl Default for ContextOptions {
    fn default() -> Self {
        Self {
            n_ctx: None,
            n_batch: 512,
            type_k: KvType::F16,
            type_v: KvType::F16,
            layers_per_row: None,
            kv_transform: KvTransformMode::Auto,
        }
    }
}

/// One sequence of tokens over a shared model.
///
/// A call that fails leaves the context as it was before.
#[derive(Debug)]
pub struct Context {
    model: Arc<Model>,
    options: ContextOptions,
    sequence: Sequence,
    tables: Option<Arc<Tables>>,
    tokens: Vec<TokenId>,
    n_batch: usize,
    lengths: Lengths,
    heaps: Heaps,
    /// What the last evaluation left: at least one row.
    logits: PoolSlice<f32>,
    cancel: CancelToken,
}

impl Context {
    /// A new, empty context.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] for a size of zero, [`Error::Kv`] if the model's heads do not fit the cache's types,
    /// [`Error::Pool`] if there is no memory for a row of logits, and where a transform has yet to be made what
    /// [`Context::eval`] can fail with.
    pub fn new(model: Arc<Model>, options: ContextOptions) -> Result<Self> {
        let tables = match options.kv_transform {
            KvTransformMode::Auto => model.kv_tables(options.type_k, options.type_v)?,
            KvTransformMode::None => None,
        };
        let sequence = {
            let (config, ContextOptions { type_k, type_v, layers_per_row, .. }) = (model.config(), options);
            let sinks = if tables.is_some() { SINKS } else { 0 };
            let layout = KvLayout::new(config.kv_shape(), type_k, type_v, layers_per_row, sinks)?;
            let n_ctx = positive("the context size", options.n_ctx.unwrap_or(config.n_ctx_train))?;
            KvCache::new(model.bank(), layout, KvOptions::new())?.sequence(n_ctx)?
        };
        Self::over(model, options, sequence, tables, Vec::new())
    }

    fn over(
        model: Arc<Model>,
        options: ContextOptions,
        sequence: Sequence,
        tables: Option<Arc<Tables>>,
        mut tokens: Vec<TokenId>,
    ) -> Result<Self> {
        // Room for all of them from the start, so that none of them makes the list move; pages nobody writes cost nothing.
        let _ = tokens.try_reserve_exact(sequence.n_ctx() - tokens.len());
        let n_batch = positive("the batch size", options.n_batch)?.min(sequence.n_ctx());
        let (_, layout) = sequence.cache().layout().layer(0)?;
        let lengths = Lengths::new(model.config(), layout);
        let heaps = Heaps::new(model.bank())?;
        let logits = heaps.activations.alloc_slice(model.config().n_vocab)?;
        let cancel = CancelToken::default();
        Ok(Self { model, options, sequence, tables, tokens, n_batch, lengths, heaps, logits, cancel })
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The most tokens that fit.
    #[must_use]
    pub fn n_ctx(&self) -> usize {
        self.sequence.n_ctx()
    }

    /// The tokens whose keys and values are in the cache.
    #[must_use]
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// The cache behind it, to look at.
    #[must_use]
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// What keys and values are turned by before they are stored: where there is something, its id is part of what the bytes mean.
    #[must_use]
    pub fn kv_transforms(&self) -> Option<&KvTransforms> {
        self.tables.as_ref().map(|tables| &tables.transforms)
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

    /// Appends `tokens` and returns the logits behind the last one, n_vocab long.
    ///
    /// # Errors
    /// [`Error::NoTokens`], [`Error::ContextFull`], [`Error::Cancelled`], [`Error::Kv`] if there is no memory for the
    /// rows, [`Error::Pool`] if there is none to compute with, [`Error::Device`] if the model's file was cut short. The context is then as it was.
    pub fn eval(&mut self, tokens: &[TokenId]) -> Result<&[f32]> {
        self.eval_reporting(tokens, &mut |_| {})
    }

    /// As [`Context::eval`], and calls `progress` with the tokens done after each batch.
    ///
    /// # Errors
    /// As [`Context::eval`].
    pub fn eval_reporting(&mut self, tokens: &[TokenId], progress: &mut dyn FnMut(usize)) -> Result<&[f32]> {
        let before = self.tokens.len();
        let done = self.append(tokens, progress, None);
        self.settle(before, done)?;
        self.last_logits()
    }

    /// Appends `tokens` and hands the logits behind each of those from index `first_wanted` on to `sink`, with the
    /// index into `tokens`.
    ///
    /// # Errors
    /// As [`Context::eval`]; `sink` may then have been called for some.
    pub fn eval_each(
        &mut self,
        tokens: &[TokenId],
        first_wanted: usize,
        sink: &mut dyn FnMut(usize, &[f32]),
    ) -> Result<()> {
        let before = self.tokens.len();
        let done = self.append(tokens, &mut |_| {}, Some((first_wanted, sink)));
        self.settle(before, done)
    }

    /// Appends `tokens` and returns the logits behind each, tokens x n_vocab. For large vocabularies
    /// [`Context::eval_each`] needs less memory.
    ///
    /// # Errors
    /// As [`Context::eval`].
    pub fn eval_all(&mut self, tokens: &[TokenId]) -> Result<Vec<f32>> {
        let mut all = Vec::new();
        self.eval_each(tokens, 0, &mut |_, row| all.extend_from_slice(row))?;
        Ok(all)
    }

    /// The logits that the last evaluation left.
    pub(crate) fn last_logits(&mut self) -> Result<&[f32]> {
        let n_vocab = self.model.config().n_vocab;
        Ok(&self.logits.as_mut_slice()?[..n_vocab])
    }

    /// Takes back what a failed call appended.
    fn settle(&mut self, before: usize, done: Result<()>) -> Result<()> {
        if let Err(error) = &done {
            self.tokens.truncate(before);
            self.sequence.truncate(before)?;
            if matches!(error, Error::Kv(_) | Error::Pool(_)) {
                // What its rows got is what the rest did not.
                self.sequence.trim()?;
            }
        }
        done
    }

    fn append(
        &mut self,
        tokens: &[TokenId],
        progress: &mut dyn FnMut(usize),
        mut wanted: Option<Wanted<'_>>,
    ) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::NoTokens);
        }
        if self.tokens.len() + tokens.len() > self.n_ctx() {
            return Err(Error::ContextFull {
                added: tokens.len(),
                used: self.tokens.len(),
                n_ctx: self.n_ctx(),
            });
        }
        let n_vocab = self.model.config().n_vocab;
        if let Some(bad) = tokens.iter().find(|t| t.index() >= n_vocab) {
            return Err(Error::TokenOutOfRange { id: bad.get(), n_vocab });
        }
        let mut start = 0;
        while start < tokens.len() {
            let end = tokens.len().min(start + self.n_batch);
            // Fewer than asked for where the cache's free rows are cut up.
            let n = self.sequence.prepare(end - start)?;
            let batch = &tokens[start..start + n];
            let mut activations = self.step(batch)?;
            match &mut wanted {
                None if start + batch.len() == tokens.len() => {
                    self.logits_of(batch.len() - 1..batch.len(), &mut activations)?;
                }
                None => {}
                Some((first, sink)) => {
                    let mut at = first.saturating_sub(start);
                    while at < batch.len() {
                        let end = batch.len().min(at + LOGIT_ROWS);
                        self.logits_of(at..end, &mut activations)?;
                        let rows = self.logits.as_mut_slice()?;
                        for (row, logits) in (at..end).zip(rows.chunks_exact(n_vocab)) {
                            sink(start + row, logits);
                        }
                        at = end;
                    }
                }
            }
            self.model.weights().check()?;
            start += n;
            progress(start);
        }
        Ok(())
    }

    /// One batch, whose rows are prepared, through all layers; the answer has its hidden states.
    fn step(&mut self, batch: &[TokenId]) -> Result<Activations> {
        let mut activations =
            Activations::new(&self.heaps, &self.lengths, self.model.threads(), batch.len())?;
        let (transforms, step) = (self.tables.as_ref().map(|t| &t.transforms), &mut activations.step()?);
        forward(&self.model, &mut self.sequence, transforms, step, batch, &self.cancel, None)?;
        self.sequence.commit(batch.len())?;
        self.tokens.extend_from_slice(batch);
        Ok(activations)
    }

    /// Computes the logits of some rows of the batch that was computed last.
    fn logits_of(&mut self, rows: std::ops::Range<usize>, activations: &mut Activations) -> Result<()> {
        let config = self.model.config();
        let (n_embd, elements) = (config.n_embd, rows.len() * config.n_vocab);
        if self.logits.len() < elements {
            self.logits = self.heaps.activations.alloc_slice(elements)?;
        }
        let logits = &mut self.logits.as_mut_slice()?[..elements];
        let mut step = activations.step()?;
        let x = &step.x[rows.start * n_embd..rows.end * n_embd];
        output(&self.model, x, &mut step.h[..x.len()], &mut step.quant, logits)
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
        let len = len.min(self.tokens.len());
        self.sequence.truncate(len)?;
        self.tokens.truncate(len);
        Ok(())
    }

    /// Keeps what the context has in common with the beginning of `tokens`, forgets the rest, and returns how many
    /// tokens were kept: at most one fewer than `tokens` has, so that there is one left to evaluate.
    ///
    /// # Errors
    /// None in practice.
    pub fn rewind_to(&mut self, tokens: &[TokenId]) -> Result<usize> {
        let common = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let kept = common.min(tokens.len().saturating_sub(1));
        self.truncate(kept)?;
        Ok(kept)
    }

    /// A second context with the same tokens, which goes its own way from here. The granules behind them are shared
    /// until one of the two writes there.
    ///
    /// # Errors
    /// [`Error::Kv`], [`Error::Pool`] if there is no memory for its logits.
    pub fn fork(&mut self) -> Result<Self> {
        let sequence = self.sequence.fork()?;
        let tables = self.tables.clone();
        Self::over(Arc::clone(&self.model), self.options, sequence, tables, self.tokens.clone())
    }

    /// Gives back memory that the present tokens do not need.
    ///
    /// # Errors
    /// [`Error::Kv`] if the device refuses.
    pub fn trim(&mut self) -> Result<()> {
        self.sequence.trim()?;
        self.heaps.trim()
    }

    /// Where this context's memory and its model's went.
    #[must_use]
    pub fn memory_info(&self) -> MemoryInfo {
        let kv = self.sequence.memory();
        let (activations, scratch) =
            (self.heaps.activations.stats().reserved, self.heaps.scratch.stats().reserved);
        let model = self.model.bytes();
        let kv_transform = self.tables.as_ref().map_or(Bytes::ZERO, |tables| tables.bytes());
        MemoryInfo {
            model,
            kv: kv.held,
            kv_shared: kv.shared,
            kv_used: kv.used,
            kv_reserved: kv.reserved,
            kv_transform,
            activations,
            scratch,
            n_tokens: self.tokens.len(),
            n_ctx: self.n_ctx(),
            total: [model, kv.held, kv_transform, activations, scratch]
                .into_iter()
                .fold(Bytes::ZERO, Bytes::saturating_add),
        }
    }
}

fn positive(option: &'static str, value: usize) -> Result<usize> {
    if value == 0 { Err(Error::InvalidOption { option, value, allowed: "at least 1" }) } else { Ok(value) }
}
