//! One step's sequences on a CUDA device, each given to the kernel that suits it: the one entry point for engines.

use granule_device::{DeviceSlice, DeviceSliceMut, Stream};

use super::cuda::{CudaAttention, cuda, cuda_scratch_bytes, cuda_scratch_len};
use super::{AttentionItem, check_heads};
use crate::error::expect_len;
use crate::kv_table::WIDE;
use crate::{
    DeviceFacts, Error, Kernels, KvCounts, KvRowLayout, KvTable, KvTableView, Rope, attention_prefill,
};

/// The sequences of a step in two tables: those with `few` query tokens, which [`attention::cuda`](cuda) takes, and those with
/// `many`, for [`attention_prefill::cuda`]. Fill it once a step; it serves all layers of a group.
///
/// The choice is made for each sequence, so that a prompt in a batch does not take the sequences that decode along. The rule: a
/// sequence goes to the kernel for prompts where that has its head dimension and at least 64 rows of queries (tokens times
/// query heads of a KV head; half of a thread block's) are there, and where the device is busy with it: the context is 1,024
/// rows or less, or all such sequences make at least a quarter as many thread blocks (of 128 rows, for each KV head) as there
/// are multiprocessors. That kernel reads each key once for 128 rows but does not split the context; with fewer blocks the other
/// one, which does, is done sooner, though it reads the same keys once for each 8 rows. The numbers are reasoned from what both
/// kernels take, until they are measured: no GPU has seen them yet.
#[derive(Clone, Debug, Default)]
pub struct CudaStep {
    few: KvTable,
    many: KvTable,
    order: Vec<usize>,
}

impl CudaStep {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the sequences of a step, in place of those that it had: `items` as [`attention::cpu`](super::cpu) takes them, with
    /// the step's own tokens in the caches. `rope` is the model's rotation: needed where a segment has a turn.
    ///
    /// # Errors
    /// As [`KvTable::push`], and [`Error::Dimension`] where the query heads are no multiple of the key-value heads. It is empty
    /// then.
    pub fn fill(
        &mut self,
        kernels: &Kernels,
        n_heads: usize,
        items: &[AttentionItem<'_>],
        rope: Option<&Rope>,
    ) -> Result<(), Error> {
        let done = self.try_fill(&kernels.facts(), n_heads, items, rope, false);
        if done.is_err() {
            self.clear();
        }
        done
    }

    /// As [`CudaStep::fill`], with the tokens in the order of `items` whatever suits each of them: where other devices compute parts of the
    /// same tokens, and order theirs by what suits them.
    ///
    /// # Errors
    /// As [`CudaStep::fill`].
    pub fn fill_in_order(
        &mut self,
        kernels: &Kernels,
        n_heads: usize,
        items: &[AttentionItem<'_>],
        rope: Option<&Rope>,
    ) -> Result<(), Error> {
        let done = self.try_fill(&kernels.facts(), n_heads, items, rope, true);
        if done.is_err() {
            self.clear();
        }
        done
    }

    fn clear(&mut self) {
        self.few.clear();
        self.many.clear();
        self.order.clear();
    }

    fn try_fill(
        &mut self,
        facts: &DeviceFacts,
        n_heads: usize,
        items: &[AttentionItem<'_>],
        rope: Option<&Rope>,
        in_order: bool,
    ) -> Result<(), Error> {
        self.clear();
        let Some(first) = items.first() else { return Ok(()) };
        let layout = first.cache.layout();
        check_heads(n_heads, layout)?;
        let choice = attention_prefill::Choice::of(
            layout,
            n_heads,
            facts.multiprocessors,
            items.iter().map(|item| (item.n_tokens, item.cache.len())),
        );
        let takes = |item: &AttentionItem<'_>| choice.takes(item.n_tokens, item.cache.len());
        // All of them in one table are in their order.
        let together = in_order && !items.iter().all(takes);
        for many in [false, true] {
            for (i, item) in items.iter().enumerate() {
                let AttentionItem { cache, n_tokens } = item;
                if (takes(item) && !together) == many {
                    (if many { &mut self.many } else { &mut self.few }).push(cache, *n_tokens, rope)?;
                    self.order.push(i);
                }
            }
        }
        Ok(())
    }

    /// The numbers of the sequences as they were given, in the order in which queries, new keys and values, and results stand:
    /// first those with few tokens, each in the order given.
    #[must_use]
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// Bytes of device memory that both tables take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.counts().bytes()
    }

    fn counts(&self) -> StepCounts {
        StepCounts { few: *self.few.counts(), many: *self.many.counts() }
    }

    fn many_at(&self) -> usize {
        self.counts().many_at()
    }

    /// Writes what device memory is to hold.
    ///
    /// # Errors
    /// [`Error::Shape`] where `to` is not [`CudaStep::bytes`] long.
    pub fn write(&self, to: &mut [u8]) -> Result<(), Error> {
        expect_len("bytes of a step's tables", to.len(), self.bytes())?;
        let (few, many) = to.split_at_mut(self.many_at());
        self.few.write(&mut few[..self.few.bytes()])?;
        self.many.write(many)
    }

    /// The tables in device memory that holds, or will hold when the kernels run, what [`CudaStep::write`] gives.
    ///
    /// # Errors
    /// As [`KvTable::on`].
    pub fn on<'a>(&self, memory: DeviceSlice<'a>) -> Result<CudaStepView<'a>, Error> {
        let many = memory.subslice(self.many_at()..)?;
        Ok(CudaStepView { few: self.few.on(memory)?, many: self.many.on(many)? })
    }

