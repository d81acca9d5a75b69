//! Weights as signed bytes: every type that has no kernel of its own, 32 elements at a time, in one form.
//!
//! A type says what its blocks mean in one place, [`Expand::run`]. Decoding, the reference products and the products of
//! the vector paths are written once, over [`Run`]s. What is here is plain code that compilers make vectors of: it is
//! inlined into functions of each instruction set.

mod grid;
mod k;
mod nibbles;

use bytemuck::{Pod, cast, pod_read_unaligned, try_from_bytes};
use half::f16;

use crate::BLOCK_LEN;

/// 32 elements of a row: element `j` is `d[j / 16] * q[j] + m[j / 16]`, exactly as its type defines it: one rounding
/// where there is a minimum, none where there is none.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Run {
    /// Quants, -127 to 127.
    pub(crate) q: [i8; BLOCK_LEN],
    /// Scale of each half.
    pub(crate) d: [f32; 2],
    /// Minimum of each half; [`NO_MINIMUM`] in types without.
    pub(crate) m: [f32; 2],
}

/// What changes no number that it is added to, not even the sign of a zero.
pub(crate) const NO_MINIMUM: [f32; 2] = [-0.0; 2];

impl Run {
    /// The run that a piece starts with, before it is written.
    pub(crate) const ZERO: Run = Run { q: [0; BLOCK_LEN], d: [0.0; 2], m: NO_MINIMUM };
}

/// What the elements of a type have beside scales.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Minimum {
    /// Nothing.
    None,
    /// One for each 32 elements: both halves of a [`Run`] have the same.
    Whole,
    /// One for each 16 elements.
    Halves,
}

/// A block that becomes runs.
pub(crate) trait Expand: Pod {
    /// Runs in a block.
    const RUNS: usize;
    /// Which minimums its elements have.
    const MINIMUM: Minimum;

    /// Elements `32 i` to `32 i + 31`; `i` is below [`RUNS`](Self::RUNS).
    fn run(&self, i: usize) -> Run;
}

/// Runs that are expanded at a time by products: one block of 256, or eight of 32.
pub(crate) const PIECE: usize = 8;

/// The block at `bytes`, where it lies if its address allows that, as that of a file's block does.
macro_rules! block_at {
    ($bytes:ident, $copy:ident) => {
        match try_from_bytes($bytes) {
            Ok(block) => block,
            Err(_) => {
                $copy = pod_read_unaligned($bytes);
                &$copy
            }
        }
    };
}

/// A scale: `half`'s conversion asks at every call what the CPU can do, which takes longer than this.
#[inline(always)]
fn widen(x: f16) -> f32 {
    let (sign, magnitude) = (u32::from(x.to_bits() >> 15) << 31, u32::from(x.to_bits() & 0x7fff) << 13);
    // Exponents go up by 127 - 15; that of infinity and NaN by twice as much.
    let number = match magnitude >> 23 {
        // Subnormal: as if it had the smallest exponent and a leading one, which is then taken off.
        0 => (f32::from_bits(magnitude + (113 << 23)) - f32::from_bits(113 << 23)).to_bits(),
        31 => magnitude + (224 << 23),
        _ => magnitude + (112 << 23),
    };
    f32::from_bits(number | sign)
}

/// Bits `shift` and above of each byte, as many as `mask` has.
#[inline(always)]
fn bits<const N: usize>(bytes: [u64; N], shift: usize, mask: u8) -> [u64; N] {
    bytes.map(|word| word >> shift & u64::from_ne_bytes([mask; 8]))
}

/// `low` and `high << shift` of each byte, less `offset`.
#[inline(always)]
fn join(low: [u64; 4], high: [u64; 4], shift: usize, offset: u8) -> [i8; BLOCK_LEN] {
    let each = |byte: u8| u64::from_ne_bytes([byte; 8]);
    let mut joined = low;
    for (joined, high) in joined.iter_mut().zip(high) {
        // With its highest bit set no byte, all of which are below 64, borrows from the next.
        *joined = ((*joined | high << shift | each(128)) - each(offset)) ^ each(128);
    }
    cast(joined)
}

/// Expands whole blocks; `runs` is as long as they are.
#[inline(always)]
pub(crate) fn expand<B: Expand>(blocks: &[u8], runs: &mut [Run]) {
    for (bytes, runs) in blocks.chunks_exact(size_of::<B>()).zip(runs.chunks_exact_mut(B::RUNS)) {
        let copy: B;
        let block = block_at!(bytes, copy);
        for (i, run) in runs.iter_mut().enumerate() {
            *run = block.run(i);
        }
    }
}

/// Decodes whole blocks; `dst` is as long as they are.
#[inline(always)]
pub(crate) fn decode<B: Expand>(blocks: &[u8], dst: &mut [f32]) {
    for (bytes, dst) in blocks.chunks_exact(size_of::<B>()).zip(dst.chunks_exact_mut(B::RUNS * BLOCK_LEN)) {
        let copy: B;
        let block = block_at!(bytes, copy);
        for (i, x) in dst.as_chunks_mut::<BLOCK_LEN>().0.iter_mut().enumerate() {
            let Run { q, d, m } = block.run(i);
            for (j, x) in x.iter_mut().enumerate() {
                *x = d[j / 16] * f32::from(q[j]) + m[j / 16];
            }
        }
    }
}

/// Calls `function::<B>(arguments)` with the block of a type that is expanded, or gives `other` for the types that have code of
/// their own.
macro_rules! by_block {
    ($dtype:expr, $function:ident, ($($argument:expr),*), $other:expr) => {{
        use $crate::{DType, block::*};
        match $dtype {
            DType::Q5_0 => $function::<BlockQ5_0>($($argument),*),
            DType::Q5_1 => $function::<BlockQ5_1>($($argument),*),
            DType::Q2_K => $function::<BlockQ2_K>($($argument),*),
            DType::Q3_K => $function::<BlockQ3_K>($($argument),*),
            DType::Q4_K => $function::<BlockQ4_K>($($argument),*),
            DType::Q5_K => $function::<BlockQ5_K>($($argument),*),
            DType::Q6_K => $function::<BlockQ6_K>($($argument),*),
            DType::IQ4_NL => $function::<BlockIQ4_NL>($($argument),*),
            DType::IQ4_XS => $function::<BlockIQ4_XS>($($argument),*),
            DType::IQ2_XXS => $function::<BlockIQ2_XXS>($($argument),*),
            DType::F32 | DType::F16 | DType::BF16 | DType::Q8_0 | DType::Q4_0 | DType::Q4_1 => $other,
        }
    }};
}
pub(crate) use by_block;
