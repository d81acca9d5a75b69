//! The Llama forward pass (Touvron et al., 2023) on a device: the operations of `granule_ops` given to one stream, in order.
//!
//! What they use stays until the stream has passed them: leases of the stream's own heaps, the model's weights, and rows of
//! sequences whose caller waits for the stream before anybody else touches them.

use granule_device::{DeviceSlice, DeviceSliceMut, Stream};
use granule_kv::KvLayout;
use granule_ops::activate::{self, CudaActivations, Form, Source};
use granule_ops::attention::{self, CudaAttention, CudaStepView};
use granule_ops::kv_append::{self, CudaAppend};
use granule_ops::product::{self, Product};
use granule_ops::{Kernels, KvTableView, KvTransformTables, embed, rope};
use granule_split::Communicator;

#[cfg(feature = "cublas")]
use super::blas::EngineBlas;
use super::folds::Folds;
use super::memory::{Buffers, Leased, not_pinned};
use super::wait;
use super::weights::{CudaLayer, CudaModel, Placed};
use crate::cancel::CancelToken;
use crate::config::Config;
use crate::engine::{Observer, spans};
use crate::error::{Error, Result};

/// The sequences of a step, as kernels read of them, of one group of layers.
#[derive(Clone, Copy)]
pub(super) enum Tables<'a> {
    /// Each sequence with the kernel that suits it.
    Step(CudaStepView<'a>),
    /// One token of each, in a table that may be written anew: what a graph has.
    Decode(KvTableView<'a>),
}

/// What the first of a stage's layers begins with.
#[derive(Clone, Copy)]
pub(super) enum Start<'a> {
    /// Token ids, u32.
    Ids(DeviceSlice<'a>),
    /// Hidden states as the stage before left them, on the host's side, in the order of rows.
    Hidden(DeviceSlice<'a>),
}

/// What a step reads.
pub(super) struct Inputs<'a> {
    pub(super) start: Start<'a>,
    /// Cosines and sines, rope_dims a token.
    pub(super) angles: DeviceSlice<'a>,
    /// By group of layers.
    pub(super) tables: &'a [Tables<'a>],
}

/// A model's layers on one stream.
pub(super) struct Layers<'a> {
    pub(super) model: &'a CudaModel,
    /// Which of all layers its first one is.
    pub(super) first: usize,
    /// The model's, with the context's own flag.
    pub(super) kernels: &'a Kernels,
    pub(super) config: &'a Config,
    pub(super) layout: &'a KvLayout,
    pub(super) folds: Option<&'a Folds>,
    /// What multiplies many tokens in place of the kernels.
    #[cfg(feature = "cublas")]
    pub(super) blas: Option<&'a EngineBlas>,
    /// Where the layers are split: what reaches the other ranks.
    pub(super) link: Option<&'a dyn Communicator>,
    pub(super) stream: &'a Stream,
}

/// The numbers that an observer is shown, on the host.
struct Shown {
    pinned: [Leased; 3],
}

