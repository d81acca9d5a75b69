//! Steps on a CUDA device: what they take, and what a context that takes them comes to hold.
//!
//! An engine takes its memory by these sizes, in this order; a plan takes the same from [dry heaps](granule_pool::DryHeap).

use std::ops::Range;
use std::sync::Arc;

use granule_kv::KvLayout;
use granule_ops::activate::{Form, PART_ALIGN};
use granule_ops::attention::{StepCounts, cuda_scratch_bytes};
use granule_ops::sample::{self, Draw, Drawn};
use granule_ops::{DeviceFacts, KvCounts, KvRowLayout};
use granule_quant::DType;
use granule_split::Communicator;

use crate::heaps::{Heaps, Leased, Which};
use crate::{Error, ModelShape};

/// Rows that a step which is replayed has room for, at least.
const LEAST_ROWS: usize = 256;
/// Steps that can be replayed of a context, at most: those that were used last.
pub const KEPT: usize = 4;

/// What activations of `n` tokens take, in bytes, in the largest of the forms in which they meet weights of these types and columns.
///
/// # Errors
/// [`Error::Ops`] for more than kernels count.
pub fn formed_bytes(weights: &[(DType, usize)], n: usize) -> Result<usize, Error> {
    let mut most = 0;
    for &(dtype, cols) in weights {
        most = most.max(Form::of(dtype, n).bytes(n, cols)?);
    }
    Ok(most)
}

/// What a step of some tokens computes with, in bytes, in the order in which the engine takes it; the last two are scratch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaBuffers {
    /// Hidden states.
    pub x: usize,
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
    /// The activations of the product at hand, in its form.
    pub formed: usize,
    /// Attention's own memory.
    pub attention: usize,
}

impl CudaBuffers {
    /// Of `n` tokens that meet weights of these types and columns; `attention` is the bytes that attention asks for.
    ///
    /// # Errors
    /// As [`formed_bytes`].
    pub fn of(
        shape: &ModelShape,
        products: &[(DType, usize)],
        n: usize,
        attention: usize,
    ) -> Result<CudaBuffers, Error> {
        let floats = |width: usize| n * width * size_of::<f32>();
        Ok(CudaBuffers {
            x: floats(shape.n_embd),
            q: floats(shape.q_width()),
            k: floats(shape.kv_width()),
            v: floats(shape.kv_width()),
            attended: floats(shape.q_width()),
            gate: floats(shape.n_ff),
            up: floats(shape.n_ff),
            formed: formed_bytes(products, n)?,
            attention: attention.next_multiple_of(PART_ALIGN),
        })
    }

    fn parts(&self) -> impl Iterator<Item = (Which, usize)> {
        let CudaBuffers { x, q, k, v, attended, gate, up, formed, attention } = *self;
        let activations = [x, q, k, v, attended, gate, up].map(|bytes| (Which::Activations, bytes));
        activations.into_iter().chain([formed, attention].map(|bytes| (Which::Scratch, bytes)))
    }
}

/// What the logits of some tokens of a step take, in bytes, in the order in which the engine takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CudaLogits {
    /// Which rows of the hidden states, on both sides: pinned, and scratch.
    pub rows: usize,
    /// The hidden states in the form that the output layer meets; scratch.
    pub formed: usize,
    /// The logits.
    pub logits: usize,
}

impl CudaLogits {
    /// Of `n` tokens.
    ///
    /// # Errors
    /// As [`formed_bytes`].
    pub fn of(shape: &ModelShape, n: usize) -> Result<CudaLogits, Error> {
        Ok(CudaLogits {
            rows: n * size_of::<u32>(),
            formed: formed_bytes(&[(shape.output, shape.n_embd)], n)?,
            logits: n * shape.n_vocab * size_of::<f32>(),
        })
    }
}

/// Bytes of the hidden states of `n` tokens, which cross between stages through pinned memory.
#[must_use]
pub fn hidden_bytes(shape: &ModelShape, n: usize) -> usize {
    n * shape.n_embd * size_of::<f32>()
}

/// The parts of what a step brings to a device in one copy, each from a multiple of 256 bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parcel {
    end: usize,
    /// Token ids, u32.
    pub ids: Range<usize>,
    /// Cosines and sines.
    pub angles: Range<usize>,
    /// What kernels read of the sequences, by group of layers.
    pub tables: Vec<Range<usize>>,
    /// How a token is drawn, where one is.
    pub draw: Option<Range<usize>>,
}

impl Parcel {
    /// Of a step of `n` tokens, with tables of so many bytes.
    pub fn of(shape: &ModelShape, n: usize, tables: impl IntoIterator<Item = usize>, draws: bool) -> Parcel {
        let mut parcel = Parcel::default();
        parcel.ids = parcel.add(n * size_of::<u32>());
        parcel.angles = parcel.add(n * shape.rope_dims * size_of::<f32>());
        parcel.tables = tables.into_iter().map(|bytes| parcel.add(bytes)).collect();
        parcel.draw = draws.then(|| parcel.add(Draw::BYTES));
        parcel
    }

