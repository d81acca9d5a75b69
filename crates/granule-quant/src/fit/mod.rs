//! Encoders that look for their scales: `Q4_K`, `Q5_K` and `Q6_K`.
//!
//! In these types a block's numbers do not say what its scales must be; what is wanted is the block that comes nearest to
//! them. Each encoder tries [`TRIED`] scales of a group side by side, gives each the scale and minimum that are best for the
//! quants it led to (weighted least squares), keeps the best, and then looks again among what the block's few bits can hold.
//!
//! Numbers are scaled by a power of two beforehand, which is exact, so that no square of them leaves the range of f32. What is
//! here is plain code that compilers make vectors of, in an order of operations that is part of the definition: it gives the
//! same bytes on every machine.

mod minimum;
mod signed;

use half::f16;

use crate::{DType, Error, SUPER_BLOCK_LEN};

/// Scales that are tried side by side.
const TRIED: usize = 16;

/// A number for each scale that is tried.
type Lanes = [f32; TRIED];

/// The numbers of a block.
type Numbers = [f32; SUPER_BLOCK_LEN];

/// A block that can be fitted to numbers.
trait Fit: bytemuck::NoUninit {
    /// The block that comes nearest to `x`, whose elements are finite. A scale beyond f16 is infinite in it.
    fn fit(x: &Numbers) -> Self;

    /// Whether all scales are finite.
    fn is_finite(&self) -> bool;
}

/// Calls `function::<B>(arguments)` with the block of a type that is fitted, or gives `other`.
macro_rules! by_fitted_block {
    ($dtype:expr, $function:ident, ($($argument:expr),*), $other:expr) => {{
        use $crate::{DType, block::*};
        match $dtype {
            DType::Q4_K => $function::<BlockQ4_K>($($argument),*),
            DType::Q5_K => $function::<BlockQ5_K>($($argument),*),
            DType::Q6_K => $function::<BlockQ6_K>($($argument),*),
            _ => $other,
        }
    }};
}

/// Encodes a row of a type that is fitted; does nothing for the others. Lengths and numbers have been checked.
#[inline(always)]
pub(crate) fn encode(dtype: DType, src: &[f32], dst: &mut [u8]) {
    by_fitted_block!(dtype, encode_blocks, (src, dst), ());
}

#[inline(always)]
fn encode_blocks<B: Fit>(src: &[f32], dst: &mut [u8]) {
    for (x, dst) in src.as_chunks().0.iter().zip(dst.chunks_exact_mut(size_of::<B>())) {
        dst.copy_from_slice(bytemuck::bytes_of(&B::fit(x)));
    }
}

/// Refuses finite numbers of which some block's scale would be infinite.
pub(crate) fn check(dtype: DType, src: &[f32]) -> Result<(), Error> {
    by_fitted_block!(dtype, check_blocks, (dtype, src), Ok(()))
}

fn check_blocks<B: Fit>(dtype: DType, src: &[f32]) -> Result<(), Error> {
    let mut blocks = src.as_chunks().0.iter().enumerate();
    let Some((block, x)) = blocks.find(|(_, x)| !B::fit(x).is_finite()) else { return Ok(()) };
    let index = block * SUPER_BLOCK_LEN + crate::scalar::codec::largest(x).0;
    Err(Error::Overflow { index, dtype })
}

/// The power of two below the largest magnitude, at least the smallest normal number.
#[inline(always)]
fn unit(x: &Numbers) -> f32 {
    let mut largest = f32::MIN_POSITIVE.to_bits();
    for x in x {
        largest = largest.max(x.abs().to_bits());
    }
    f32::from_bits(largest & f32::INFINITY.to_bits())
}

/// The smallest f16 that is not below `x`, which is not negative.
#[inline(always)]
fn f16_above(x: f32) -> f16 {
    let near = f16::from_f32(x);
    if near.to_f32() < x { f16::from_bits(near.to_bits() + 1) } else { near }
}

/// The nearest integer to `x`, which is far below 2^22; as vectors of every instruction set can do it.
#[inline(always)]
fn nearest(x: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23: what is added to it loses its fraction
    (x + SHIFT) - SHIFT
}

/// `1/x`, or 0 for 0.
#[inline(always)]
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// `N` numbers that share a scale, and what an error of each weighs.
#[derive(Clone, Copy)]
struct Group<const N: usize> {
    x: [f32; N],
    weight: [f32; N],
}

/// Sums over a group, for each scale that is tried: of the weighted squared error, and of weighted quants, their squares, and their
/// products with the numbers.
struct Sums {
    error: Lanes,
    q: Lanes,
    qq: Lanes,
    xq: Lanes,
}

impl<const N: usize> Group<N> {
    const ZERO: Self = Group { x: [0.0; N], weight: [0.0; N] };

    /// Numbers in units of a power of two. An error of a large number weighs more.
    #[inline(always)]
    fn new(x: &[f32; N], unit: f32) -> Self {
        let mut group = Self::ZERO;
        let mut squares = 0.0;
        for (j, x) in x.iter().enumerate() {
            group.x[j] = x / unit;
            squares += group.x[j] * group.x[j];
        }
        // Never nothing, so that zeros are wanted to be zeros.
        let usual = (squares / N as f32).sqrt() + 1e-6;
        for j in 0..N {
            group.weight[j] = usual + group.x[j].abs();
        }
        group
    }

    /// The error and the sums of the nearest quants, `low` to `high`, where a number is `scale * q + minimum`.
    #[inline(always)]
    fn sums(&self, scale: &Lanes, minimum: &Lanes, low: f32, high: f32) -> Sums {
        let mut sums = Sums { error: [0.0; TRIED], q: [0.0; TRIED], qq: [0.0; TRIED], xq: [0.0; TRIED] };
        let mut inverses = [0.0; TRIED];
        for i in 0..TRIED {
            inverses[i] = inverse(scale[i]);
        }
        for j in 0..N {
            let (x, weight) = (self.x[j], self.weight[j]);
            for i in 0..TRIED {
                let q = nearest(within((x - minimum[i]) * inverses[i], low, high));
                let error = scale[i] * q + minimum[i] - x;
                let weighted = weight * q;
                sums.error[i] += weight * (error * error);
                sums.q[i] += weighted;
                sums.qq[i] += weighted * q;
                sums.xq[i] += weighted * x;
            }
        }
        sums
    }
}

/// `x`, or what comes nearest to it from `low` to `high`.
#[inline(always)]
fn within(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// Where the smallest is; the first on a tie.
#[inline(always)]
fn least(x: &Lanes) -> usize {
    let mut least = 0;
    for i in 1..TRIED {
        least = if x[i] < x[least] { i } else { least };
    }
    least
}
