//! Products of many tokens on a CUDA device: on tensor cores.

use granule_device::{Bytes, KernelArgument, Launch, LaunchShape, Stream};
use granule_kernels::{MATMUL_CONVERTED, MATMUL_JOBS, MATMUL_STAGES, MATMUL_STEP_BYTES, THREADS};
use granule_quant::DType;

use crate::activate::CudaActivations;
use crate::product::{Group, MatrixArgument};
use crate::{Error, Kernels};

const JOBS: usize = MATMUL_JOBS as usize;
/// Thread blocks that keep a device busy, as far as a product has so many: nearly one for each multiprocessor of the largest, of
/// which each takes up to two.
const BUSY: usize = 128;
/// Thread blocks of a grid, and columns of a row: what the kernel counts in 32 bits, 128 rows of 16-bit elements at a time.
const MOST_TILES: usize = (1 << 31) - 1;
const MOST_COLS: usize = 1 << 22;

/// A tile of tokens x weight rows, as powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    tokens: u32,
    rows: u32,
}

/// The tiles that the kernel has, those first that read least for what they compute.
const TILES: [Tile; 6] = [
    Tile { tokens: 7, rows: 7 },
    Tile { tokens: 6, rows: 7 },
    Tile { tokens: 6, rows: 6 },
    Tile { tokens: 5, rows: 7 },
    Tile { tokens: 5, rows: 6 },
    Tile { tokens: 5, rows: 5 },
];

impl Tile {
    /// The first that is not half empty and gives enough blocks; the smallest where none does. Of the product's shape alone, so that
    /// results are the same on every device and beside any other product.
    fn of(tokens: usize, rows: usize) -> Tile {
        let full = |tile: &Tile| tile.tokens == 5 || tokens > 1 << (tile.tokens - 1);
        let busy = |tile: &Tile| tile.count(tokens, rows) >= BUSY;
        TILES.into_iter().find(|tile| full(tile) && busy(tile)).unwrap_or(TILES[TILES.len() - 1])
    }

    fn count(self, tokens: usize, rows: usize) -> usize {
        tokens.div_ceil(1 << self.tokens).saturating_mul(rows.div_ceil(1 << self.rows))
    }
}

/// `MatmulJob` of `kernels/matmul.cu`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Job {
    matrix: MatrixArgument,
    rows: u32,
    first: u32,
    adds: u32,
    tile: u32,
}

/// `Matmul` of `kernels/matmul.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    x: u64,
    rest: u64,
    jobs: [Job; JOBS],
    n_jobs: u32,
    tokens: u32,
    cols: u32,
    pitch: u32,
}

// SAFETY: the struct of the kernel, field by field, without padding between them.
unsafe impl KernelArgument for Arguments {}

/// Dynamic shared memory of a block: the steps of x, and those of w, which are as many where they come as they are.
fn shared_bytes(dtype: DType) -> usize {
    let direct = matches!(dtype, DType::F16 | DType::BF16);
    let steps = MATMUL_STAGES + if direct { MATMUL_STAGES } else { MATMUL_CONVERTED };
    (steps * MATMUL_STEP_BYTES) as usize
}

/// Gives the products of many tokens `x`, in [`Form::F16`](crate::activate::Form) or `Bf16`, to the stream: one launch for each four
/// of a type. Any number of tokens is right.
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
    let (tokens, cols, stride) = (x.rows(), x.cols(), x.layout().stride);
    if stride > MOST_COLS {
        let what = "the columns of a product of many tokens";
        return Err(Error::Dimension { what, must: "at most 2^22", got: cols });
    }
    let all = products
        .iter()
        .flat_map(|(_, group)| group)
        .map(|of| Tile::of(tokens, of.rows).count(tokens, of.rows));
    let tiles = all.fold(0, usize::saturating_add);
    if tiles > MOST_TILES {
        return Err(Error::Dimension { what: "the tiles of products", must: "below 2^31", got: tiles });
    }
    let at = x.layout().parts.map(|part| x.data().ptr().addr() + part as u64);
    for &(dtype, ref group) in products {
        let function = kernels.function("matmul", &format!("matmul_{dtype}"))?;
        for some in group.chunks(JOBS) {
            let (mut jobs, mut first) = ([Job::default(); JOBS], 0);
            for (job, of) in jobs.iter_mut().zip(some) {
                let tile = Tile::of(tokens, of.rows);
                *job = Job {
                    matrix: of.matrix,
                    rows: of.rows as u32,
                    first,
                    adds: of.adds.into(),
                    tile: tile.tokens | tile.rows << 16,
                };
                first += tile.count(tokens, of.rows) as u32;
            }
            let arguments = Arguments {
                x: at[0],
                rest: at[1],
                jobs,
                n_jobs: some.len() as u32,
                tokens: tokens as u32,
                cols: cols as u32,
                pitch: (stride * size_of::<u16>()) as u32,
            };
            let shape = LaunchShape {
                grid: [first, 1, 1],
                block: [THREADS, 1, 1],
                shared: Bytes::from_usize(shared_bytes(dtype)),
            };
            // SAFETY: these are the kernel's arguments, of checked sizes and alignment; the rest is the caller's promise.
            unsafe { stream.launch(Launch::new(&function, shape).value(arguments)) }?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tokens and rows of the tile for a product.
    fn tile(tokens: usize, rows: usize) -> (u32, u32) {
        let Tile { tokens, rows } = Tile::of(tokens, rows);
        (1 << tokens, 1 << rows)
    }

    #[test]
    fn tiles_keep_a_device_busy_and_are_not_half_empty() {
        // A prompt of 512 tokens, in the shapes of an 8B model.
        assert_eq!(tile(512, 4096), (128, 128));
        assert_eq!(tile(512, 14336), (128, 128));
        assert_eq!(tile(512, 1024), (64, 64));
        assert_eq!(tile(4096, 1024), (128, 128));
        // Sequences side by side.
        assert_eq!(tile(9, 128_256), (32, 128));
        assert_eq!(tile(33, 128_256), (64, 128));
        assert_eq!(tile(16, 14336), (32, 64));
        assert_eq!(tile(64, 4096), (32, 64));
        assert_eq!(tile(16, 4096), (32, 32));
        assert_eq!(tile(16, 1024), (32, 32));
        assert_eq!(tile(1, 1), (32, 32));
        assert_eq!(tile(1 << 20, 1 << 20), (128, 128));
    }

    #[test]
    fn shared_memory_is_what_the_kernels_table_has() {
        let table = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels/ptx/TABLE.md");
        let table = std::fs::read_to_string(table).unwrap();
        for &dtype in DType::ALL {
            let name = format!("`matmul_{dtype}`");
            let row = table.lines().find(|line| line.contains(&name)).unwrap();
            assert_eq!(row.split('|').nth(5).unwrap().trim(), shared_bytes(dtype).to_string(), "{dtype}");
        }
    }
}
