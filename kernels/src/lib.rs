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

/// Bit of the flag word that `quantize` and `kv_append` set where an element is NaN or infinite.
pub const FLAG_NOT_FINITE: u32 = 1;

/// Bit of the flag word that they set where a block's scale, or an element that `kv_append` stores in 16 bits, rounds to
/// infinity.
pub const FLAG_OVERFLOW: u32 = 2;
