//! Quantizing rows on a CUDA device.

use granule_device::Stream;

use crate::launch::launch_rows;
use crate::rows::{Rows, RowsMut};
use crate::{Error, Kernels, quantize};

/// Quantizes every row of `from` (f32, f16, bf16) into that of `to` (Q8_0, Q4_0) when the stream's turn comes, by the
/// bytes of `granule_quant::scalar`.
///
/// What [`quantize::cpu`] refuses is written all the same and flagged for [`Kernels::check`]: a block with a NaN or an
/// infinity decodes to NaN, a block whose scale is too large for f16 has an infinite one. The padding of planar rows, and
/// what lies between rows, stays as it is.
///
/// Floats and planar rows have addresses, strides and planes that are multiples of 16 bytes, plain rows of blocks of 2.
///
/// # Errors
/// [`Error::Types`], [`Error::Shape`], [`Error::Alignment`], [`Error::NotOnDevice`], [`Error::OtherDevice`],
/// [`Error::NoKernel`], [`Error::Device`]: nothing is launched.
///
/// # Safety
/// - The memory of both stays until the stream has passed this, and so do `kernels`.
/// - Until then nothing else writes `from` or touches `to`.
pub unsafe fn cuda(kernels: &Kernels, stream: &Stream, from: Rows<'_>, to: RowsMut<'_>) -> Result<(), Error> {
    let (x, y) = (*from.shape(), *to.shape());
    quantize::check(&x, &y)?;
    let planar = if y.planes().is_some() { "_planar" } else { "" };
    let name = format!("quantize{planar}_{}_{}", y.dtype(), x.dtype());
    // SAFETY: the name is that of the kernel for these two shapes, which are checked; the rest is the caller's promise.
    unsafe { launch_rows(kernels, stream, ("quantize", &name), (from, to), Some(kernels.flag_address())) }
}
