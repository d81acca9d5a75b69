//! Steps on a CUDA device: weights in planes, activations from the pool, rows as they lie in the cache, one stream.
//!
//! A step sends one parcel (token ids, rotations, what kernels read of the sequences), runs all layers and, where logits are
//! wanted, brings these back; the host waits for the stream before it goes on, so that whatever a step used is idle between
//! steps. Steps of one token of each sequence are replayed from a [graph](decode).

#[cfg(feature = "cublas")]
pub(crate) mod blas;
mod decode;
mod folds;
mod layers;
mod load;
mod memory;
mod weights;

use std::sync::Arc;

use granule_bank::Bank;
use granule_device::Stream;
use granule_kv::KvLayout;
use granule_ops::attention::{CudaAttention, CudaStep};
use granule_ops::sample::{Draw, Drawn};
use granule_ops::{AttentionItem, Kernels, KvTransformTables};
use granule_plan::cuda::{CudaBuffers, CudaLogits, Parcel, hidden_bytes};
use granule_pool::PoolSlice;

#[cfg(feature = "cublas")]
use self::blas::EngineBlas;
use self::decode::Decodes;
use self::folds::Folds;
use self::layers::{Inputs, Layers, Start, Tables, floats, floats_mut};
use self::memory::{Buffers, Heaps, Leased, Shuttle, not_pinned};
pub(crate) use self::weights::{CudaModel, context_of};
use super::{Batch, EngineMemory, Hidden, How, Link, Observer, Part, Staged, is_capture, look_up, rows_of};
use crate::cancel::CancelToken;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::{Model, Place};
use crate::placement::Span;
use crate::tokenizer::TokenId;

/// What computes a context's steps on a CUDA device.
#[derive(Debug)]
pub(crate) struct CudaEngine {
    decodes: Decodes,
    #[cfg(feature = "cublas")]
    blas: Option<EngineBlas>,
    /// What the last step left.
    last: Option<Last>,
    folds: Option<Folds>,
    /// What kernels read of the sequences, by group of layers; kept so that a step takes no memory for it.
    steps: Vec<CudaStep>,
    /// The flag of the step that ran last, on the host.
    flag: Leased,
    heaps: Heaps,
    layout: KvLayout,
    kernels: Kernels,
    model: Arc<CudaModel>,
    span: Span,
    how: How,
    /// Where its layers are split: what reaches the other ranks.
    link: Link,
    bank: Bank,
    stream: Arc<Stream>,
}

/// What a step left for whoever wants logits.
#[derive(Debug)]
enum Last {
    /// The hidden states, which row each token has, and where another stage goes on, these on the host's side.
    Hidden { buffers: Box<Buffers>, row_of: Vec<u32>, crossing: Option<Leased> },
    /// The logits of all tokens, or the hidden states for the next stage, in the memory of the graph that computed them.
    Decoded,
}

impl CudaEngine {
    pub(crate) fn new(
        place: &Place,
        device: &Arc<CudaModel>,
        layout: &KvLayout,
        how: How,
        link: Link,
    ) -> Result<Self> {
        let bank = place.bank.clone();
        let stream = Arc::new(bank.device().stream()?);
        let heaps = Heaps::new(&bank, &stream)?;
        Ok(Self {
            decodes: Decodes::default(),
            #[cfg(feature = "cublas")]
            blas: how.cublas.map(|tokens| EngineBlas::new(device, &heaps, tokens)).transpose()?,
            last: None,
            folds: None,
            steps: vec![CudaStep::new(); layout.groups()],
            flag: Leased::bytes(&heaps.pinned, size_of::<u32>())?,
            heaps,
            layout: *layout,
            kernels: device.kernels.sharing()?,
            model: Arc::clone(device),
            span: place.span.clone(),
            how,
            link,
            bank,
            stream,
        })
    }

