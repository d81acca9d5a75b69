//! The block structs of ggml, byte for byte, each with its ruler.
//!
//! All are little-endian and have an alignment of two. A row in a file may start at any byte, so rows are handed around
//! as `&[u8]` and a block is read with `bytemuck::pod_read_unaligned`.
//!
//! What is here has 32 elements; the blocks of 256 are in [`k`].

use bytemuck::{Pod, Zeroable};
use half::f16;

mod k;

pub use k::{
    BlockIQ2_XXS, BlockIQ4_XS, BlockQ2_K, BlockQ3_K, BlockQ4_K, BlockQ5_K, BlockQ6_K, SUPER_BLOCK_LEN,
};

/// Elements in one block of `Q8_0`, `Q4_0`, `Q4_1`, `Q5_0`, `Q5_1` and `IQ4_NL`, and in one of activations.
pub const BLOCK_LEN: usize = 32;

/// 32 elements in 34 bytes: `x' = d * q`.
///
/// ```text
/// byte  0     2                                                         34
///       | d   | q[0] q[1] q[2]  ...                          q[30] q[31] |
///       | f16 | i8   i8                                            i8    |
/// ```
///
/// `d = max|x| / 127`, `q` = `x * (1/d)` rounded half away from zero, with `1/d` taken from the `f32` d before it
/// is rounded to `f16`. Where `1/d` is not finite (`d` is zero or below about 2.9e-39) every `q` is 0; `d` is
/// then 0 in `f16`, so no other `q` could be told from it.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ8_0 {
    /// Scale.
    pub d: f16,
    /// Quants, -127 to 127 as encoded here; -128 is read as such.
    pub q: [i8; BLOCK_LEN],
}

/// 32 elements in 18 bytes: `x' = d * (q - 8)`.
///
/// ```text
/// byte  0     2             3                                           18
///       | d   | q[0]        | q[1]        |   ...         | q[15]        |
///       | f16 | lo x0 hi x16| lo x1 hi x17|               | lo x15 hi x31|
/// ```
///
/// `m` = the signed value of largest magnitude, the first on a tie; `d = m / -8`; `q = min(15, trunc(x * (1/d) +
/// 8.5))`, with `1/d` taken from the `f32` d. Where `1/d` is not finite every `q` is 8 (`1/d` counts as 0). A block
/// of zeros has `d = -0.0` if its first element is `+0.0`.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_0 {
    /// Scale; its sign is the opposite of the sign of the largest element.
    pub d: f16,
    /// Nibbles: the low one of byte `j` is element `j`, the high one element `j + 16`.
    pub q: [u8; BLOCK_LEN / 2],
}

/// 32 elements in 20 bytes: `x' = d * q + m`. For weights only.
///
/// ```text
/// byte  0     2     4             5                                     20
///       | d   | m   | q[0]        | q[1]        |   ...   | q[15]        |
///       | f16 | f16 | lo x0 hi x16| lo x1 hi x17|         | lo x15 hi x31|
/// ```
///
/// `m = min x`, the first on a tie (which decides the sign of a zero); `d = (max - min) / 15`; `q = min(15,
/// trunc((x - m) * (1/d) + 0.5))`, with `m` and `1/d` as `f32`. Where `1/d` is not finite every `q` is 0.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_1 {
    /// Scale.
    pub d: f16,
    /// Minimum.
    pub m: f16,
    /// Nibbles, as in [`BlockQ4_0`].
    pub q: [u8; BLOCK_LEN / 2],
}

/// 32 elements in 22 bytes: `x' = d * (q - 16)`. For weights only.
///
/// ```text
/// byte  0     2                   6             7                       22
///       | d   | h: bit j for xj   | q[0]        | q[1]        |  ...    |
///       | f16 | u32               | lo x0 hi x16| lo x1 hi x17|         |
/// ```
///
/// The quant of element `j`, 0 to 31, is its nibble plus 16 where bit `j` of `h` is set.
///
/// Encoded as [`BlockQ4_0`], with `d = m / -16` and `q = min(31, trunc(x * (1/d) + 16.5))`.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_0 {
    /// Scale.
    pub d: f16,
    /// The fifth bits, as a little-endian number.
    pub h: [u8; 4],
    /// Nibbles, as in [`BlockQ4_0`].
    pub q: [u8; BLOCK_LEN / 2],
}

/// 32 elements in 24 bytes: `x' = d * q + m`. For weights only.
///
/// ```text
/// byte  0     2     4                   8             9                 24
///       | d   | m   | h: bit j for xj   | q[0]        | q[1]  |  ...    |
///       | f16 | f16 | u32               | lo x0 hi x16|       |         |
/// ```
///
/// Quants, 0 to 31, as in [`BlockQ5_0`]. Encoded as [`BlockQ4_1`], with `d = (max - min) / 31`.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_1 {
    /// Scale.
    pub d: f16,
    /// Minimum.
    pub m: f16,
    /// The fifth bits, as a little-endian number.
    pub h: [u8; 4],
    /// Nibbles, as in [`BlockQ4_0`].
    pub q: [u8; BLOCK_LEN / 2],
}

/// 32 elements in 18 bytes: `x' = d * v[q]`. For weights only, decoded and not encoded here.
///
/// ```text
/// byte  0     2             3                                           18
///       | d   | q[0]        | q[1]        |   ...         | q[15]        |
///       | f16 | lo x0 hi x16| lo x1 hi x17|               | lo x15 hi x31|
///
/// v = -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113
/// ```
///
/// Source of `v`: `kvalues_iq4nl` of ggml.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ4_NL {
    /// Scale.
    pub d: f16,
    /// Nibbles, as in [`BlockQ4_0`]; they index `v`.
    pub q: [u8; BLOCK_LEN / 2],
}

const _: () = assert!(size_of::<BlockQ8_0>() == 34 && align_of::<BlockQ8_0>() == 2);
const _: () = assert!(size_of::<BlockQ4_0>() == 18 && align_of::<BlockQ4_0>() == 2);
const _: () = assert!(size_of::<BlockQ4_1>() == 20 && align_of::<BlockQ4_1>() == 2);
const _: () = assert!(size_of::<BlockQ5_0>() == 22 && align_of::<BlockQ5_0>() == 2);
const _: () = assert!(size_of::<BlockQ5_1>() == 24 && align_of::<BlockQ5_1>() == 2);
const _: () = assert!(size_of::<BlockIQ4_NL>() == 18 && align_of::<BlockIQ4_NL>() == 2);
const _: () = assert!(cfg!(target_endian = "little"), "ggml blocks are little-endian");
