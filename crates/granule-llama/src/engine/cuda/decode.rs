//! Steps of one token of each sequence, captured once for each shape and replayed: one launch a step.
//!
//! Nothing that a graph has moves: its buffers are its own, weights and tables stay where they are, and the addresses of rows are
//! in a table that each step writes anew. What kernels are told by their launch (grids, scratch, how far contexts are cut) is made
//! for a capacity, so a graph serves every step that fits it: as many sequences, contexts up to the next power of two.

use std::borrow::BorrowMut;

use granule_device::ExecutableGraph;
use granule_kv::Sequence;
use granule_ops::attention::cuda_scratch_len;
use granule_ops::sample::{self, Draw, Drawn};
use granule_ops::{KvCounts, KvTable};

use super::layers::{Inputs, Tables, floats};
use super::memory::{Buffers, Leased, Parcel, PartOfParcel, Shuttle, formed_bytes, not_pinned};
use super::{CudaEngine, Last, wait};
use crate::cancel::CancelToken;
use crate::engine::Batch;
use crate::error::{Error, Result};
use crate::model::Model;

/// Rows that a graph has room for, at least.
const LEAST_ROWS: usize = 256;
/// Graphs that are kept: those that were used last.
const KEPT: usize = 4;

/// What a graph has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Capacity {
    sequences: usize,
    /// Of the longest.
    rows: usize,
    /// Of all.
    segments: usize,
    /// Whether any segment may have a turn.
    turns: bool,
    /// Of how many logits the first sequence's next token is drawn there and then; 0: the host gets all logits.
    draws_of: usize,
}

impl Capacity {
    /// For the sequences of a batch.
    fn of<S: BorrowMut<Sequence>>(batch: &Batch<'_, S>, draws_of: usize) -> Self {
        let (mut rows, mut segments, mut turns) = (LEAST_ROWS, 0, false);
        for part in batch.parts {
            let sequence: &Sequence = batch.sequences[part.sequence].borrow();
            rows = rows.max(sequence.len() + 1);
            // The token of the step may begin one of its own.
            segments += sequence.segments().len() + 1;
            turns |= sequence.segments().iter().any(|segment| segment.turn != 0);
        }
        let (rows, segments) = (rows.next_power_of_two(), segments.next_power_of_two());
        Self { sequences: batch.parts.len(), rows, segments, turns, draws_of }
    }

    fn counts(&self, rope_dims: usize) -> KvCounts {
        let mut counts = KvCounts::default();
        counts.sequences = self.sequences;
        counts.segments = self.segments;
        counts.tokens = self.sequences;
        counts.most_tokens = 1;
        counts.most_rows = self.rows;
        counts.turned = self.segments;
        counts.turn_dims = if self.turns { rope_dims } else { 0 };
        counts
    }
}

/// A step that can be replayed, and all of its memory.
#[derive(Debug)]
struct Decode {
    capacity: Capacity,
    /// None until it has run once: what a graph is to hold has to be loaded.
    graph: Option<ExecutableGraph>,
    tables: Vec<KvTable>,
    tables_at: Vec<PartOfParcel>,
    ids_at: PartOfParcel,
    angles_at: PartOfParcel,
    shuttle: Shuttle,
    buffers: Buffers,
    formed: Leased,
    logits: Leased,
    /// Where a token is drawn: how, in the shuttle; what drawing needs; and what it gives.
    draws: Option<(PartOfParcel, Leased, Leased)>,
    /// Where the host reads the logits of all sequences, or what was drawn.
    answer: Leased,
    has_run: bool,
}

/// The steps that an engine can replay, the last one used at the end.
#[derive(Debug, Default)]
pub(super) struct Decodes(Vec<Decode>);

impl Decodes {
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The logits of the step that ran last, on the host.
    pub(super) fn logits(&self) -> Result<&[f32]> {
        floats(&self.0.last().filter(|last| last.draws.is_none()).ok_or(Error::NoLogits)?.answer)
    }

    /// The same on the device.
    pub(super) fn logits_there(&self) -> Result<&Leased> {
        Ok(&self.0.last().ok_or(Error::NoLogits)?.logits)
    }

