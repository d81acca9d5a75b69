//! Comparing on a CUDA device.

use granule_device::{DeviceSlice, DeviceSliceMut, Launch, LaunchShape, Stream};
use granule_kernels::THREADS;

use crate::compare::{self, Difference};
use crate::error::expect_len;
use crate::launch::{byte_grid, check_kind, check_multiple, check_stream};
use crate::{Error, Kernels};

/// Compares `a` and `b`, at any addresses, when the stream's turn comes, and leaves what it found in `result`, for
/// [`Difference::from_bytes`]. Fastest where both are equally far past a multiple of 16.
///
/// # Errors
/// [`Error::Shape`] where `a` and `b` are not of one length, or `result` is not of [`Difference::BYTES`];
/// [`Error::Alignment`] where its address is no multiple of 8; [`Error::NotOnDevice`], [`Error::OtherDevice`],
/// [`Error::NoKernel`], [`Error::Device`]: nothing is compared.
///
/// # Safety
/// - All three memories stay until the stream has passed this.
/// - Until then nothing else writes `a` or `b`, or touches `result`.
pub unsafe fn cuda(
    kernels: &Kernels,
    stream: &Stream,
    a: DeviceSlice<'_>,
    b: DeviceSlice<'_>,
    mut result: DeviceSliceMut<'_>,
) -> Result<(), Error> {
    compare::check(a.len(), b.len())?;
    expect_len("bytes for the result", result.len(), Difference::BYTES)?;
    check_stream(kernels, stream)?;
    for kind in [a.kind(), b.kind(), result.kind()] {
        check_kind("memory to compare, or for the result,", kind)?;
    }
    check_multiple("the address of the result", result.ptr().addr(), align_of::<u64>())?;
    let (begin, bytes) =
        (kernels.function("compare", "compare_begin")?, kernels.function("compare", "compare_bytes")?);
    let launch = Launch::new(&begin, LaunchShape::row(1, THREADS)).write(result.reborrow());
    // SAFETY: this is the kernel's argument, of the right size and alignment; the rest is the caller's promise.
    unsafe { stream.launch(launch) }?;
    let launch = Launch::new(&bytes, byte_grid(a.len())).read(a).read(b).value(a.len() as u64).write(result);
    // SAFETY: these are the kernel's arguments, both of one length; the rest is the caller's promise.
    Ok(unsafe { stream.launch(launch) }?)
}
