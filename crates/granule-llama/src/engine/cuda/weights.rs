//! A model's weights on a device: in planes, all of them behind one range of granules, and the kernels that read them.

use std::ops::Range;
use std::sync::Arc;
#[cfg(feature = "cublas")]
use std::sync::{Mutex, PoisonError};

use granule_bank::{Bank, Growable, Owner};
#[cfg(feature = "cublas")]
use granule_device::Blas;
use granule_device::{Bytes, DeviceSlice};
use granule_ops::{Kernels, PlanarMatrix, Threads};
use granule_plan::Places;
use granule_quant::DType;

use super::load::Loader;
use crate::engine::patiently;
use crate::error::{Error, Result};
use crate::placement::Span;
use crate::weights::{Report, Tensor, WEIGHTS, Weights};

/// A matrix in the weights' memory.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) dtype: DType,
    rows: usize,
    cols: usize,
    at: Range<usize>,
}

/// A vector of f32 there.
#[derive(Clone, Debug)]
pub(super) struct PlacedVector {
    at: Range<usize>,
}

/// The weights of one layer.
#[derive(Debug)]
pub(super) struct CudaLayer {
    pub(super) attn_norm: PlacedVector,
    pub(super) attn_q: Placed,
    pub(super) attn_k: Placed,
    pub(super) attn_v: Placed,
    pub(super) attn_output: Placed,
    pub(super) ffn_norm: PlacedVector,
    pub(super) ffn_gate: Placed,
    pub(super) ffn_up: Placed,
    pub(super) ffn_down: Placed,
}

/// A stage of a model on a CUDA device: what all its contexts read.
#[derive(Debug)]
pub(crate) struct CudaModel {
    /// Made under the lock: of two that are made at once one would go again, which waits for the device.
    #[cfg(feature = "cublas")]
    blas: Mutex<Option<Blas>>,
    /// What a context takes on the device.
    context: Option<Bytes>,
    pub(super) kernels: Kernels,
    memory: Growable,
    /// Where the first layer is.
    embedding: Option<Placed>,
    pub(super) layers: Vec<CudaLayer>,
    /// Where the last layer is.
    output: Option<CudaOutput>,
    inputs: Vec<(DType, usize)>,
}

/// What makes logits of hidden states.
#[derive(Debug)]
pub(super) struct CudaOutput {
    pub(super) norm: PlacedVector,
    pub(super) matrix: Placed,
}