    /// What it computes a part of.
    fn place<'m>(&self, model: &'m Model) -> Result<&'m Place> {
        model.places().get(self.span.index).ok_or(Error::NoLogits)
    }

    /// Scratch for the sums over all ranks of so many tokens' hidden states.
    fn sum_bytes(&self, tokens: usize, n_embd: usize) -> usize {
        self.link.as_ref().map_or(0, |link| link.scratch_bytes(tokens * n_embd))
    }

    /// Waits for all that the stream was given, no longer than ranks wait for one another.
    fn wait(&self) -> Result<()> {
        // What a group gives up after a while comes to its end then.
        let group = self.link.as_ref().map_or(Ok(()), |link| link.wait_on(&self.stream));
        wait(&self.stream)?;
        Ok(group?)
    }

    /// Another stream and other memory, where the old stream is of no use any more: it takes what it was given along.
    fn renew(&mut self) -> Result<()> {
        let stream = Arc::new(self.bank.device().stream()?);
        let heaps = Heaps::new(&self.bank, &stream)?;
        self.flag = Leased::bytes(&heaps.pinned, size_of::<u32>())?;
        self.rest();
        self.decodes.clear();
        // Its scratch is the old heap's; it is made anew by the next step that has a use for it.
        #[cfg(feature = "cublas")]
        {
            self.blas = None;
        }
        (self.heaps, self.stream) = (heaps, stream);
        Ok(())
    }

    pub(crate) fn step<S: Staged>(
        &mut self,
        model: &Model,
        batch: &mut Batch<'_, S>,
        hidden: Option<Hidden<'_>>,
        cancel: &CancelToken,
        mut observe: Option<Observer<'_>>,
    ) -> Result<()> {
        let is_decode = observe.is_none() && batch.parts.iter().all(|part| part.n == 1);
        let hidden = hidden.as_ref();
        let last = self.complete(batch, cancel, &mut |engine| match &mut observe {
            None if is_decode => engine.decode(model, batch, hidden, cancel, None),
            None => engine.prompt(model, batch, hidden, cancel, None),
            Some(observe) => engine.prompt(model, batch, hidden, cancel, Some(&mut **observe)),
        })?;
        self.last = Some(last);
        Ok(())
    }

    /// The hidden states of the last step, on the host.
    pub(crate) fn hidden(&self) -> Result<Hidden<'_>> {
        match &self.last {
            Some(Last::Hidden { row_of, crossing: Some(crossing), .. }) => {
                Ok(Hidden { rows: floats(crossing)?, row_of: Some(row_of) })
            }
            Some(Last::Decoded) => Ok(Hidden { rows: self.decodes.answer()?, row_of: None }),
            _ => Err(Error::NoLogits),
        }
    }

    /// A step of one token of one sequence, and the token that is drawn behind it, of the first `n` logits: only that comes back.
    pub(crate) fn draw<S: Staged>(
        &mut self,
        model: &Model,
        batch: &mut Batch<'_, S>,
        hidden: Option<Hidden<'_>>,
        cancel: &CancelToken,
        (draw, n): (&Draw, usize),
    ) -> Result<Drawn> {
        let hidden = hidden.as_ref();
        self.complete(batch, cancel, &mut |engine| {
            engine.decode(model, batch, hidden, cancel, Some((draw, n)))
        })?;
        self.decodes.drawn()
    }

    /// Has a step given, and waits for it: whatever was given has run before anybody hears of it, so that nothing is in use but by
    /// the host. Where there is no memory for it, that of other steps' graphs is given up for it.
    fn complete<S>(
        &mut self,
        batch: &Batch<'_, S>,
        cancel: &CancelToken,
        give: &mut dyn FnMut(&mut Self) -> Result<Last>,
    ) -> Result<Last> {
        // A step that is replayed does not look again.
        if cancel.is_cancelled() {
            return Err(Error::Cancelled);
        }
        self.rest();
        self.bring_folds(batch)?;
        #[cfg(feature = "cublas")]
        if let (Some(tokens), None) = (self.how.cublas, &self.blas) {
            self.blas = Some(EngineBlas::new(&self.model, &self.heaps, tokens)?);
        }
        let mut done = give(self);
        let is_short = |error: &Error| matches!(error, Error::Pool(_)) && !is_capture(error);
        if done.as_ref().is_err_and(is_short) && !self.decodes.is_empty() {
            wait(&self.stream)?;
            self.decodes.clear();
            self.heaps.trim()?;
            done = give(self);
        }
        let end = self.wait();
        if done.is_err() {
            // What it has raised is nobody's.
            let _ = self.collect();
            let _ = wait(&self.stream);
        }
        let last = done?;
        end?;
        self.judge()?;
        Ok(last)
    }

    /// Has the step's flag brought over, behind all of it.
    fn collect(&mut self) -> Result<()> {
        // SAFETY: both stay with the engine, which waits for the stream before it reads the word.
        Ok(unsafe { self.kernels.collect(&self.stream, self.flag.write()) }?)
    }

    /// What the flag says that was brought over last.
    fn judge(&self) -> Result<()> {
        let word = self.flag.read().as_host().and_then(|bytes| bytes.try_into().ok());
        Ok(self.kernels.judge(word.ok_or_else(not_pinned)?)?)
    }

    /// The logits behind the token of the last [`CudaEngine::draw`], n_vocab long.
    pub(crate) fn drawn_from(&self) -> Result<PoolSlice<f32>> {
        let there = self.decodes.logits_there()?.read();
        let mut logits = self.room_for_logits(there.len() / size_of::<f32>())?;
        // SAFETY: both stay until the stream was waited for, below.
        let copied = unsafe { self.stream.copy_slice(there, logits.slice_mut()?) };
        wait(&self.stream)?;
        copied?;
        Ok(logits)
    }

    /// A transform's tables on the device, if the batch has one.
    fn bring_folds<S>(&mut self, batch: &Batch<'_, S>) -> Result<()> {
        let tables = batch.tables_of(self.span.index);
        match (tables, &self.folds) {
            (None, None) => return Ok(()),
            (Some(tables), Some(folds)) if folds.are_of(tables) => return Ok(()),
            _ => {}
        }
        // Graphs have the old ones' addresses.
        self.decodes.clear();
        self.folds = None;
        if let Some(tables) = tables {
            self.folds = Some(Folds::new(&self.bank, tables, self.span.layers.clone())?);
        }
        Ok(())
    }

    fn layers<'a>(&'a self, config: &'a Config) -> Layers<'a> {
        let (model, layout, folds) = (&*self.model, &self.layout, self.folds.as_ref());
        let (kernels, stream, first) = (&self.kernels, &*self.stream, self.span.layers.start);
        Layers {
            model,
            first,
            kernels,
            config,
            layout,
            folds,
            #[cfg(feature = "cublas")]
            blas: self.blas.as_ref(),
            link: self.link.as_deref(),
            stream,
        }
    }

    /// A step of any number of tokens of each sequence.
    fn prompt<S: Staged>(
        &mut self,
        model: &Model,
        batch: &Batch<'_, S>,
        hidden: Option<&Hidden<'_>>,
        cancel: &CancelToken,
        observe: Option<Observer<'_>>,
    ) -> Result<Last> {
        let place = self.place(model)?;
        let (config, n) = (&place.config, batch.tokens.len());
        let mut steps = std::mem::take(&mut self.steps);
        let filled = self.fill((model, place), batch, &mut steps);
        self.steps = steps;
        filled?;
        // Parts in the order in which kernels want them, the same in all groups, and where each one's tokens are.
        let order = self.steps.first().map_or(&[][..], CudaStep::order);
        let sizes = place.sizes();
        let parcel = Parcel::of(&sizes, n, self.steps.iter().map(CudaStep::bytes), false);
        let mut shuttle = Shuttle::new(&self.heaps, parcel.bytes())?;
        let Parcel { ids: ids_at, angles: angles_at, tables: tables_at, .. } = parcel;
        let bytes = shuttle.host()?;
        let mut row_of = vec![0; n];
        {
            let starts: Vec<usize> = starts(batch);
            let (mut ids, mut angles) = (Vec::with_capacity(n), vec![0.0; n * config.rope_dims]);
            for &part in order {
                let (n, start) = (batch.parts[part].n, starts[part]);
                let first = ids.len();
                let own = start..start + n;
                for (token, row) in batch.tokens[own.clone()].iter().zip(&mut row_of[own]) {
                    *row = ids.len() as u32;
                    ids.push(token.get());
                }
                let own = first * config.rope_dims..(first + n) * config.rope_dims;
                let sequence = batch.sequences[batch.parts[part].sequence].stage(self.span.index);
                model.rope().angles(sequence.position(), n, &mut angles[own])?;
            }
            bytes[ids_at.clone()].copy_from_slice(bytemuck::cast_slice(&ids));
            bytes[angles_at.clone()].copy_from_slice(bytemuck::cast_slice(&angles));
        }
        for (step, at) in self.steps.iter().zip(&tables_at) {
            step.write(&mut bytes[at.clone()])?;
        }
        let mut attention = 0;
        for (group, step) in self.steps.iter().enumerate() {
            let shape = self.shape_of(config, group)?;
            attention = attention.max(step.scratch_len(&self.kernels, &shape)?);
        }
        let crossed = || Leased::bytes(&self.heaps.pinned, hidden_bytes(&sizes, n));
        let mut entering = (!self.span.looks_up()).then(crossed).transpose()?;
        if let Some(entering) = &mut entering {
            let rows = batch.tokens.iter().zip(&row_of);
            enter(model, hidden, rows.map(|(token, &row)| (*token, row as usize)), floats_mut(entering)?)?;
        }
        let mut crossing = (!self.span.is_last()).then(crossed).transpose()?;
        let buffers = CudaBuffers::of(&sizes, self.model.inputs(), n, attention)?;
        let mut buffers = Buffers::new(&self.heaps, n, &buffers, self.sum_bytes(n, config.n_embd))?;
        let given = (|| {
            shuttle.send(&self.stream)?;
            let mut tables = Vec::with_capacity(self.steps.len());
            for (step, at) in self.steps.iter().zip(&tables_at) {
                tables.push(Tables::Step(step.on(shuttle.part(at)?)?));
            }
            let start = match &entering {
                Some(entering) => Start::Hidden(entering.read()),
                None => Start::Ids(shuttle.part(&ids_at)?),
            };
            let inputs = Inputs { start, angles: shuttle.part(&angles_at)?, tables: &tables };
            let observe = observe.map(|observe| (observe, &self.heaps.pinned));
            self.layers(config).run(&mut buffers, &inputs, cancel, observe)?;
            if let Some(crossing) = &mut crossing {
                // SAFETY: both stay until the stream was waited for, below.
                unsafe { self.stream.copy_slice(buffers.x.read(), crossing.write()) }?;
            }
            Ok(())
        })();
        let done = given.and_then(|()| self.collect());
        // The parcel's pinned side goes back behind this.
        let end = self.wait();
        done?;
        end?;
        Ok(Last::Hidden { buffers: Box::new(buffers), row_of, crossing })
    }

    /// Tells each group's step the sequences that take part.
    fn fill<S: Staged>(
        &self,
        (model, place): (&Model, &Place),
        batch: &Batch<'_, S>,
        steps: &mut [CudaStep],
    ) -> Result<()> {
        for (group, step) in steps.iter_mut().enumerate() {
            let layer = group * self.layout.layers_per_row();
            let mut items = Vec::with_capacity(batch.parts.len());
            for part in batch.parts {
                let sequence = batch.sequences[part.sequence].stage(self.span.index);
                let cache = sequence.view(layer, sequence.len() + part.n)?;
                items.push(AttentionItem { cache, n_tokens: part.n });
            }
            let (heads, rope) = (place.config.n_heads, Some(model.rope()));
            if self.link.is_some() {
                // Hidden states of all ranks are added up token by token.
                step.fill_in_order(&self.kernels, heads, &items, rope)?;
            } else {
                step.fill(&self.kernels, heads, &items, rope)?;
            }
        }
        Ok(())
    }

    /// How a group's first layer is attended to, as far as scratch depends on it.
    fn shape_of(&self, config: &Config, group: usize) -> Result<CudaAttention<'_>> {
        let index = group * self.layout.layers_per_row();
        let (_, layout) = self.layout.layer(index)?;
        let transform = self.folds.as_ref().map_or(Ok(KvTransformTables::default()), |f| f.layer(index))?;
        let scale = 1.0 / (config.head_dim as f32).sqrt();
        Ok(CudaAttention { layout, n_heads: config.n_heads, scale, transform, splits: None })
    }

    pub(crate) fn logits(
        &mut self,
        model: &Model,
        tokens: impl Iterator<Item = usize>,
        logits: &mut PoolSlice<f32>,
        first: usize,
    ) -> Result<()> {
        let place = self.place(model)?;
        let (config, n_vocab) = (&place.config, place.config.n_vocab);
        let (buffers, row_of) = match &self.last {
            None => return Err(Error::NoLogits),
            Some(Last::Decoded) => {
                let all = self.decodes.answer()?;
                for (i, token) in tokens.enumerate() {
                    let from = all.get(rows_of(token..token + 1, n_vocab)).ok_or(Error::NoLogits)?;
                    logits.as_mut_slice()?[rows_of(first + i..first + i + 1, n_vocab)].copy_from_slice(from);
                }
                return Ok(());
            }
            Some(Last::Hidden { buffers, row_of, .. }) => (buffers, row_of),
        };
        let rows = tokens.map(|token| row_of.get(token).copied()).collect::<Option<Vec<u32>>>();
        let rows = rows.ok_or(Error::NoLogits)?;
        if rows.is_empty() {
            return Ok(());
        }
        let n = rows.len();
        let sizes = CudaLogits::of(&place.sizes(), n)?;
        let mut shuttle = Shuttle::new(&self.heaps, sizes.rows)?;
        let mut formed = Leased::bytes(&self.heaps.scratch, sizes.formed)?;
        let mut there = Leased::bytes(&self.heaps.activations, sizes.logits)?;
        shuttle.host()?.copy_from_slice(bytemuck::cast_slice(&rows));
        let at = 0..size_of_val(&rows[..]);
        let range = rows_of(first..first + n, n_vocab);
        let mut give = || -> Result<()> {
            shuttle.send(&self.stream)?;
            let rows = shuttle.part(&at)?;
            self.layers(config).output(&buffers.x, Some(rows), n, &mut formed, &mut there)?;
            let to = logits.slice_mut()?.subslice(range.start * 4..range.end * 4)?;
            // SAFETY: both stay until the stream was waited for, below.
            Ok(unsafe { self.stream.copy_slice(there.read(), to) }?)
        };
        let given = give();
        let given = given.and_then(|()| self.collect());
        let end = wait(&self.stream);
        given?;
        end?;
        self.judge()
    }

    pub(crate) fn rest(&mut self) {
        self.last = None;
    }

    pub(crate) fn room_for_logits(&self, elements: usize) -> Result<PoolSlice<f32>> {
        Ok(self.heaps.pinned.alloc_slice(elements)?)
    }

    pub(crate) fn trim(&mut self) -> Result<()> {
        self.rest();
        self.decodes.clear();
        self.heaps.trim()
    }

    pub(crate) fn memory(&self) -> EngineMemory {
        let held = |heap: &granule_pool::Heap| heap.stats().reserved;
        let folds = self.folds.as_ref().map_or(granule_device::Bytes::ZERO, Folds::held);
        EngineMemory {
            activations: held(&self.heaps.activations),
            scratch: held(&self.heaps.scratch),
            folds,
            pinned: held(&self.heaps.pinned),
        }
    }
}

