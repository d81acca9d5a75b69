//! The blocks of 256 elements, for weights only.
//!
//! Each is eight runs of 32 elements: run `i` has elements `32 i` to `32 i + 31`. Scales of 16 or 32 elements are small
//! integers, which the block's one or two `f16` scales multiply. Of `Q4_K`, `Q5_K` and `Q6_K` the encoder looks for the scales and
//! minimums that come nearest to the numbers; a block of zeros is encoded as zeros, and a scale that would round to nothing as the
//! smallest there is. The others are decoded and not encoded here. Source: the block structs of ggml's `ggml-common.h`.

use bytemuck::{Pod, Zeroable};
use half::f16;

/// Elements in one block of `Q2_K` to `Q6_K`, `IQ4_XS` and `IQ2_XXS`.
pub const SUPER_BLOCK_LEN: usize = 256;

/// 256 elements in 84 bytes: `x' = (d * s) * q - (dmin * t)`, with `s` and `t` for each 16 elements.
///
/// ```text
/// byte  0                      16                                80    82     84
///       | scales[16]           | q[64]                           | d   | dmin |
///       | lo s, hi t           | four quants of 2 bits each      | f16 | f16  |
///
/// q[32 n + j], j < 32:   bits 0-1       2-3            4-5            6-7
///            element     128 n + j      128 n + 32 + j 128 n + 64 + j 128 n + 96 + j
/// ```
///
/// `scales[g]` belongs to elements `16 g` to `16 g + 15`.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ2_K {
    /// Scale (low nibble) and minimum (high nibble) of each 16 elements.
    pub scales: [u8; 16],
    /// Quants.
    pub q: [u8; 64],
    /// What multiplies the scales.
    pub d: f16,
    /// What multiplies the minimums.
    pub dmin: f16,
}

/// 256 elements in 110 bytes: `x' = (d * (s - 32)) * (q - 4)`, with `s` for each 16 elements.
///
/// ```text
/// byte  0              32                              96                    108   110
///       | h[32]        | q[64]                         | scales[12]          | d   |
///       | high bits    | low two bits, as in Q2_K      | 16 scales of 6 bits | f16 |
///
/// h[j], j < 32: bit i is the third bit of element 32 i + j
///
/// scales[g], g < 8:      low nibble: low four bits of s[g]   high nibble: those of s[g + 8]
/// scales[8 + g], g < 4:  bits 0-1: high two bits of s[g], bits 2-3: of s[g + 4], 4-5: of s[g + 8], 6-7: of s[g + 12]
/// ```
///
/// A third bit that is set stands for 4, so `q - 4` is -4 to 3.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ3_K {
    /// High bits.
    pub h: [u8; 32],
    /// Low bits.
    pub q: [u8; 64],
    /// Scales.
    pub scales: [u8; 12],
    /// What multiplies the scales.
    pub d: f16,
}

/// 256 elements in 144 bytes: `x' = (d * s) * q - (dmin * t)`, with `s` and `t` for each 32 elements.
///
/// ```text
/// byte  0     2      4                                 16                        144
///       | d   | dmin | scales[12]                      | q[128]                  |
///       | f16 | f16  | 8 scales, 8 minimums of 6 bits  | two quants of 4 bits    |
///
/// scales[i], i < 4:      bits 0-5: s[i]   bits 6-7: high two bits of s[i + 4]
/// scales[4 + i], i < 4:  bits 0-5: t[i]   bits 6-7: high two bits of t[i + 4]
/// scales[8 + i], i < 4:  low nibble: low four bits of s[i + 4]   high nibble: those of t[i + 4]
///
/// q[32 n + j], j < 32: low nibble is element 64 n + j, high nibble 64 n + 32 + j
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ4_K {
    /// What multiplies the scales.
    pub d: f16,
    /// What multiplies the minimums.
    pub dmin: f16,
    /// Scales and minimums.
    pub scales: [u8; 12],
    /// Quants.
    pub q: [u8; 128],
}

/// 256 elements in 176 bytes: `x' = (d * s) * q - (dmin * t)`, with `s` and `t` for each 32 elements.
///
/// ```text
/// byte  0     2      4            16                48                           176
///       | d   | dmin | scales[12] | h[32]           | q[128]                     |
///       | f16 | f16  | as in Q4_K | fifth bits      | low four bits, as in Q4_K  |
///
/// h[j], j < 32: bit i is the fifth bit of element 32 i + j
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ5_K {
    /// What multiplies the scales.
    pub d: f16,
    /// What multiplies the minimums.
    pub dmin: f16,
    /// Scales and minimums, as in [`BlockQ4_K`].
    pub scales: [u8; 12],
    /// High bits.
    pub h: [u8; 32],
    /// Low bits.
    pub q: [u8; 128],
}