    /// Bytes of scratch that [`step`] needs.
    ///
    /// # Errors
    /// As [`cuda_scratch_len`].
    pub fn scratch_len(&self, kernels: &Kernels, shape: &CudaAttention<'_>) -> Result<usize, Error> {
        cuda_scratch_len(kernels, shape, self.few.counts())
    }
}

/// How much is in the two tables of a [`CudaStep`]: what its memory is measured by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepCounts {
    few: KvCounts,
    many: KvCounts,
}

impl StepCounts {
    /// Of a step whose sequences have so many query tokens and rows (those of the query tokens included), each of them one segment
    /// without a turn, as sequences are until tokens are removed from them: what [`CudaStep::fill`] comes to on a device with these
    /// facts.
    ///
    /// # Errors
    /// [`Error::Dimension`] where the query heads are no multiple of the key-value heads.
    pub fn of(
        facts: &DeviceFacts,
        layout: &KvRowLayout,
        n_heads: usize,
        sequences: &[(usize, usize)],
    ) -> Result<StepCounts, Error> {
        StepCounts::new(facts, layout, n_heads, sequences, false)
    }

    /// As [`StepCounts::of`], of [`CudaStep::fill_in_order`].
    ///
    /// # Errors
    /// As [`StepCounts::of`].
    pub fn in_order(
        facts: &DeviceFacts,
        layout: &KvRowLayout,
        n_heads: usize,
        sequences: &[(usize, usize)],
    ) -> Result<StepCounts, Error> {
        StepCounts::new(facts, layout, n_heads, sequences, true)
    }

    fn new(
        facts: &DeviceFacts,
        layout: &KvRowLayout,
        n_heads: usize,
        sequences: &[(usize, usize)],
        in_order: bool,
    ) -> Result<StepCounts, Error> {
        check_heads(n_heads, layout)?;
        let choice =
            attention_prefill::Choice::of(layout, n_heads, facts.multiprocessors, sequences.iter().copied());
        let mut counts = StepCounts::default();
        let together = in_order && !sequences.iter().all(|&(tokens, rows)| choice.takes(tokens, rows));
        for &(tokens, rows) in sequences {
            let table =
                if choice.takes(tokens, rows) && !together { &mut counts.many } else { &mut counts.few };
            *table = table.and(tokens, rows, 1);
        }
        Ok(counts)
    }

    /// Bytes of device memory that both tables take: [`CudaStep::bytes`].
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.many_at() + self.many.bytes()
    }

    fn many_at(&self) -> usize {
        self.few.bytes().next_multiple_of(WIDE)
    }

    /// Bytes of scratch that [`step`] needs: [`CudaStep::scratch_len`].
    ///
    /// # Errors
    /// As [`cuda_scratch_len`].
    pub fn scratch_bytes(
        &self,
        facts: &DeviceFacts,
        layout: &KvRowLayout,
        n_heads: usize,
    ) -> Result<usize, Error> {
        cuda_scratch_bytes(facts, layout, n_heads, &self.few)
    }
}

/// A [`CudaStep`] in device memory.
#[derive(Clone, Copy, Debug)]
pub struct CudaStepView<'a> {
    few: KvTableView<'a>,
    many: KvTableView<'a>,
}

impl<'a> CudaStepView<'a> {
    /// The tables, for [`kv_append::cuda`](crate::kv_append::cuda): of the sequences with few tokens, whose queries, keys and
    /// values come first (as many tokens as its counts say), and of the others.
    #[must_use]
    pub fn tables(&self) -> [KvTableView<'a>; 2] {
        [self.few, self.many]
    }
}

/// Attention of a step's queries, each sequence's by the kernel that suits it: up to three launches for those with few tokens,
/// one for those with many. `q` and `out` are query tokens x heads x head dim, f32, in [`CudaStep::order`]; `scratch` has at
/// least [`CudaStep::scratch_len`] bytes. Promises of both kernels stand with [`attention::cuda`](cuda) and
/// [`attention_prefill::cuda`].
///
/// # Errors
/// As theirs. Where the second refuses, what the first was given runs.
///
/// # Safety
/// As theirs.
pub unsafe fn step(
    kernels: &Kernels,
    stream: &Stream,
    shape: &CudaAttention<'_>,
    step: &CudaStepView<'_>,
    q: DeviceSlice<'_>,
    out: DeviceSliceMut<'_>,
    scratch: DeviceSliceMut<'_>,
) -> Result<(), Error> {
    let row = shape.n_heads * shape.layout.head_dim * size_of::<f32>();
    let tokens = step.tables().map(|table| table.counts().tokens);
    expect_len("queries", q.len(), (tokens[0] + tokens[1]) * row)?;
    expect_len("attention output", out.len(), q.len())?;
    let (q, q_many) = q.split_at(tokens[0] * row)?;
    let (out, out_many) = out.split_at(tokens[0] * row)?;
    if tokens[0] > 0 {
        // SAFETY: the caller's promise.
        unsafe { cuda(kernels, stream, shape, &step.few, q, out, scratch) }?;
    }
    if tokens[1] > 0 {
        // SAFETY: the caller's promise.
        unsafe { attention_prefill::cuda(kernels, stream, shape, &step.many, q_many, out_many) }?;
    }
    Ok(())
}
