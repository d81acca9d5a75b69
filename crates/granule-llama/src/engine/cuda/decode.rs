//! Steps of one token of each sequence, captured once for each shape and replayed: one launch a step.
//!
//! Nothing that a graph has moves: its buffers are its own, weights and tables stay where they are, and the addresses of rows are
//! in a table that each step writes anew. What kernels are told by their launch (grids, scratch, how far contexts are cut) is made
//! for a capacity, so a graph serves every step that fits it: as many sequences, contexts up to the next power of two.

use granule_device::ExecutableGraph;
use granule_ops::KvTable;
use granule_ops::attention::cuda_scratch_len;
use granule_ops::sample::{self, Draw, Drawn};
use granule_plan::cuda::{Capacity, CudaBuffers, CudaLogits, DRAWING, KEPT, Parcel, hidden_bytes};

use super::layers::{Inputs, Start, Tables, floats, floats_mut};
use super::memory::{Buffers, Leased, PartOfParcel, Shuttle, not_pinned};
use super::{CudaEngine, Last, enter, wait};
use crate::cancel::CancelToken;
use crate::engine::{Batch, Hidden, Staged};
use crate::error::{Error, Result};
use crate::model::Model;

/// What a graph has to have room for: the sequences of a batch, in a stage.
fn capacity_of<S: Staged>(batch: &Batch<'_, S>, stage: usize, draws_of: usize) -> Capacity {
    let sequences = || batch.parts.iter().map(|part| batch.sequences[part.sequence].stage(stage));
    let turns = sequences().any(|sequence| sequence.segments().iter().any(|segment| segment.turn != 0));
    let sizes = sequences().map(|sequence| (sequence.len() + 1, sequence.segments().len()));
    Capacity::of(sizes, turns, draws_of)
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
    /// Where another stage comes before: its hidden states, on the host's side.
    entering: Option<Leased>,
    buffers: Buffers,
    /// Where this stage is the last one: the output layer's activations, and the logits.
    output: Option<(Leased, Leased)>,
    /// Where a token is drawn: how, in the shuttle; what drawing needs; and what it gives.
    draws: Option<(PartOfParcel, Leased, Leased)>,
    /// Where the host reads the logits of all sequences, or what was drawn; or the hidden states, for the next stage.
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

    /// The logits of the step that ran last, or its hidden states for the next stage, on the host.
    pub(super) fn answer(&self) -> Result<&[f32]> {
        floats(&self.0.last().filter(|last| last.draws.is_none()).ok_or(Error::NoLogits)?.answer)
    }

    /// The logits of the step that ran last, on the device.
    pub(super) fn logits_there(&self) -> Result<&Leased> {
        let output = self.0.last().and_then(|last| last.output.as_ref());
        output.map(|(_, logits)| logits).ok_or(Error::NoLogits)
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
    pub(super) fn decode<S: Staged>(
        &mut self,
        model: &Model,
        batch: &Batch<'_, S>,
        hidden: Option<&Hidden<'_>>,
        cancel: &CancelToken,
        draw: Option<(&Draw, usize)>,
    ) -> Result<Last> {
        let capacity = capacity_of(batch, self.span.index, draw.map_or(0, |(_, n)| n));
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
        let done = self.run(model, batch, hidden, &mut decode, cancel, draw.map(|(draw, _)| draw));
        if done.is_err() {
            // Its memory goes back, which the stream may still use.
            let _ = wait(&self.stream);
        } else {
            self.decodes.0.push(decode);
        }
        done.map(|()| Last::Decoded)
    }

    fn new_decode(&self, model: &Model, capacity: Capacity) -> Result<Decode> {
        let place = self.place(model)?;
        let (config, sizes, n) = (&place.config, place.sizes(), capacity.sequences);
        let counts = capacity.counts(config.rope_dims);
        let tables: Vec<KvTable> =
            (0..self.layout.groups()).map(|_| KvTable::with_capacity(counts)).collect();
        let parcel = Parcel::of(&sizes, n, tables.iter().map(KvTable::bytes), capacity.draws_of > 0);
        let bytes = parcel.bytes();
        let Parcel { ids: ids_at, angles: angles_at, tables: tables_at, draw, .. } = parcel;
        let drawing = |draw| -> Result<_> {
            let room = |bytes| Leased::bytes(&self.heaps.scratch, bytes);
            Ok((draw, room(DRAWING[0])?, room(DRAWING[1])?))
        };
        let draws = draw.map(drawing).transpose()?;
        let mut attention = 0;
        for (group, table) in tables.iter().enumerate() {
            let shape = self.shape_of(config, group)?;
            attention = attention.max(cuda_scratch_len(&self.kernels, &shape, table.counts())?);
        }
        let (logits, hidden) = (CudaLogits::of(&sizes, n)?, hidden_bytes(&sizes, n));
        let output = self.span.is_last().then(|| -> Result<_> {
            let formed = Leased::bytes(&self.heaps.scratch, logits.formed)?;
            Ok((formed, Leased::bytes(&self.heaps.activations, logits.logits)?))
        });
        let output = output.transpose()?;
        let pinned = |bytes| Leased::bytes(&self.heaps.pinned, bytes);
        let buffers = CudaBuffers::of(&sizes, self.model.inputs(), n, attention)?;
        Ok(Decode {
            capacity,
            graph: None,
            tables,
            tables_at,
            ids_at,
            angles_at,
            shuttle: Shuttle::new(&self.heaps, bytes)?,
            entering: (!self.span.looks_up()).then(|| pinned(hidden)).transpose()?,
            buffers: Buffers::new(&self.heaps, n, &buffers, self.sum_bytes(n, config.n_embd))?,
            answer: match (&draws, &output) {
                (Some(_), _) => pinned(Drawn::BYTES)?,
                (None, Some(_)) => pinned(logits.logits)?,
                (None, None) => pinned(hidden)?,
            },
            output,
            draws,
            has_run: false,
        })
    }

    fn run<S: Staged>(
        &mut self,
        model: &Model,
        batch: &Batch<'_, S>,
        hidden: Option<&Hidden<'_>>,
        decode: &mut Decode,
        cancel: &CancelToken,
        draw: Option<&Draw>,
    ) -> Result<()> {
        let dims = model.config().rope_dims;
        for (group, table) in decode.tables.iter_mut().enumerate() {
            let layer = group * self.layout.layers_per_row();
            table.clear();
            for part in batch.parts {
                let sequence = batch.sequences[part.sequence].stage(self.span.index);
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
            let sequence = batch.sequences[part.sequence].stage(self.span.index);
            model.rope().angles(sequence.position(), 1, angles)?;
        }
        for (table, at) in decode.tables.iter().zip(&decode.tables_at) {
            table.write(&mut bytes[at.clone()])?;
        }
        if let Some(entering) = &mut decode.entering {
            let tokens = batch.tokens.iter().enumerate().map(|(row, token)| (*token, row));
            enter(model, hidden, tokens, floats_mut(entering)?)?;
        }
        if let (Some((at, ..)), Some(draw)) = (&decode.draws, draw) {
            bytes[at.clone()].copy_from_slice(&draw.to_bytes());
        }
        if self.how.graphs && decode.graph.is_none() && decode.has_run {
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
        let Decode { tables, tables_at, ids_at, angles_at, shuttle, entering, buffers, output, .. } = decode;
        let Decode { capacity, draws, answer, .. } = decode;
        shuttle.send(&self.stream)?;
        let mut views = Vec::with_capacity(tables.len());
        for (table, at) in tables.iter().zip(tables_at) {
            views.push(Tables::Decode(table.on(shuttle.part(at)?)?));
        }
        let start = match entering {
            Some(entering) => Start::Hidden(entering.read()),
            None => Start::Ids(shuttle.part(ids_at)?),
        };
        let inputs = Inputs { start, angles: shuttle.part(angles_at)?, tables: &views };
        let layers = self.layers(&self.place(model)?.config);
        layers.run(buffers, &inputs, cancel, None)?;
        if let Some((formed, logits)) = output {
            layers.output(&buffers.x, None, buffers.n, formed, logits)?;
        }
        let result = match (draws, output) {
            (_, None) => &mut buffers.x,
            (None, Some((_, logits))) => logits,
            (Some((at, scratch, drawn)), Some((_, logits))) => {
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