/// Times that a stream is waited for, where waiting fails.
const WAITS: usize = 3;

/// Waits for all that a stream was given. An error tells of whatever failed earlier, or of the wait itself; asked again the driver
/// waits, unless the context is lost and nothing runs any more.
fn wait(stream: &Stream) -> Result<()> {
    let waited = stream.synchronize();
    let mut again = waited.is_err();
    for _ in 1..WAITS {
        again = again && stream.synchronize().is_err();
    }
    Ok(waited?)
}

impl Drop for CudaEngine {
    fn drop(&mut self) {
        // Every step was waited for; where that failed, or somebody panicked, this is before any memory goes.
        let _ = wait(&self.stream);
    }
}

/// What a stage begins with, on the host's side: the hidden states that the one before it left, or what tokens stand for; of each
/// token, into its row.
fn enter(
    model: &Model,
    hidden: Option<&Hidden<'_>>,
    tokens: impl Iterator<Item = (TokenId, usize)>,
    all: &mut [f32],
) -> Result<()> {
    let n_embd = model.config().n_embd;
    for (at, (token, row)) in tokens.enumerate() {
        let to = all.get_mut(rows_of(row..row + 1, n_embd)).ok_or(Error::NoLogits)?;
        match hidden {
            Some(hidden) => to.copy_from_slice(hidden.of(at, n_embd)?),
            None => look_up(model, std::iter::once(token), to)?,
        }
    }
    Ok(())
}

/// Where each part's tokens begin in the batch.
fn starts<S>(batch: &Batch<'_, S>) -> Vec<usize> {
    let mut end = 0;
    let start = |part: &Part| {
        end += part.n;
        end - part.n
    };
    batch.parts.iter().map(start).collect()
}