impl Layers<'_> {
    fn kernels(&self) -> &Kernels {
        self.kernels
    }

    /// Gives all layers to the stream: hidden states are left in `b.x`.
    pub(super) fn run(
        &self,
        b: &mut Buffers,
        inputs: &Inputs<'_>,
        cancel: &CancelToken,
        mut observe: Option<(Observer<'_>, &granule_pool::Heap)>,
    ) -> Result<()> {
        // SAFETY: the module's promise.
        unsafe {
            match inputs.start {
                Start::Ids(ids) => {
                    let table = self.model.matrix(self.model.embedding()?)?;
                    embed::cuda(self.kernels(), self.stream, &table, ids, b.x.write())?;
                }
                Start::Hidden(rows) => self.stream.copy_slice(rows, b.x.write())?,
            }
        }
        for (index, layer) in self.model.layers.iter().enumerate() {
            if cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let _layer = spans::layer(self.first + index, self.stream.device().name());
            self.attend(index, layer, b, inputs, observe.as_mut())?;
            self.feed_forward(layer, b)?;
        }
        Ok(())
    }

    fn attend(
        &self,
        index: usize,
        layer: &CudaLayer,
        b: &mut Buffers,
        inputs: &Inputs<'_>,
        observe: Option<&mut (Observer<'_>, &granule_pool::Heap)>,
    ) -> Result<()> {
        let (config, stream) = (self.config, self.stream);
        let norm = self.norm(&b.x, self.model.vector(&layer.attn_norm)?, None);
        let products = [(&layer.attn_q, &mut b.q), (&layer.attn_k, &mut b.k), (&layer.attn_v, &mut b.v)];
        self.project(&norm, b.n, config.n_embd, &mut b.formed, products, false)?;
        let (heads, dims) = (config.n_heads, config.rope_dims);
        // SAFETY: the module's promise.
        unsafe {
            rope::cuda(self.kernels(), stream, b.q.write(), heads, config.head_dim, dims, inputs.angles)
        }?;
        if let Some((observe, heap)) = observe {
            Shown::copied(stream, heap, [&b.q, &b.k, &b.v])?.show(self.first + index, observe)?;
        }
        let (group, layout) = self.layout.layer(index)?;
        let transform = self.folds.map_or(Ok(KvTransformTables::default()), |folds| folds.layer(index))?;
        let tables = inputs.tables.get(group).ok_or(Error::NoLogits)?;
        let (each, count) = match tables {
            Tables::Step(step) => (step.tables(), 2),
            Tables::Decode(table) => ([*table, *table], 1),
        };
        let kv = config.kv_width() * size_of::<f32>();
        let mut first = 0;
        for table in each.iter().take(count) {
            let end = first + table.counts().tokens;
            let angles =
                inputs.angles.subslice(first * dims * size_of::<f32>()..end * dims * size_of::<f32>())?;
            let append = CudaAppend { layout, rope_dims: dims, angles, transform };
            let (k, v) =
                (b.k.read().subslice(first * kv..end * kv)?, b.v.read().subslice(first * kv..end * kv)?);
            // SAFETY: the module's promise; rows of the step are prepared and nobody else's.
            unsafe { kv_append::cuda(self.kernels(), stream, &append, table, k, v) }?;
            first = end;
        }
        let scale = 1.0 / (config.head_dim as f32).sqrt();
        let shape = CudaAttention { layout, n_heads: heads, scale, transform, splits: None };
        let (q, out, scratch) = (b.q.read(), b.attended.write(), b.attention.write());
        // SAFETY: the module's promise.
        unsafe {
            match tables {
                Tables::Step(step) => attention::step(self.kernels(), stream, &shape, step, q, out, scratch),
                Tables::Decode(table) => {
                    attention::cuda(self.kernels(), stream, &shape, table, q, out, scratch)
                }
            }
        }?;
        self.begin_sum(b)?;
        let attended = Source::Plain { x: b.attended.read() };
        let products = [(&layer.attn_output, &mut b.x)];
        self.project(&attended, b.n, config.q_width(), &mut b.formed, products, true)?;
        self.sum(b)
    }

    fn feed_forward(&self, layer: &CudaLayer, b: &mut Buffers) -> Result<()> {
        let Config { n_embd, n_ff, .. } = *self.config;
        let norm = self.norm(&b.x, self.model.vector(&layer.ffn_norm)?, None);
        let products = [(&layer.ffn_gate, &mut b.gate), (&layer.ffn_up, &mut b.up)];
        self.project(&norm, b.n, n_embd, &mut b.formed, products, false)?;
        self.begin_sum(b)?;
        let gated = Source::Swiglu { gate: b.gate.read(), up: b.up.read() };
        self.project(&gated, b.n, n_ff, &mut b.formed, [(&layer.ffn_down, &mut b.x)], true)?;
        self.sum(b)
    }

    /// Of all ranks only the first has the hidden states in what it adds to.
    fn begin_sum(&self, b: &mut Buffers) -> Result<()> {
        match self.link {
            // SAFETY: the module's promise.
            Some(link) if link.rank() > 0 => Ok(unsafe { self.stream.fill_slice(b.x.write(), 0) }?),
            _ => Ok(()),
        }
    }

    /// The sum of what all ranks have, where the layers are split.
    fn sum(&self, b: &mut Buffers) -> Result<()> {
        let Some(link) = self.link else { return Ok(()) };
        let Buffers { x, formed, sum, .. } = b;
        let scratch = match sum {
            Some(sum) => sum.write(),
            None => formed.write().subslice(..0)?,
        };
        // SAFETY: the module's promise.
        Ok(unsafe { link.all_reduce_on(self.stream, x.write(), scratch) }?)
    }

    /// The logits of `n` tokens of the hidden states, those that `rows` (u32) names, or the first.
    pub(super) fn output(
        &self,
        x: &Leased,
        rows: Option<DeviceSlice<'_>>,
        n: usize,
        formed: &mut Leased,
        logits: &mut Leased,
    ) -> Result<()> {
        let output = self.model.output()?;
        let norm = self.norm(x, self.model.vector(&output.norm)?, rows);
        self.project(&norm, n, self.config.n_embd, formed, [(&output.matrix, logits)], false)
    }

    fn norm<'s>(&self, x: &'s Leased, weight: DeviceSlice<'s>, rows: Option<DeviceSlice<'s>>) -> Source<'s> {
        Source::Norm { x: x.read(), weight, eps: self.config.rms_eps, rows }
    }

    /// Multiplies `n` rows of `cols` activations with each weight, in the form that its type meets them in.
    fn project<const N: usize>(
        &self,
        source: &Source<'_>,
        n: usize,
        cols: usize,
        formed: &mut Leased,
        mut products: [(&Placed, &mut Leased); N],
        adds: bool,
    ) -> Result<()> {
        for form in [Form::F32, Form::Fixed, Form::F16, Form::Bf16] {
            let mut of_form = Vec::new();
            for (weight, out) in products.iter_mut().filter(|(weight, _)| Form::of(weight.dtype, n) == form) {
                of_form.push(Product { weight: self.model.matrix(weight)?, out: out.write(), adds });
            }
            if of_form.is_empty() {
                continue;
            }
            let bytes = form.bytes(n, cols)?;
            let to: DeviceSliceMut<'_> = formed.write().subslice(..bytes)?;
            // SAFETY: the module's promise.
            unsafe { activate::cuda(self.kernels(), self.stream, source, n, cols, form, to) }?;
            let x = CudaActivations::new(form, n, cols, formed.read().subslice(..bytes)?)?;
            // SAFETY: as above.
            unsafe { self.multiply(&x, &mut of_form) }?;
        }
        Ok(())
    }

    /// # Safety
    /// As of [`product::cuda`].
    unsafe fn multiply(&self, x: &CudaActivations<'_>, products: &mut [Product<'_>]) -> Result<()> {
        #[cfg(feature = "cublas")]
        if let Some(blas) = self.blas
            && matches!(x.form(), Form::F16 | Form::Bf16)
        {
            // SAFETY: the caller's promise.
            return unsafe { blas.multiply(self.kernels(), self.stream, x, products) };
        }
        // SAFETY: as above.
        Ok(unsafe { product::cuda(self.kernels(), self.stream, x, products) }?)
    }
}

