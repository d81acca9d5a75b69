//! Moving rows between layouts on a CUDA device.

use granule_device::{Launch, Stream};

use crate::launch::{RowWork, check_rows, check_stream};
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
pub unsafe fn cuda(
    kernels: &Kernels,
    stream: &Stream,
    from: Rows<'_>,
    mut to: RowsMut<'_>,
) -> Result<(), Error> {
    let (x, y) = (*from.shape(), *to.shape());
    relayout::check(&x, &y)?;
    check_stream(kernels, stream)?;
    check_rows(from.data().kind(), from.data().ptr().addr(), &x)?;
    let target = to.data();
    check_rows(target.kind(), target.ptr().addr(), &y)?;
    let Some(work) = RowWork::of(&x, &y) else { return Ok(()) };
    let layout = if y.planes().is_some() { "planar" } else { "ggml" };
    let function = kernels.function("relayout", &format!("relayout_{}_to_{layout}", x.dtype()))?;
    let mut launch = Launch::new(&function, work.shape).read(from.data()).value(x.stride() as u64);
    if let Some(planes) = x.planes() {
        launch = launch.value(planes.quants as u64).value(planes.scales as u64);
    }
    launch = launch.write(target).value(y.stride() as u64);
    if let Some(planes) = y.planes() {
        launch = launch.value(planes.quants as u64).value(planes.scales as u64);
    }
    let launch = launch.value(work.rows).value(work.blocks);
    // SAFETY: these are the kernel's arguments; shapes, bounds and alignment are checked above; the rest is the caller's
    // promise.
    Ok(unsafe { stream.launch(launch) }?)
}
