//! Dequantizing rows on a CUDA device.

use granule_device::Stream;

use crate::launch::launch_rows;
use crate::rows::{Rows, RowsMut};
use crate::{Error, Kernels, dequantize};

/// Dequantizes every row of `from` (Q8_0, Q4_0) into that of `to` (f32, f16, bf16) when the stream's turn comes: the
/// numbers of [`dequantize::cpu`]. Which NaN a NaN becomes is not promised. What lies between rows stays as it is.
///
/// Floats and planar rows have addresses, strides and planes that are multiples of 16 bytes, plain rows of blocks of 2.
///
/// # Errors
/// [`Error::Types`], [`Error::Shape`], [`Error::Alignment`], [`Error::NotOnDevice`], [`Error::OtherDevice`],
/// [`Error::NoKernel`], [`Error::Device`]: nothing is launched.
///
/// # Safety
/// - The memory of both stays until the stream has passed this.
/// - Until then nothing else writes `from` or touches `to`.
pub unsafe fn cuda(kernels: &Kernels, stream: &Stream, from: Rows<'_>, to: RowsMut<'_>) -> Result<(), Error> {
    let (x, y) = (*from.shape(), *to.shape());
    dequantize::check(&x, &y)?;
    let planar = if x.planes().is_some() { "_planar" } else { "" };
    let name = format!("dequantize{planar}_{}_{}", x.dtype(), y.dtype());
    // SAFETY: the name is that of the kernel for these two shapes, which are checked; the rest is the caller's promise.
    unsafe { launch_rows(kernels, stream, ("dequantize", &name), (from, to), None) }
}