    /// What the step that ran last has drawn.
    pub(super) fn drawn(&self) -> Result<Drawn> {
        let last = self.0.last().filter(|last| last.draws.is_some()).ok_or(Error::NoLogits)?;
        let answer = last.answer.read().as_host().ok_or_else(not_pinned)?;
        Drawn::of(answer, 0).ok_or(Error::NoLogits)
    }
}

impl CudaEngine {
    /// A step of one token of each sequence, with its logits; or, where `draw` says how and of how many logits, of one sequence with
    /// the token that is drawn behind it.
    pub(super) fn decode<S: BorrowMut<Sequence>>(
        &mut self,
        model: &Model,
        batch: &Batch<'_, S>,
        cancel: &CancelToken,
        draw: Option<(&Draw, usize)>,
    ) -> Result<Last> {
        let capacity = Capacity::of(batch, draw.map_or(0, |(_, n)| n));
        let known = self.decodes.0.iter().position(|decode| decode.capacity == capacity);
        let mut decode = match known {
            Some(at) => self.decodes.0.remove(at),
            None => {
                if self.decodes.0.len() >= KEPT {
                    self.decodes.0.remove(0);
                }
                self.new_decode(model, capacity)?
            }
        };
        let done = self.run(model, batch, &mut decode, cancel, draw.map(|(draw, _)| draw));
        if done.is_err() {
            // Its memory goes back, which the stream may still use.
            let _ = wait(&self.stream);
        } else {
            self.decodes.0.push(decode);
        }
        done.map(|()| Last::Logits)
    }

    fn new_decode(&self, model: &Model, capacity: Capacity) -> Result<Decode> {
        let (config, n) = (model.config(), capacity.sequences);
        let counts = capacity.counts(config.rope_dims);
        let mut parcel = Parcel::default();
        let ids_at = parcel.add(n * size_of::<u32>());
        let angles_at = parcel.add(n * config.rope_dims * size_of::<f32>());
        let tables: Vec<KvTable> =
            (0..self.layout.groups()).map(|_| KvTable::with_capacity(counts)).collect();
        let tables_at = tables.iter().map(|table| parcel.add(table.bytes())).collect();
        let draws = if capacity.draws_of > 0 {
            let room = |bytes| Leased::bytes(&self.heaps.scratch, bytes);
            Some((parcel.add(Draw::BYTES), room(sample::scratch_bytes(1))?, room(Drawn::BYTES)?))
        } else {
            None
        };
        let mut attention = 0;
        for (group, table) in tables.iter().enumerate() {
            let shape = self.shape_of(config, group)?;
            attention = attention.max(cuda_scratch_len(&self.kernels, &shape, table.counts())?);
        }
        let logits = n * config.n_vocab;
        Ok(Decode {
            capacity,
            graph: None,
            tables,
            tables_at,
            ids_at,
            angles_at,
            shuttle: Shuttle::new(&self.heaps, parcel.bytes())?,
            buffers: Buffers::new(&self.heaps, config, &self.model, n, attention)?,
            formed: Leased::bytes(&self.heaps.scratch, formed_bytes(&self.model.outputs(), n)?)?,
            logits: Leased::floats(&self.heaps.activations, logits)?,
            answer: match draws {
                Some(_) => Leased::bytes(&self.heaps.pinned, Drawn::BYTES)?,
                None => Leased::floats(&self.heaps.pinned, logits)?,
            },
            draws,
            has_run: false,
        })
    }

