//! Moving rows between layouts on a CUDA device.

use granule_device::Stream;

use crate::launch::launch_rows;
use crate::rows::{Rows, RowsMut};
use crate::{Error, Kernels, relayout};

/// Moves every row of `from` into that of `to`, which has the same type and the other layout, when the stream's turn comes.
/// The padding of planar rows, and what lies between rows, stays as it is.
///
/// Planar rows have addresses, strides and planes that are multiples of 16 bytes, plain rows of 2.
///
/// # Errors
/// [`Error::Types`], [`Error::Shape`], [`Error::SameLayout`], [`Error::Alignment`], [`Error::NotOnDevice`],
/// [`Error::OtherDevice`], [`Error::NoKernel`], [`Error::Device`]: nothing is launched.
///
/// # Safety
/// - The memory of both stays until the stream has passed this.
/// - Until then nothing else writes `from` or touches `to`.
pub unsafe fn cuda(kernels: &Kernels, stream: &Stream, from: Rows<'_>, to: RowsMut<'_>) -> Result<(), Error> {
    let (x, y) = (*from.shape(), *to.shape());
    relayout::check(&x, &y)?;
    let layout = if y.planes().is_some() { "planar" } else { "ggml" };
    let name = format!("relayout_{}_to_{layout}", x.dtype());
    // SAFETY: the name is that of the kernel for these two shapes, which are checked; the rest is the caller's promise.
    unsafe { launch_rows(kernels, stream, ("relayout", &name), (from, to), None) }
}
