//! Rows of planes as 16-bit floats on a CUDA device.

use std::ops::Range;

use granule_device::{DeviceSliceMut, Launch, Stream};
use granule_quant::{BLOCK_LEN, DType};

use crate::error::expect_len;
use crate::launch::{WIDE_ALIGN, check_kind, check_multiple, thread_grid};
use crate::{Error, Kernels, PlanarMatrix};

/// Elements that a thread writes.
const QUAD: usize = 4;
/// Elements of 16 bits in 16 bytes.
const PIECE: usize = 8;

/// How rows of a type lie as 16-bit floats: f16 of quantized types, and of f32 two terms in bf16, all first ones and then all
/// second ones. Matrices of f16 and bf16 need none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Dense {
    /// Elements from one row to the next.
    pub(crate) stride: usize,
    pub(crate) terms: usize,
}

impl Dense {
    pub(crate) fn of(dtype: DType, cols: usize) -> Dense {
        Dense { stride: cols.next_multiple_of(PIECE), terms: if dtype == DType::F32 { 2 } else { 1 } }
    }

    /// Bytes of one row's terms.
    pub(crate) fn row_bytes(self) -> usize {
        self.stride * size_of::<u16>() * self.terms
    }
}

/// Writes rows `rows` of a quantized or f32 matrix into `to`, [`Dense`], at a multiple of 16 bytes, when the stream's turn comes:
/// the f16 nearest to each number of `granule_quant::decode` (beyond 65504 infinity), or the bf16 nearest to each f32 and the one
/// nearest to what that leaves. Which NaN a NaN becomes is not promised.
///
/// # Errors
/// [`Error::Shape`], [`Error::Alignment`], [`Error::NotOnDevice`], [`Error::NoKernel`], [`Error::Device`]: nothing is launched.
///
/// # Safety
/// - The rows are of the matrix, and its type is no 16-bit float.
/// - The memory of both stays until the stream has passed this; until then nothing else writes the weights, or touches `to`.
pub(crate) unsafe fn cuda(
    kernels: &Kernels,
    stream: &Stream,
    weights: &PlanarMatrix<'_>,
    rows: Range<usize>,
    to: DeviceSliceMut<'_>,
) -> Result<(), Error> {
    let (dtype, cols, planes) = (weights.dtype(), weights.cols(), weights.planes());
    let dense = Dense::of(dtype, cols);
    expect_len("bytes of unpacked weights", to.len(), rows.len() * dense.row_bytes())?;
    check_kind("unpacked weights", to.kind())?;
    check_multiple("the address of unpacked weights", to.ptr().addr(), WIDE_ALIGN)?;
    if to.is_empty() {
        return Ok(());
    }
    let function = kernels.function("unpack_weights", &format!("unpack_weights_{dtype}"))?;
    let (first, count) = (rows.start as u64, rows.len() as u64);
    let launch = if dtype.is_quantized() {
        let runs = (cols / BLOCK_LEN) as u64;
        let launch = Launch::new(&function, thread_grid(1, count * runs * (BLOCK_LEN / QUAD) as u64));
        let offsets = [planes.high, planes.scales, planes.d].map(|offset| offset as u64);
        let launch = offsets.into_iter().fold(launch.read(weights.data()), Launch::value);
        launch.value(first * runs).value(count * runs).write(to)
    } else {
        let rest = (to.len() / dense.terms) as u64;
        let launch = Launch::new(&function, thread_grid(count, cols.div_ceil(QUAD) as u64));
        let launch = launch.read(weights.data()).value(first).value(count).value(cols as u64);
        launch.write(to).value(rest)
    };
    // SAFETY: these are the kernel's arguments, for memory of the shape that is checked; the rest is the caller's promise.
    Ok(unsafe { stream.launch(launch) }?)
}