    fn add(&mut self, bytes: usize) -> Range<usize> {
        let at = self.end.next_multiple_of(PART_ALIGN);
        self.end = at + bytes;
        at..self.end
    }

    /// All of it; on either side.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.end.max(1)
    }
}

/// What a step of one token of each sequence, made once to be replayed, has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Sequences.
    pub sequences: usize,
    /// Rows of the longest.
    pub rows: usize,
    /// Segments of all.
    pub segments: usize,
    /// Whether any segment may have a turn.
    pub turns: bool,
    /// Of how many logits the first sequence's next token is drawn there and then; 0: the host gets all logits.
    pub draws_of: usize,
}

impl Capacity {
    /// For sequences with so many rows, the step's own included, and segments, before the step; `turns` where any of them has one.
    #[must_use]
    pub fn of(sequences: impl Iterator<Item = (usize, usize)>, turns: bool, draws_of: usize) -> Capacity {
        let mut of = Capacity { sequences: 0, rows: LEAST_ROWS, segments: 0, turns, draws_of };
        for (rows, segments) in sequences {
            of.sequences += 1;
            of.rows = of.rows.max(rows);
            // The token of the step may begin one of its own.
            of.segments += segments + 1;
        }
        Capacity { rows: of.rows.next_power_of_two(), segments: of.segments.next_power_of_two(), ..of }
    }

    /// The same as tables count.
    #[must_use]
    pub fn counts(&self, rope_dims: usize) -> KvCounts {
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

/// What drawing a token takes, in bytes of scratch: for itself, and for its result.
pub const DRAWING: [usize; 2] = [sample::scratch_bytes(1), Drawn::BYTES];

/// The row layouts of a cache, that of the first layer of each group.
fn rows(kv: &KvLayout) -> Result<Vec<KvRowLayout>, Error> {
    let layers = (0..kv.groups()).map(|group| group * kv.layers_per_row());
    layers.map(|layer| Ok(kv.layer(layer)?.1)).collect()
}

/// Where a stage stands among the others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    /// Whether tokens are looked up here.
    pub(crate) looks_up: bool,
    /// Whether logits are computed here.
    pub(crate) is_last: bool,
}

/// A stage's engine on a CUDA device, dry.
#[derive(Debug)]
pub(crate) struct CudaRun {
    facts: DeviceFacts,
    ends: Ends,
    groups: Vec<KvRowLayout>,
    products: Vec<(DType, usize)>,
    /// Whether its layers are split: then tokens stay in their order.
    pub(crate) is_part: bool,
    /// Where its layers are split: what sums over all ranks.
    pub(crate) sums: Option<Arc<dyn Communicator>>,
    /// What the last step of many tokens computed with.
    last: Option<Vec<Leased>>,
    /// Steps that can be replayed, the last one used at the end.
    decodes: Vec<(Capacity, Vec<Leased>)>,
}

impl CudaRun {
    pub(crate) fn new(
        facts: DeviceFacts,
        ends: Ends,
        kv: &KvLayout,
        products: &[(DType, usize)],
        engine_scratch: usize,
        heaps: &mut Heaps,
    ) -> Result<CudaRun, Error> {
        if engine_scratch > 0 {
            let _ = heaps.take(Which::Scratch, engine_scratch)?;
        }
        // The flag of the step that ran last is the engine's for good.
        let _ = heaps.take(Which::Pinned, size_of::<u32>())?;
        let (groups, products) = (rows(kv)?, products.to_vec());
        Ok(CudaRun {
            facts,
            ends,
            groups,
            products,
            is_part: false,
            sums: None,
            last: None,
            decodes: Vec::new(),
        })
    }

    /// What a step of `n` tokens computes with.
    fn buffers(
        &self,
        shape: &ModelShape,
        heaps: &mut Heaps,
        n: usize,
        attention: usize,
    ) -> Result<Vec<Leased>, Error> {
        let sums = self.sums.as_ref().map_or(0, |sums| sums.scratch_bytes(n * shape.n_embd));
        let sums = (sums > 0).then_some((Which::Scratch, sums));
        take_all(heaps, CudaBuffers::of(shape, &self.products, n, attention)?.parts().chain(sums))
    }

