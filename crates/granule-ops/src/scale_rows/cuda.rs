//! Scaling rows on a CUDA device.

use granule_device::{DeviceSlice, DeviceSliceMut, Launch, Stream};

use crate::error::expect_len;
use crate::launch::{check_kind, check_multiple, thread_grid};
use crate::{Error, Kernels};

const WORD: usize = size_of::<f32>();

/// `out[t][r] += factors[t] * from[t][r]` when the stream's turn comes, where `from` is dense, tokens x `rows`; without one
/// `out[t][r] *= factors[t]`. There is a factor (f32) for each token; `out` begins with the first token's rows and ends with the
/// last one's, `stride` elements from one token to the next.
///
/// # Errors
/// [`Error::Shape`], [`Error::Alignment`], [`Error::NotOnDevice`], [`Error::NoKernel`], [`Error::Device`]: nothing is launched.
///
/// # Safety
/// - All memory stays until the stream has passed this; until then nothing else writes what this reads, or touches `out`.
pub(crate) unsafe fn cuda(
    kernels: &Kernels,
    stream: &Stream,
    from: Option<DeviceSlice<'_>>,
    factors: DeviceSlice<'_>,
    out: DeviceSliceMut<'_>,
    (rows, stride): (usize, usize),
) -> Result<(), Error> {
    let tokens = factors.len() / WORD;
    if tokens == 0 || rows == 0 {
        return Ok(());
    }
    expect_len("bytes of scaled rows", out.len(), ((tokens - 1) * stride + rows) * WORD)?;
    let adds = from.is_some();
    let (from, from_stride) = match from {
        Some(from) => {
            expect_len("bytes of rows to scale", from.len(), tokens * rows * WORD)?;
            (from, rows)
        }
        None => (out.as_slice(), stride),
    };
    for (what, memory) in [("rows to scale", from), ("factors", factors), ("scaled rows", out.as_slice())] {
        check_kind(what, memory.kind())?;
        check_multiple(what, memory.ptr().addr(), WORD)?;
    }
    let function = kernels.function("scale_rows", "scale_rows")?;
    let launch = Launch::new(&function, thread_grid(tokens as u64, rows as u64));
    let launch = launch.read(from).value(from_stride as u64).read(factors);
    let launch = launch.value(out.ptr().addr()).value(stride as u64).value(tokens as u64);
    let launch = launch.value(rows as u64).value(u64::from(adds));
    // SAFETY: these are the kernel's arguments, for memory of the shape that is checked; the rest is the caller's promise.
    Ok(unsafe { stream.launch(launch) }?)
}
