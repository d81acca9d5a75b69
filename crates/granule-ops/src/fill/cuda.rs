//! Filling on a CUDA device.

use granule_device::{DeviceSliceMut, Launch, Stream};

use crate::fill::Pattern;
use crate::launch::{byte_grid, check_kind, check_stream};
use crate::{Error, Kernels};

/// Fills `to`, at any address, with `pattern`, beginning with the pattern's first byte, when the stream's turn comes.
///
/// # Errors
/// [`Error::Dimension`] where `to` ends within a pattern, [`Error::NotOnDevice`], [`Error::OtherDevice`],
/// [`Error::NoKernel`], [`Error::Device`]: nothing is launched.
///
/// # Safety
/// - The memory stays until the stream has passed this, and nothing else touches it until then.
pub unsafe fn cuda(
    kernels: &Kernels,
    stream: &Stream,
    to: DeviceSliceMut<'_>,
    pattern: Pattern,
) -> Result<(), Error> {
    pattern.check(to.len())?;
    check_stream(kernels, stream)?;
    check_kind("the memory to fill", to.kind())?;
    if to.is_empty() {
        return Ok(());
    }
    let function = kernels.function("fill", "fill_bytes")?;
    let (bytes, words) = (to.len(), u128::from_le_bytes(pattern.bytes));
    let launch = Launch::new(&function, byte_grid(bytes)).write(to).value(bytes as u64);
    let launch = launch.value(words as u64).value((words >> 64) as u64);
    // SAFETY: these are the kernel's arguments, it takes any address; the rest is the caller's promise.
    Ok(unsafe { stream.launch(launch) }?)
}
