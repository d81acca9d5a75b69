//! Embedding lookup on a CUDA device.

use granule_device::{DeviceSlice, DeviceSliceMut, Launch, Stream};
use granule_quant::BLOCK_LEN;

use crate::error::expect_len;
use crate::launch::{check_kind, check_multiple, check_stream, thread_grid};
use crate::{Error, Kernels, PlanarMatrix};

/// Bytes of a token id, and of a number of the output.
const WORD: usize = 4;
/// What the output's address is a multiple of, in bytes.
const OUT_ALIGN: usize = 16;
/// Elements that a thread writes of a row of blocks.
const QUAD: usize = 4;

/// Writes the decoded row of `table` for each of `ids` (u32) into `out` (f32, `ids` x `table.cols()`, at a multiple of 16
/// bytes) when the stream's turn comes: the numbers of `granule_quant::decode`. Which NaN a NaN becomes is not promised.
///
/// The ids are on the device and cannot be refused: the row of one outside the table is NaNs.
///
/// # Errors
/// [`Error::Shape`], [`Error::Alignment`], [`Error::NotOnDevice`], [`Error::OtherDevice`], [`Error::NoKernel`],
/// [`Error::Device`]: nothing is launched.
///
/// # Safety
/// - The memory of all three stays until the stream has passed this.
/// - Until then nothing else writes `table` or `ids`, or touches `out`.
pub unsafe fn cuda(
    kernels: &Kernels,
    stream: &Stream,
    table: &PlanarMatrix<'_>,
    ids: DeviceSlice<'_>,
    out: DeviceSliceMut<'_>,
) -> Result<(), Error> {
    let (tokens, cols) = (ids.len() / WORD, table.cols());
    expect_len("bytes of token ids", ids.len(), tokens * WORD)?;
    let bytes = tokens.checked_mul(cols).and_then(|n| n.checked_mul(WORD)).unwrap_or(usize::MAX);
    expect_len("bytes of the embedding output", out.len(), bytes)?;
    check_stream(kernels, stream)?;
    check_kind("token ids", ids.kind())?;
    check_kind("the embedding output", out.kind())?;
    check_multiple("the address of token ids", ids.ptr().addr(), WORD)?;
    check_multiple("the address of the embedding output", out.ptr().addr(), OUT_ALIGN)?;
    if out.is_empty() {
        return Ok(());
    }
    let (dtype, planes, rows) = (table.dtype(), table.planes(), table.rows() as u64);
    let function = kernels.function("embed", &format!("embed_{dtype}"))?;
    let (each, of_row) = if dtype.is_quantized() { (QUAD, cols / BLOCK_LEN) } else { (1, cols) };
    let shape = thread_grid(tokens as u64, (cols / each) as u64);
    let mut launch = Launch::new(&function, shape).read(table.data());
    if dtype.is_quantized() {
        let offsets = [planes.high, planes.scales, planes.d].map(|offset| offset as u64);
        launch = offsets.into_iter().fold(launch, Launch::value);
    }
    let launch = launch.value(rows).read(ids).write(out).value(tokens as u64).value(of_row as u64);
    // SAFETY: these are the kernel's arguments, for memory of the shape that is checked; the rest is the caller's promise.
    Ok(unsafe { stream.launch(launch) }?)
}