/// 256 elements in 210 bytes: `x' = (d * s) * (q - 32)`, with `s` for each 16 elements.
///
/// ```text
/// byte  0                  128               192              208   210
///       | q[128]           | h[64]           | scales[16]     | d   |
///       | low four bits    | high two bits   | i8             | f16 |
///
/// q[64 n + j], j < 64:  low nibble is element 128 n + j, high nibble 128 n + 64 + j
/// h[32 n + j], j < 32:  bits 0-1     2-3            4-5            6-7
///            element    128 n + j    128 n + 32 + j 128 n + 64 + j 128 n + 96 + j
/// ```
///
/// `scales[g]` belongs to elements `16 g` to `16 g + 15`.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockQ6_K {
    /// Low bits.
    pub q: [u8; 128],
    /// High bits.
    pub h: [u8; 64],
    /// Scales.
    pub scales: [i8; 16],
    /// What multiplies the scales.
    pub d: f16,
}

/// 256 elements in 136 bytes: `x' = (d * (s - 32)) * v[q]`, with `s` for each 32 elements and `v` as in
/// [`BlockIQ4_NL`](crate::BlockIQ4_NL).
///
/// ```text
/// byte  0     2          4             8                          136
///       | d   | h        | l[4]        | q[128]                   |
///       | f16 | u16      | low bits    | two quants of 4 bits     |
///
/// h:     bits 2i and 2i + 1 are the high two bits of s[i], i < 8
/// l[n]:  low nibble: low four bits of s[2 n], high nibble: those of s[2 n + 1]
/// q[16 i + j], j < 16: low nibble is element 32 i + j, high nibble 32 i + 16 + j
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ4_XS {
    /// What multiplies the scales.
    pub d: f16,
    /// High bits of the scales, as a little-endian number.
    pub h: [u8; 2],
    /// Low bits of the scales.
    pub l: [u8; 4],
    /// Quants.
    pub q: [u8; 128],
}

/// 256 elements in 66 bytes: `x' = (d * (s + 1/2) / 4) * g`, with `s` for each 32 elements and `g` from a grid, with a
/// sign.
///
/// ```text
/// byte  0     2                                                      66
///       | d   | q[8]: eight runs of 32 elements, 8 bytes each        |
///       | f16 | [u8; 8]                                              |
///
/// q[i]:  byte  0    1    2    3    4                               8
///              | c0 | c1 | c2 | c3 | u32, little-endian            |
///              | points of the grid| bits 0-6 signs of c0, 7-13 of c1, 14-20 of c2, 21-27 of c3, 28-31 s
/// ```
///
/// Each point stands for eight elements: the magnitudes 8, 25 and 43 in 256 of the combinations that there are. Of the
/// signs of a point bit `j` makes element `j` negative; the eighth is as makes the number of negative elements even.
///
/// Source of the grid: `iq2xxs_grid` of ggml's `ggml-common.h`.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct BlockIQ2_XXS {
    /// What multiplies the scales.
    pub d: f16,
    /// Points, signs and scale of each run.
    pub q: [[u8; 8]; 8],
}

const _: () = assert!(size_of::<BlockQ2_K>() == 84 && align_of::<BlockQ2_K>() == 2);
const _: () = assert!(size_of::<BlockQ3_K>() == 110 && align_of::<BlockQ3_K>() == 2);
const _: () = assert!(size_of::<BlockQ4_K>() == 144 && align_of::<BlockQ4_K>() == 2);
const _: () = assert!(size_of::<BlockQ5_K>() == 176 && align_of::<BlockQ5_K>() == 2);
const _: () = assert!(size_of::<BlockQ6_K>() == 210 && align_of::<BlockQ6_K>() == 2);
const _: () = assert!(size_of::<BlockIQ4_XS>() == 136 && align_of::<BlockIQ4_XS>() == 2);
const _: () = assert!(size_of::<BlockIQ2_XXS>() == 66 && align_of::<BlockIQ2_XXS>() == 2);