    fn run<S: BorrowMut<Sequence>>(
        &mut self,
        model: &Model,
        batch: &Batch<'_, S>,
        decode: &mut Decode,
        cancel: &CancelToken,
        draw: Option<&Draw>,
    ) -> Result<()> {
        let dims = model.config().rope_dims;
        for (group, table) in decode.tables.iter_mut().enumerate() {
            let layer = group * self.layout.layers_per_row();
            table.clear();
            for part in batch.parts {
                let sequence: &Sequence = batch.sequences[part.sequence].borrow();
                table.push(&sequence.view(layer, sequence.len() + 1)?, 1, Some(model.rope()))?;
            }
        }
        let bytes = decode.shuttle.host()?;
        let ids: &mut [u32] =
            bytemuck::try_cast_slice_mut(&mut bytes[decode.ids_at.clone()]).map_err(|_| not_pinned())?;
        ids.iter_mut().zip(batch.tokens).for_each(|(id, token)| *id = token.get());
        let angles: &mut [f32] =
            bytemuck::try_cast_slice_mut(&mut bytes[decode.angles_at.clone()]).map_err(|_| not_pinned())?;
        for (part, angles) in batch.parts.iter().zip(angles.chunks_exact_mut(dims.max(1))) {
            let sequence: &Sequence = batch.sequences[part.sequence].borrow();
            model.rope().angles(sequence.position(), 1, angles)?;
        }
        for (table, at) in decode.tables.iter().zip(&decode.tables_at) {
            table.write(&mut bytes[at.clone()])?;
        }
        if let (Some((at, ..)), Some(draw)) = (&decode.draws, draw) {
            bytes[at.clone()].copy_from_slice(&draw.to_bytes());
        }
        if decode.graph.is_none() && decode.has_run {
            decode.graph = self.capture(model, decode)?;
        }
        match &decode.graph {
            // SAFETY: what was captured is the graph's own memory and the model's, which stay; the rows that its table names
            // are prepared, and whoever called waits for the stream before anybody else touches any of it.
            Some(graph) => unsafe { graph.launch(&self.stream) }?,
            None => self.give(model, decode, cancel)?,
        }
        decode.has_run = true;
        Ok(())
    }

    /// The step as a graph; `None` while another context is being captured, which does not go together: then the step is given as
    /// it is, and captured some other time.
    fn capture(&mut self, model: &Model, decode: &mut Decode) -> Result<Option<ExecutableGraph>> {
        match self.stream.begin_capture() {
            Err(granule_device::Error::Capturing { .. }) => return Ok(None),
            begun => begun?,
        }
        // Whoever cancels hears of it when the graph has run: half of it is of no use.
        let given = self.give(model, decode, &CancelToken::default());
        let graph = match self.stream.end_capture().or_else(|_| self.stream.end_capture()) {
            Ok(graph) => graph,
            Err(error) => {
                // A stream that stays captured runs nothing any more, and keeps others from much.
                self.renew()?;
                return Err(error.into());
            }
        };
        given?;
        match graph.instantiate() {
            Err(granule_device::Error::Capturing { .. }) => Ok(None),
            made => Ok(Some(made?)),
        }
    }

    /// Gives the stream all of a step.
    fn give(&mut self, model: &Model, decode: &mut Decode, cancel: &CancelToken) -> Result<()> {
        let Decode { tables, tables_at, ids_at, angles_at, shuttle, buffers, formed, logits, .. } = decode;
        let Decode { capacity, draws, answer, .. } = decode;
        shuttle.send(&self.stream)?;
        let mut views = Vec::with_capacity(tables.len());
        for (table, at) in tables.iter().zip(tables_at) {
            views.push(Tables::Decode(table.on(shuttle.part(at)?)?));
        }
        let inputs = Inputs { ids: shuttle.part(ids_at)?, angles: shuttle.part(angles_at)?, tables: &views };
        let layers = self.layers(model.config());
        layers.run(buffers, &inputs, cancel, None)?;
        layers.output(&buffers.x, None, buffers.n, formed, logits)?;
        let result = match draws {
            None => logits,
            Some((at, scratch, drawn)) => {
                let n = capacity.draws_of;
                let (of, how) = (logits.read().subslice(..n * size_of::<f32>())?, Some(shuttle.part(at)?));
                let (kernels, scratch, to) = (&self.kernels, scratch.write(), drawn.write());
                // SAFETY: all of it is the step's own, which stays until the stream was waited for.
                unsafe { sample::cuda(kernels, &self.stream, of, 1, n, how, scratch, to) }?;
                drawn
            }
        };
        // SAFETY: as above.
        unsafe { self.stream.copy_slice(result.read(), answer.write()) }?;
        self.collect()
    }
}
