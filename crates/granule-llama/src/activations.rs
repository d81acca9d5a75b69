//! The memory of a forward pass: what lies where in the two ranges that a context keeps for it.
//!
//! Sizes are functions of the model and the batch alone, so that a planner can ask for them before anything is
//! allocated. All counts are f32 elements unless they say otherwise; every array starts at a multiple of 64 bytes.

use granule_bank::{Bank, Growable, Owner};
use granule_device::Bytes;
use granule_ops::{KvRowLayout, QuantScratch, Threads, attention_scratch_len};

use crate::config::Config;
use crate::error::{Error, Result};

/// f32 elements to the next multiple of 64 bytes.
const ALIGN: usize = 16;

/// The accounts that a context's memory is held on.
pub(crate) const ACTIVATIONS: &str = "activations";
/// As above, for temporaries of single operations.
pub(crate) const SCRATCH: &str = "scratch";

/// Lengths of everything that a batch of `n_batch` tokens needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lengths {
    n_batch: usize,
    n_embd: usize,
    q_width: usize,
    kv_width: usize,
    n_ff: usize,
    rope_dims: usize,
    /// The widest row that is ever quantized.
    widest: usize,
    attention: usize,
}

impl Lengths {
    pub(crate) fn new(config: &Config, threads: &Threads, kv: &KvRowLayout, n_batch: usize) -> Self {
        Self {
            n_batch,
            n_embd: config.n_embd,
            q_width: config.q_width(),
            kv_width: config.kv_width(),
            n_ff: config.n_ff,
            rope_dims: config.rope_dims,
            widest: config.n_embd.max(config.n_ff).max(config.q_width()),
            // A batch cuts its tokens into blocks, a single token needs the least.
            attention: attention_scratch_len(threads, kv, config.n_heads, n_batch),
        }
    }

    fn activations(&self) -> [usize; 8] {
        let Self { n_batch, n_embd, q_width, kv_width, n_ff, .. } = *self;
        [n_embd, n_embd, q_width, kv_width, kv_width, q_width, n_ff, n_ff].map(|n| aligned(n_batch * n))
    }

    fn scratch(&self) -> [usize; 5] {
        let (quants, scales) = QuantScratch::lengths(self.n_batch * self.widest);
        [self.n_batch * self.rope_dims, scales, scales, quants.div_ceil(4), self.attention].map(aligned)
    }
}

fn aligned(n: usize) -> usize {
    n.next_multiple_of(ALIGN)
}

fn bytes_of(elements: usize) -> Bytes {
    Bytes::new((elements * size_of::<f32>()) as u64)
}

/// The two ranges, mapped whole when the context is made.
#[derive(Debug)]
pub(crate) struct Activations {
    lengths: Lengths,
    activations: Growable,
    scratch: Growable,
}

/// Views of both ranges for one step of `n` tokens. Each is `n` rows of the width that its name says.
pub(crate) struct Step<'a> {
    /// Hidden state, n_embd wide.
    pub(crate) x: &'a mut [f32],
    /// Normalized state, or what a projection adds to the hidden state; n_embd wide.
    pub(crate) h: &'a mut [f32],
    /// Queries, all heads.
    pub(crate) q: &'a mut [f32],
    /// New keys, all key-value heads.
    pub(crate) k: &'a mut [f32],
    /// New values.
    pub(crate) v: &'a mut [f32],
    /// Attention's result, as wide as the queries.
    pub(crate) attended: &'a mut [f32],
    /// Feed-forward gate.
    pub(crate) gate: &'a mut [f32],
    /// Feed-forward up.
    pub(crate) up: &'a mut [f32],
    /// Cosines and sines, rope_dims wide.
    pub(crate) angles: &'a mut [f32],
    /// Attention's own memory.
    pub(crate) attention: &'a mut [f32],
    /// Quantized activations of the product at hand.
    pub(crate) quant: QuantScratch<'a>,
}

impl Activations {
    /// Takes the memory for batches of up to `n_batch` tokens from the bank.
    pub(crate) fn new(bank: &Bank, lengths: Lengths) -> Result<Self> {
        let take = |owner, elements| -> Result<Growable> {
            let bytes = bytes_of(elements);
            let mut range = bank.growable(&Owner::new(owner), bytes)?;
            range.grow_to(bytes)?;
            Ok(range)
        };
        Ok(Self {
            activations: take(ACTIVATIONS, lengths.activations().iter().sum())?,
            scratch: take(SCRATCH, lengths.scratch().iter().sum())?,
            lengths,
        })
    }

    /// The most tokens of one step.
    pub(crate) fn n_batch(&self) -> usize {
        self.lengths.n_batch
    }

    /// Bytes held for activations and for scratch, in whole granules.
    pub(crate) fn held(&self) -> (Bytes, Bytes) {
        (self.activations.mapped(), self.scratch.mapped())
    }

    /// Views for `n` tokens; `n` is at most `n_batch`.
    pub(crate) fn step(&mut self, n: usize) -> Result<Step<'_>> {
        let l = self.lengths;
        let mut rest = host_f32(&mut self.activations)?;
        let mut take = |len: usize, used: usize| -> Result<&mut [f32]> { cut(&mut rest, len, used) };
        let [x, h, q, k, v, attended, gate, up] = l.activations();
        let x = take(x, n * l.n_embd)?;
        let h = take(h, n * l.n_embd)?;
        let q = take(q, n * l.q_width)?;
        let k = take(k, n * l.kv_width)?;
        let v = take(v, n * l.kv_width)?;
        let attended = take(attended, n * l.q_width)?;
        let gate = take(gate, n * l.n_ff)?;
        let up = take(up, n * l.n_ff)?;
        let mut rest = host_f32(&mut self.scratch)?;
        let mut take = |len: usize, used: usize| -> Result<&mut [f32]> { cut(&mut rest, len, used) };
        let [angles, scales, sums, quants, attention] = l.scratch();
        Ok(Step {
            x,
            h,
            q,
            k,
            v,
            attended,
            gate,
            up,
            angles: take(angles, n * l.rope_dims)?,
            quant: QuantScratch {
                scales: take(scales, scales)?,
                sums: take(sums, sums)?,
                quants: bytemuck::cast_slice_mut(take(quants, quants)?),
            },
            attention: take(attention, attention)?,
        })
    }
}

/// The mapped part of a range as f32.
pub(crate) fn host_f32(range: &mut Growable) -> Result<&mut [f32]> {
    let bytes = range
        .slice_mut(..)?
        .into_host_mut()
        .ok_or_else(|| Error::Unsupported { what: "a device whose memory the host cannot read".into() })?;
    Ok(bytemuck::cast_slice_mut(bytes))
}

/// Cuts `len` elements off the front of `rest` and returns the first `used` of them.
fn cut<'a>(rest: &mut &'a mut [f32], len: usize, used: usize) -> Result<&'a mut [f32]> {
    let whole = std::mem::take(rest);
    let missing =
        granule_ops::Error::Shape { what: "memory for activations", got: whole.len(), want: len.max(used) };
    let (front, back) = whole.split_at_mut_checked(len.max(used)).ok_or(missing)?;
    *rest = back;
    Ok(&mut front[..used])
}
