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
    /// Quants, -127 to 127 (-128 in a `Q8_0` that was not encoded here).
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

    /// The elements as numbers.
    #[inline(always)]
    pub(crate) fn values(&self, x: &mut [f32; BLOCK_LEN]) {
        for (j, x) in x.iter_mut().enumerate() {
            *x = self.d[j / 16] * f32::from(self.q[j]) + self.m[j / 16];
        }
    }
}

/// What a code stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Values {
    /// The code less this, a power of two or 0.
    Less(u8),
    /// An entry of this table.
    Table([i8; 16]),
}

/// Which scales the elements of a block have beside the block's own.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Scales {
    /// None: the block is one run.
    One,
    /// One for each run.
    Whole,
    /// One for each half of a run.
    Halves,
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

/// A quantized block: what its bytes mean. Decoding, products and the packed form all come from here.
pub(crate) trait Expand: Pod {
    /// Runs in a block.
    const RUNS: usize;
    /// Bits of a code: 2, 4 or 8, and 0, 1 or 2 more above them.
    const BITS: (usize, usize);
    /// What codes stand for.
    const VALUES: Values;
    /// Which scales there are. Minimums go with them: halves with halves.
    const SCALES: Scales = Scales::One;
    /// Which minimums the elements have.
    const MINIMUM: Minimum = Minimum::None;
    /// Whether [`scales`](Self::scales) and [`minimums`](Self::minimums) have four bits each.
    const NARROW: bool = false;
    /// What all scales are multiplied by, a power of two.
    const UNIT: f32 = 1.0;

    /// Codes of elements `32 i` to `32 i + 31`; `i` is below [`RUNS`](Self::RUNS).
    fn codes(&self, i: usize) -> [u8; BLOCK_LEN];

    /// The block's scale.
    fn d(&self) -> f16;

    /// The scale of each half of run `i`.
    #[inline(always)]
    fn scales(&self, _: usize) -> [i8; 2] {
        [1; 2]
    }

    /// The block's minimum, or what its minimums are multiplied by.
    #[inline(always)]
    fn minimum(&self) -> f16 {
        f16::ZERO
    }

    /// The minimum of each half of run `i`, to be subtracted.
    #[inline(always)]
    fn minimums(&self, _: usize) -> [u8; 2] {
        [1; 2]
    }

    /// Elements `32 i` to `32 i + 31`.
    #[inline(always)]
    fn run(&self, i: usize) -> Run {
        Self::run_of(self.codes(i), [self.d(), self.minimum()], self.scales(i), self.minimums(i))
    }

    /// 32 elements from their codes, the block's scale and minimum, and those of the halves. Products of scales are exact:
    /// 11 bits with at most 8.
    #[inline(always)]
    fn run_of(codes: [u8; BLOCK_LEN], block: [f16; 2], scales: [i8; 2], minimums: [u8; 2]) -> Run {
        let q = match Self::VALUES {
            Values::Less(offset) => codes.map(|code| code.wrapping_sub(offset).cast_signed()),
            Values::Table(table) => codes.map(|code| table[usize::from(code & 15)]),
        };
        let (d, minimum) = (widen(block[0]) * Self::UNIT, widen(block[1]));
        let m = match (Self::MINIMUM, Self::SCALES) {
            (Minimum::None, _) => NO_MINIMUM,
            (_, Scales::One) => [minimum; 2],
            _ => minimums.map(|t| -(minimum * f32::from(t))),
        };
        Run { q, d: scales.map(|s| d * f32::from(s)), m }
    }
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

/// `low` and `high << shift` of each byte.
#[inline(always)]
fn join(low: [u64; 4], high: [u64; 4], shift: usize) -> [u8; BLOCK_LEN] {
    let mut joined = low;
    for (joined, high) in joined.iter_mut().zip(high) {
        *joined |= high << shift;
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
            block.run(i).values(x);
        }
    }
}

/// Calls `function::<B>(arguments)` with the block of a quantized type, or gives `other` for the float types.
macro_rules! by_block {
    ($dtype:expr, $function:ident, ($($argument:expr),*), $other:expr) => {{
        use $crate::{DType, block::*};
        match $dtype {
            DType::Q8_0 => $function::<BlockQ8_0>($($argument),*),
            DType::Q4_0 => $function::<BlockQ4_0>($($argument),*),
            DType::Q4_1 => $function::<BlockQ4_1>($($argument),*),
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
            DType::F32 | DType::F16 | DType::BF16 => $other,
        }
    }};
}
pub(crate) use by_block;