impl Shown {
    /// Copies of what the stream has come to, once it has.
    fn copied(stream: &Stream, heap: &granule_pool::Heap, from: [&Leased; 3]) -> Result<Self> {
        let room = |of: &Leased| Leased::bytes(heap, of.read().len());
        let mut pinned = [room(from[0])?, room(from[1])?, room(from[2])?];
        let copied = pinned.iter_mut().zip(from).try_for_each(|(to, from)| {
            // SAFETY: both stay until the stream was waited for, below.
            unsafe { stream.copy_slice(from.read(), to.write()) }
        });
        wait(stream)?;
        copied?;
        Ok(Self { pinned })
    }

    fn show(&self, index: usize, observe: &mut Observer<'_>) -> Result<()> {
        let [q, k, v] = &self.pinned;
        observe(index, floats(q)?, floats(k)?, floats(v)?)
    }
}

/// Pinned memory as numbers to be written, while nothing is under way to or from it.
pub(super) fn floats_mut(pinned: &mut Leased) -> Result<&mut [f32]> {
    let bytes = pinned.write().into_host_mut().ok_or_else(not_pinned)?;
    bytemuck::try_cast_slice_mut(bytes).map_err(|_| not_pinned())
}

/// The numbers of pinned memory that nothing is under way to.
pub(super) fn floats(pinned: &Leased) -> Result<&[f32]> {
    let bytes = pinned.read().as_host().ok_or_else(not_pinned)?;
    bytemuck::try_cast_slice(bytes).map_err(|_| not_pinned())
}
