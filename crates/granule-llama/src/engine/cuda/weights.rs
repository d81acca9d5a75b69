//! A model's weights on a device: in planes, all of them behind one range of granules, and the kernels that read them.

use std::ops::Range;
use std::sync::Arc;

use granule_bank::{Bank, Growable, Owner};
use granule_device::{Bytes, DeviceSlice};
use granule_ops::{Kernels, PlanarMatrix, Threads};
use granule_quant::DType;

use super::load::Loader;
use super::memory::ALIGN;
use crate::config::Config;
use crate::engine::patiently;
use crate::error::{Error, Result};
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

/// A model on a CUDA device: what all its contexts read.
#[derive(Debug)]
pub(crate) struct CudaModel {
    pub(super) kernels: Kernels,
    memory: Growable,
    pub(super) embedding: Placed,
    pub(super) layers: Vec<CudaLayer>,
    pub(super) output_norm: PlacedVector,
    pub(super) output: Placed,
    inputs: Vec<(DType, usize)>,
}

/// Where tensors are to lie, and which one from which file.
#[derive(Default)]
struct Plan<'a> {
    matrices: Vec<(&'a Tensor, Placed)>,
    vectors: Vec<(&'a [f32], PlacedVector)>,
    end: usize,
}

impl<'a> Plan<'a> {
    fn take(&mut self, bytes: usize) -> Result<Range<usize>> {
        let too_large = || Error::Unsupported { what: "weights that are too large for a device".into() };
        let at = self.end;
        let end = at.checked_add(bytes).ok_or_else(too_large)?;
        self.end = end.checked_next_multiple_of(ALIGN).ok_or_else(too_large)?;
        Ok(at..end)
    }

    fn matrix(&mut self, tensor: &'a Tensor) -> Result<Placed> {
        let (dtype, rows, cols) = (tensor.dtype(), tensor.rows(), tensor.cols());
        let at = self.take(PlanarMatrix::bytes(dtype, rows, cols)?)?;
        let placed = Placed { dtype, rows, cols, at };
        self.matrices.push((tensor, placed.clone()));
        Ok(placed)
    }

    fn vector(&mut self, numbers: &'a [f32]) -> Result<PlacedVector> {
        let placed = PlacedVector { at: self.take(size_of_val(numbers))? };
        self.vectors.push((numbers, placed.clone()));
        Ok(placed)
    }
}

impl CudaModel {
    /// Brings all weights to the bank's device; `report` is called with bytes of the files as they come.
    pub(crate) fn load(
        bank: &Bank,
        config: &Config,
        weights: &Weights,
        threads: &Threads,
        report: Report<'_>,
    ) -> Result<Arc<Self>> {
        let mut plan = Plan::default();
        let embedding = plan.matrix(&weights.embedding)?;
        let mut layers = Vec::with_capacity(config.n_layers);
        for layer in &weights.layers {
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
        let output_norm = plan.vector(&weights.output_norm)?;
        // Planes serve products and lookups alike, so a tied table is there once.
        let output = if weights.is_tied() { embedding.clone() } else { plan.matrix(weights.output())? };
        let size = Bytes::from_usize(plan.end);
        let mut memory = patiently(|| Ok(bank.growable(&Owner::new(WEIGHTS), size)?))?;
        patiently(|| Ok(memory.grow_to(size)?))?;
        let kernels = patiently(|| Ok(Kernels::new(bank.device())?))?;
        let tensors = || plan.matrices.iter().map(|(tensor, _)| *tensor);
        let mut loader = patiently(|| Loader::new(bank, &kernels, tensors()))?;
        loader.clear(memory.slice_mut(..)?)?;
        for (tensor, placed) in &plan.matrices {
            let to = memory.slice_mut(placed.at.clone())?;
            loader.load(tensor, weights.files().tensor(tensor)?, to, threads, report)?;
            weights.files().let_go(tensor);
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
        Ok(Arc::new(Self { kernels, memory, embedding, layers, output_norm, output, inputs }))
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

    /// As [`CudaModel::inputs`], of the output layer.
    pub(super) fn outputs(&self) -> [(DType, usize); 1] {
        [(self.output.dtype, self.output.cols)]
    }

    /// What the weights take, in whole granules.
    pub(crate) fn bytes(&self) -> Bytes {
        self.memory.mapped()
    }
}
