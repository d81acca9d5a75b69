//! Products of many tokens by cuBLAS, where a context asks for it.

use std::sync::{Mutex, PoisonError};

use granule_device::{Blas, Device, Stream};
use granule_ops::Kernels;
use granule_ops::activate::CudaActivations;
use granule_ops::product::{self, Product};
use granule_quant::DType;

use super::memory::{Heaps, Leased};
use super::weights::CudaModel;
use crate::engine::patiently;
use crate::error::Result;

/// Bytes of scratch for products of up to so many tokens with weights of these types, rows and columns, which are added or not.
pub(crate) fn scratch_bytes(
    device: &Device,
    tokens: usize,
    products: impl Iterator<Item = (DType, usize, usize, bool)>,
) -> Result<usize> {
    let capability = device.cuda_info()?.compute_capability;
    let of = |(dtype, rows, cols, adds)| {
        product::blas_scratch_bytes(capability, tokens, cols, [(dtype, rows, adds)])
    };
    Ok(products.map(of).max().unwrap_or(0))
}

/// The library's handle on an engine's device, and the memory that it and the weights before it work in.
#[derive(Debug)]
pub(super) struct EngineBlas {
    blas: Blas,
    /// Of one product at a time, as they are one after the other on the engine's stream.
    scratch: Mutex<Leased>,
}

impl EngineBlas {
    /// For steps of up to `tokens` tokens.
    pub(super) fn new(model: &CudaModel, heaps: &Heaps, tokens: usize) -> Result<Self> {
        let blas = patiently(|| model.blas())?;
        let scratch = Leased::bytes(&heaps.scratch, model.blas_scratch(tokens)?)?;
        Ok(Self { blas, scratch: Mutex::new(scratch) })
    }

    /// As [`product::cuda`].
    ///
    /// # Safety
    /// As of [`product::cuda`]; the stream is the engine's.
    pub(super) unsafe fn multiply(
        &self,
        kernels: &Kernels,
        stream: &Stream,
        x: &CudaActivations<'_>,
        products: &mut [Product<'_>],
    ) -> Result<()> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's promise; the scratch is this engine's alone and stays until its stream has passed.
        Ok(unsafe { product::cuda_blas(kernels, &self.blas, stream, x, products, scratch.write()) }?)
    }
}
