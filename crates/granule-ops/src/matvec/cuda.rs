//! Products of a few tokens on a CUDA device.

use granule_device::{Bytes, KernelArgument, Launch, LaunchShape, Stream};
use granule_kernels::{MATVEC_JOBS, MATVEC_TILE_ROWS, MATVEC_WARP_ROWS, THREADS};
use granule_quant::{BLOCK_LEN, DType};

use crate::activate::CudaActivations;
use crate::product::{Group, MatrixArgument};
use crate::{Error, Kernels};

const JOBS: usize = MATVEC_JOBS as usize;
const WARP_ROWS: usize = MATVEC_WARP_ROWS as usize;
const TILE_ROWS: usize = MATVEC_TILE_ROWS as usize;
/// Lanes of a warp, warps of a block.
const WARP: usize = 32;
const WARPS: usize = THREADS as usize / WARP;
/// Warps that the rows of a matrix are spread over, as far as they are long enough: with four loads of 16 bytes each these are
/// 8 MiB under way, more than any device asks for at once.
const BUSY: usize = 4096;

/// `MatvecJob` of `kernels/matvec.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Job {
    matrix: MatrixArgument,
    rows: u32,
    tiles: u32,
    split: u32,
    adds: u32,
}

/// `Matvec` of `kernels/matvec.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    jobs: [Job; JOBS],
    x: [u64; 4],
    tokens: u32,
    pieces: u32,
    stride: u32,
    zero: u32,
}

// SAFETY: the struct of the kernel, field by field, without padding between them.
unsafe impl KernelArgument for Arguments {}

/// As what power of two warps share a row: until all of them together are many, and while each lane still has a piece of it. Of the
/// matrix's shape alone, so that results are the same on every device.
fn split(rows: usize, pieces: usize) -> u32 {
    let warps = rows.div_ceil(WARP_ROWS);
    (0..WARPS.ilog2()).take_while(|&split| warps << split < BUSY && WARP << split < pieces).count() as u32
}

/// Gives the products of few tokens `x`, in [`Form::F32`](crate::activate::Form) or `Fixed`, to the stream: one launch for each four
/// of a type. Any number of tokens is right; up to 8 (with floats 4) read the weights once.
///
/// # Errors
/// As of [`product::cuda`](crate::product::cuda()).
///
/// # Safety
/// - The products are of `x`.
/// - As of [`product::cuda`](crate::product::cuda()).
pub(crate) unsafe fn cuda(
    kernels: &Kernels,
    stream: &Stream,
    x: &CudaActivations<'_>,
    products: &[(DType, Group)],
) -> Result<(), Error> {
    let at = x.layout().parts.map(|part| x.data().ptr().addr() + part as u64);
    for &(dtype, ref group) in products {
        let name = format!("matvec_{dtype}_{}", tokens_of_kernel(dtype, x.rows()));
        let function = kernels.function("matvec", &name)?;
        let of_piece = if dtype.is_quantized() { BLOCK_LEN } else { 16 / dtype.block_bytes() };
        let pieces = x.cols().div_ceil(of_piece);
        for some in group.chunks(JOBS) {
            let mut jobs = [Job::default(); JOBS];
            for (job, of) in jobs.iter_mut().zip(some) {
                let tensor = dtype.is_quantized() && x.rows() > 1;
                let split = if tensor { 0 } else { split(of.rows, pieces) };
                let tile_rows = if tensor { TILE_ROWS } else { (WARP_ROWS * WARPS) >> split };
                let tiles = of.rows.div_ceil(tile_rows) as u32;
                *job = Job { matrix: of.matrix, rows: of.rows as u32, tiles, split, adds: of.adds.into() };
            }
            let tiles = jobs.iter().map(|job| job.tiles).max().unwrap_or_default();
            let shape = LaunchShape {
                grid: [tiles, some.len() as u32, 1],
                block: [THREADS, 1, 1],
                shared: Bytes::ZERO,
            };
            let arguments = Arguments {
                jobs,
                x: at,
                tokens: x.rows() as u32,
                pieces: pieces as u32,
                stride: x.layout().stride as u32,
                zero: 0,
            };
            // SAFETY: these are the kernel's arguments, of checked sizes and alignment; the rest is the caller's promise.
            unsafe { stream.launch(Launch::new(&function, shape).value(arguments)) }?;
        }
    }
    Ok(())
}

/// How many tokens a weight meets at once in the kernel for `tokens` of them.
fn tokens_of_kernel(dtype: DType, tokens: usize) -> usize {
    match (tokens, dtype.is_quantized()) {
        (1, _) => 1,
        (_, true) => 8,
        (_, false) => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_split_until_the_device_is_busy() {
        // Runs of a row of 4096 columns, in the shapes of an 8B model.
        assert_eq!(split(4096, 128), 2);
        assert_eq!(split(14336, 128), 1);
        assert_eq!(split(4096, 448), 2);
        assert_eq!(split(128_256, 128), 0);
        // Short rows, however few: each lane keeps a piece.
        assert_eq!(split(2048, 64), 1);
        assert_eq!(split(64, 32), 0);
        assert_eq!(split(1, 1), 0);
        assert_eq!(split(1, 1 << 20), 3);
    }
}