/// Where tensors are to lie, and which one from which file.
#[derive(Default)]
struct Plan<'a> {
    matrices: Vec<(&'a Tensor, Placed)>,
    vectors: Vec<(&'a [f32], PlacedVector)>,
    places: Places,
}

impl<'a> Plan<'a> {
    fn matrix(&mut self, tensor: &'a Tensor) -> Result<Placed> {
        let (dtype, rows, cols) = (tensor.dtype(), tensor.rows(), tensor.cols());
        let at = self.places.matrix(&tensor.shape())?;
        let placed = Placed { dtype, rows, cols, at };
        self.matrices.push((tensor, placed.clone()));
        Ok(placed)
    }

    fn vector(&mut self, numbers: &'a [f32]) -> Result<PlacedVector> {
        let placed = PlacedVector { at: self.places.vector(numbers.len())? };
        self.vectors.push((numbers, placed.clone()));
        Ok(placed)
    }
}

impl CudaModel {
    /// Brings a stage's weights to the bank's device; `report` is called with bytes of the files as they come.
    pub(crate) fn load(
        bank: &Bank,
        span: &Span,
        weights: &Weights,
        threads: &Threads,
        report: Report<'_>,
    ) -> Result<Arc<Self>> {
        let mut plan = Plan::default();
        let embedding = span.looks_up().then(|| plan.matrix(&weights.embedding)).transpose()?;
        let mut layers = Vec::with_capacity(span.len());
        for layer in &weights.layers[span.layers.clone()] {
            layers.push(CudaLayer {
                attn_norm: plan.vector(&layer.attn_norm)?,
                attn_q: plan.matrix(&layer.attn_q)?,
                attn_k: plan.matrix(&layer.attn_k)?,
                attn_v: plan.matrix(&layer.attn_v)?,
                attn_output: plan.matrix(&layer.attn_output)?,
                ffn_norm: plan.vector(&layer.ffn_norm)?,
                ffn_gate: plan.matrix(&layer.ffn_gate)?,
                ffn_up: plan.matrix(&layer.ffn_up)?,
                ffn_down: plan.matrix(&layer.ffn_down)?,
            });
        }
        let mut output = None;
        if span.is_last() {
            let norm = plan.vector(&weights.output_norm)?;
            let matrix = match &embedding {
                // Planes serve products and lookups alike, so a tied table is there once.
                Some(table) if weights.is_tied() => table.clone(),
                _ => plan.matrix(weights.output())?,
            };
            output = Some(CudaOutput { norm, matrix });
        }
        // While there is room for another one.
        let context = context_of(bank)?;
        let size = plan.places.bytes();
        let mut memory = patiently(|| Ok(bank.growable(&Owner::new(WEIGHTS), size)?))?;
        patiently(|| Ok(memory.grow_to(size)?))?;
        let kernels = patiently(|| Ok(Kernels::new(bank.device())?))?;
        let tensors = || plan.matrices.iter().map(|(tensor, _)| *tensor);
        let mut loader = patiently(|| Loader::new(bank, &kernels, tensors()))?;
        loader.clear(memory.slice_mut(..)?)?;
        for (tensor, placed) in &plan.matrices {
            let to = memory.slice_mut(placed.at.clone())?;
            loader.load(tensor, &weights.files().bytes_of(tensor)?, to, threads, report)?;
            weights.let_go(tensor);
        }
        loader.finish()?;
        for (numbers, placed) in &plan.vectors {
            let bytes: &[u8] = bytemuck::cast_slice(numbers);
            patiently(|| Ok(bank.device().copy(bytes.into(), memory.slice_mut(placed.at.clone())?)?))?;
        }
        let mut inputs: Vec<(DType, usize)> = Vec::new();
        for layer in &layers {
            let CudaLayer { attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down, .. } = layer;
            for placed in [attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down] {
                if !inputs.contains(&(placed.dtype, placed.cols)) {
                    inputs.push((placed.dtype, placed.cols));
                }
            }
        }
        Ok(Arc::new(Self {
            #[cfg(feature = "cublas")]
            blas: Mutex::default(),
            context,
            kernels,
            memory,
            embedding,
            layers,
            output,
            inputs,
        }))
    }

    /// What tokens are looked up in.
    pub(super) fn embedding(&self) -> Result<&Placed> {
        self.embedding.as_ref().ok_or_else(|| elsewhere("the embedding table"))
    }

    /// What makes logits.
    pub(super) fn output(&self) -> Result<&CudaOutput> {
        self.output.as_ref().ok_or_else(|| elsewhere("the output layer"))
    }

    pub(super) fn matrix(&self, placed: &Placed) -> Result<PlanarMatrix<'_>> {
        let data = self.memory.slice(placed.at.clone())?;
        Ok(PlanarMatrix::new(placed.dtype, placed.rows, placed.cols, data)?)
    }

    pub(super) fn vector(&self, placed: &PlacedVector) -> Result<DeviceSlice<'_>> {
        Ok(self.memory.slice(placed.at.clone())?)
    }

    /// Types and columns of the weights of layers, each pair once.
    pub(super) fn inputs(&self) -> &[(DType, usize)] {
        &self.inputs
    }

    /// The library's handle on the device, made when it is first asked for.
    #[cfg(feature = "cublas")]
    pub(super) fn blas(&self) -> Result<Blas> {
        let mut blas = self.blas.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(blas) = &*blas {
            return Ok(blas.clone());
        }
        let made = Blas::new(self.memory.bank().device())?;
        Ok(blas.insert(made).clone())
    }

    /// Bytes of scratch for products of up to so many tokens by cuBLAS.
    #[cfg(feature = "cublas")]
    pub(super) fn blas_scratch(&self, tokens: usize) -> Result<usize> {
        let of = |placed: &Placed, adds| (placed.dtype, placed.rows, placed.cols, adds);
        let products = self.layers.iter().flat_map(|layer| {
            let CudaLayer { attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down, .. } = layer;
            let plain = [attn_q, attn_k, attn_v, ffn_gate, ffn_up].map(|placed| of(placed, false));
            plain.into_iter().chain([attn_output, ffn_down].map(|placed| of(placed, true)))
        });
        let output = self.output.iter().map(|output| of(&output.matrix, false));
        super::blas::scratch_bytes(self.memory.bank().device(), tokens, products.chain(output))
    }

    /// What a CUDA context takes on the device for itself, if it could be measured.
    pub(crate) fn context(&self) -> Option<Bytes> {
        self.context
    }

    /// What the weights take, in whole granules.
    pub(crate) fn bytes(&self) -> Bytes {
        self.memory.mapped()
    }
}

fn elsewhere(what: &str) -> Error {
    Error::Unsupported { what: format!("{what} on a device that it is not on") }
}

/// What a CUDA context takes of a bank's device for itself, where that can be told.
pub(crate) fn context_of(bank: &Bank) -> Result<Option<Bytes>> {
    patiently(|| match bank.device().context_bytes() {
        // That it cannot be told is no reason not to load: what is to lie there may fit.
        Err(granule_device::Error::OutOfMemory { .. } | granule_device::Error::Unsupported { .. }) => {
            Ok(None)
        }
        measured => Ok(Some(measured?)),
    })
}
