//! Packing weights on a CUDA device.

use granule_device::{DeviceSlice, DeviceSliceMut, Launch, Stream};
use granule_quant::BLOCK_LEN;

use crate::launch::{check_kind, check_multiple, check_stream, thread_grid};
use crate::pack_weights::WeightRows;
use crate::planar_matrix::ALIGN;
use crate::{Error, Kernels};

/// What kernels want the address of rows in the ggml layout to be a multiple of, in bytes.
const ROWS_ALIGN: usize = 2;
/// Bytes that a thread writes of a row of floats.
const PIECE: u64 = 16;

/// Lays the rows of `from`, dense in the ggml layout and at any even address, out in `to`, the planes of the whole matrix at a
/// multiple of 256 bytes, when the stream's turn comes: the bytes of [`pack_weights::cpu`](crate::pack_weights::cpu). Its other
/// rows, and what lies between planes, stay as they are.
///
/// # Errors
/// [`Error::Quant`], [`Error::Shape`], [`Error::Alignment`], [`Error::NotOnDevice`], [`Error::OtherDevice`],
/// [`Error::NoKernel`], [`Error::Device`]: nothing is launched.
///
/// # Safety
/// - The memory of both stays until the stream has passed this.
/// - Until then nothing else writes `from`, or touches the rows in `to`.
pub unsafe fn cuda(
    kernels: &Kernels,
    stream: &Stream,
    weights: &WeightRows,
    from: DeviceSlice<'_>,
    to: DeviceSliceMut<'_>,
) -> Result<(), Error> {
    let planes = weights.check(from.len(), to.len())?;
    check_stream(kernels, stream)?;
    check_kind("rows to pack", from.kind())?;
    check_kind("a weight matrix", to.kind())?;
    check_multiple("the address of rows to pack", from.ptr().addr(), ROWS_ALIGN)?;
    check_multiple("the address of a weight matrix", to.ptr().addr(), ALIGN)?;
    if from.is_empty() {
        return Ok(());
    }
    let WeightRows { dtype, cols, ref piece, .. } = *weights;
    let (first, rows) = (piece.start as u64, piece.len() as u64);
    // No product overflows: the matrix has more bytes than what is counted.
    let name = if dtype.is_quantized() { dtype.name() } else { "floats" };
    let function = kernels.function("pack_weights", &format!("pack_weights_{name}"))?;
    let launch = |rows, threads| Launch::new(&function, thread_grid(rows, threads)).read(from).write(to);
    let launch = if dtype.is_quantized() {
        let of_row = (cols / dtype.block_len()) as u64;
        let offsets = [planes.high, planes.scales, planes.d].map(|offset| offset as u64);
        let launch = offsets.into_iter().fold(launch(1, rows * (cols / BLOCK_LEN) as u64), Launch::value);
        launch.value(first * of_row).value(rows * of_row)
    } else {
        let bytes = dtype.row_bytes(cols)? as u64;
        launch(rows, bytes.div_ceil(PIECE)).value(first).value(rows).value(bytes)
    };
    // SAFETY: these are the kernel's arguments, for memory of the shape that is checked; the rest is the caller's promise.
    Ok(unsafe { stream.launch(launch) }?)
}
