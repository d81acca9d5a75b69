//! Dequantizing rows on a CUDA device.

use granule_device::{Launch, Stream};

use crate::launch::{RowWork, check_rows, check_stream};
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
pub unsafe fn cuda(
    kernels: &Kernels,
    stream: &Stream,
    from: Rows<'_>,
    mut to: RowsMut<'_>,
) -> Result<(), Error> {
    let (x, y) = (*from.shape(), *to.shape());
    dequantize::check(&x, &y)?;
    check_stream(kernels, stream)?;
    check_rows(from.data().kind(), from.data().ptr().addr(), &x)?;
    let target = to.data();
    check_rows(target.kind(), target.ptr().addr(), &y)?;
    let Some(work) = RowWork::of(&x, &y) else { return Ok(()) };
    let planar = if x.planes().is_some() { "_planar" } else { "" };
    let name = format!("dequantize{planar}_{}_{}", x.dtype(), y.dtype());
    let function = kernels.function("dequantize", &name)?;
    let launch = Launch::new(&function, work.shape).read(from.data()).value(x.stride() as u64);
    let launch = match x.planes() {
        Some(planes) => launch.value(planes.quants as u64).value(planes.scales as u64),
        None => launch,
    };
    let launch = launch.write(target).value(y.stride() as u64).value(work.rows).value(work.blocks);
    // SAFETY: these are the kernel's arguments; shapes, bounds and alignment are checked above; the rest is the caller's
    // promise.
    Ok(unsafe { stream.launch(launch) }?)
}
