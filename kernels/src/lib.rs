//! The CUDA kernels of Granule as data: PTX for a driver to load, and what each module holds.
#![doc = include_str!("../README.md")]

mod find;
mod module;

pub use find::{NotFound, find};
pub use module::{MODULES, Module, Target};

/// Threads of a thread block, in x alone: kernels are launched with exactly so many, but for `attention_64` and `attention_128`,
/// which take any number of warps up to that.
pub const THREADS: u32 = 256;

/// Blocks of 32 elements that a thread block of the row kernels (`quantize`, `dequantize`, `relayout`) takes at once. A grid
/// of `ceil(blocks / TILE_BLOCKS)` in x and `rows` in y has one for each; a smaller one does all of the work too.
pub const TILE_BLOCKS: u32 = 128;

/// Bytes that a thread block of the byte kernels (`fill`, `compare`) takes at once. A grid of `ceil(bytes / PIECE_BYTES)`
/// has one for each; a smaller one does all of the work too.
pub const PIECE_BYTES: u32 = 16 << 10;

/// Keys that a warp of `attention` works on at a time.
pub const TILE_KEYS: u32 = 16;

/// Queries that a warp of `attention` has.
pub const COLUMNS: u32 = 8;

/// Tiles in the ring of shared memory that each warp of `attention` has.
pub const STAGES: u32 = 3;

/// Bytes between the rows of a tile there.
pub const ROW_PAD: u32 = 16;

/// Rows of queries (a head of a token each) that a thread block of `attention_prefill` has.
pub const PREFILL_ROWS: u32 = 128;

/// Keys in a tile of `attention_prefill`.
pub const PREFILL_KEYS: u32 = 64;

/// Elements of the largest head that `attention_prefill` takes.
pub const PREFILL_DIM: u32 = 128;

/// Rows of weights that a warp of `matvec_<type>_1` (floats: `_4` too) has.
pub const MATVEC_WARP_ROWS: u32 = 4;

/// Rows of weights that a thread block of `matvec_<type>_8` has.
pub const MATVEC_TILE_ROWS: u32 = 16;

/// Matrices that a launch of `matvec` takes.
pub const MATVEC_JOBS: u32 = 4;

/// Matrices that a launch of `matmul` takes.
pub const MATMUL_JOBS: u32 = 4;

/// Steps of a thread block of `matmul` in shared memory, of lines that come as they are and of those that are converted; bytes of one.
pub const MATMUL_STAGES: u32 = 3;
/// As above.
pub const MATMUL_CONVERTED: u32 = 2;
/// As above.
pub const MATMUL_STEP_BYTES: u32 = 128 * 64 * 2;

/// Tokens of a vocabulary's slice in `sample`.
pub const SAMPLE_SLICE: u32 = 4096;

/// Bytes of scratch that `sample` needs for a row.
pub const SAMPLE_BOARD: u32 = 62_480;

/// Bit of the flag word that `quantize`, `kv_append` and two forms of `activate` set where an element is NaN or infinite.
pub const FLAG_NOT_FINITE: u32 = 1;

/// Bit of the flag word that they set where a block's scale, or an element that `kv_append` stores in 16 bits, rounds to
/// infinity.
pub const FLAG_OVERFLOW: u32 = 2;