    /// A step of sequences with so many tokens and, with those, rows.
    pub(crate) fn step(
        &mut self,
        shape: &ModelShape,
        heaps: &mut Heaps,
        parts: &[(usize, usize)],
        draws_of: usize,
    ) -> Result<(), Error> {
        self.rest(heaps);
        if parts.iter().any(|&(tokens, _)| tokens > 1) {
            return self.prompt(shape, heaps, parts);
        }
        let sequences = parts.iter().map(|&(_, rows)| (rows, usize::from(rows > 1)));
        let capacity = Capacity::of(sequences, false, if self.ends.is_last { draws_of } else { 0 });
        if let Some(at) = self.decodes.iter().position(|(known, _)| *known == capacity) {
            let known = self.decodes.remove(at);
            self.decodes.push(known);
            return Ok(());
        }
        if self.decodes.len() >= KEPT {
            heaps.give_all(self.decodes.remove(0).1);
        }
        let made = self.decode(shape, heaps, &capacity)?;
        self.decodes.push((capacity, made));
        Ok(())
    }

    fn prompt(
        &mut self,
        shape: &ModelShape,
        heaps: &mut Heaps,
        parts: &[(usize, usize)],
    ) -> Result<(), Error> {
        let n = parts.iter().map(|(tokens, _)| tokens).sum();
        let (mut tables, mut attention) = (Vec::with_capacity(self.groups.len()), 0);
        for row in &self.groups {
            let of = if self.is_part { StepCounts::in_order } else { StepCounts::of };
            let counts = of(&self.facts, row, shape.n_heads, parts)?;
            tables.push(counts.bytes());
            attention = attention.max(counts.scratch_bytes(&self.facts, row, shape.n_heads)?);
        }
        let parcel = Parcel::of(shape, n, tables, false).bytes();
        let shuttle = take_all(heaps, [(Which::Pinned, parcel), (Which::Scratch, parcel)])?;
        let hidden = (Which::Pinned, hidden_bytes(shape, n));
        let entering = take_all(heaps, (!self.ends.looks_up).then_some(hidden))?;
        let crossing = take_all(heaps, (!self.ends.is_last).then_some(hidden))?;
        let mut left = self.buffers(shape, heaps, n, attention)?;
        heaps.give_all(entering.into_iter().chain(shuttle));
        left.extend(crossing);
        self.last = Some(left);
        Ok(())
    }

    /// The memory of a step that can be replayed, in the order in which it is given back.
    fn decode(
        &self,
        shape: &ModelShape,
        heaps: &mut Heaps,
        capacity: &Capacity,
    ) -> Result<Vec<Leased>, Error> {
        let (n, draws) = (capacity.sequences, capacity.draws_of > 0);
        let counts = capacity.counts(shape.rope_dims);
        let mut attention = 0;
        for row in &self.groups {
            attention = attention.max(cuda_scratch_bytes(&self.facts, row, shape.n_heads, &counts)?);
        }
        let drawing = DRAWING.into_iter().filter(|_| draws).map(|bytes| (Which::Scratch, bytes));
        let drawing = take_all(heaps, drawing)?;
        let CudaLogits { formed, logits, .. } = CudaLogits::of(shape, n)?;
        let output = [(Which::Scratch, formed), (Which::Activations, logits)];
        let output = take_all(heaps, output.into_iter().filter(|_| self.ends.is_last))?;
        let parcel = Parcel::of(shape, n, self.groups.iter().map(|_| counts.bytes()), draws).bytes();
        let mut all = take_all(heaps, [(Which::Pinned, parcel), (Which::Scratch, parcel)])?;
        let hidden = hidden_bytes(shape, n);
        all.extend(take_all(heaps, (!self.ends.looks_up).then_some((Which::Pinned, hidden)))?);
        all.extend(self.buffers(shape, heaps, n, attention)?);
        let answer = match (draws, self.ends.is_last) {
            (true, _) => Drawn::BYTES,
            (false, true) => logits,
            (false, false) => hidden,
        };
        let answer = heaps.take(Which::Pinned, answer)?;
        all.extend(output.into_iter().chain(drawing).chain([answer]));
        Ok(all)
    }

    /// The logits of `n` tokens of the last step.
    pub(crate) fn logits(&mut self, shape: &ModelShape, heaps: &mut Heaps, n: usize) -> Result<(), Error> {
        if self.last.is_none() || n == 0 {
            return Ok(());
        }
        let CudaLogits { rows, formed, logits } = CudaLogits::of(shape, n)?;
        let shuttle = take_all(heaps, [(Which::Pinned, rows), (Which::Scratch, rows)])?;
        let there = take_all(heaps, [(Which::Scratch, formed), (Which::Activations, logits)])?;
        heaps.give_all(there.into_iter().rev().chain(shuttle));
        Ok(())
    }

    pub(crate) fn rest(&mut self, heaps: &mut Heaps) {
        heaps.give_all(self.last.take().into_iter().flatten());
    }
}

fn take_all(
    heaps: &mut Heaps,
    sizes: impl IntoIterator<Item = (Which, usize)>,
) -> Result<Vec<Leased>, Error> {
    sizes.into_iter().map(|(which, bytes)| heaps.take(which, bytes)).collect()
}
