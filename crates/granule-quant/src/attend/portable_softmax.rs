//! The softmax of a tile, written so that compilers make vectors of it: compiled once for each instruction set.

use super::{ATTEND_TILE, RunningSoftmax, TileShape};

const LANES: usize = 16;

/// `a * b + c`, by one instruction where there is one (without it, it would be a call).
#[inline(always)]
pub(super) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `exp(x)` for `x <= 0`; what is below -87 counts as -87. NaN stays NaN. The polynomial is that of Cephes' `expf` (Moshier).
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    // 1.5 * 2^23: adding it rounds to a whole number, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = if x < -87.0 { -87.0 } else { x };
    let t = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = t - ROUND;
    // ln 2 in two parts, the first of them short, so that its product is exact.
    let f = fma::<FMA>(n, 2.121_944_4e-4, fma::<FMA>(n, -0.693_359_4, x));
    let mut p = 1.987_569_1e-4_f32;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = fma::<FMA>(p, f, c);
    }
    let power = f32::from_bits(t.to_bits().wrapping_add(127) << 23);
    (fma::<FMA>(p, f * f, f) + 1.0) * power
}

/// The weights and the largest score of one row; what they sum to.
#[inline(always)]
fn weigh<const FMA: bool>(scores: &mut [f32; ATTEND_TILE], seen: usize, scale: f32, add: f32) -> (f32, f32) {
    let (mut tops, mut sums) = ([f32::MIN; LANES], [0f32; LANES]);
    let chunks = scores.as_chunks_mut::<LANES>().0;
    for (c, chunk) in chunks.iter_mut().enumerate() {
        for l in 0..LANES {
            let score = if c * LANES + l < seen { fma::<FMA>(chunk[l], scale, add) } else { f32::MIN };
            chunk[l] = score;
            tops[l] = if score > tops[l] { score } else { tops[l] };
        }
    }
    let top = tops.into_iter().fold(f32::MIN, f32::max);
    for (c, chunk) in chunks.iter_mut().enumerate() {
        for l in 0..LANES {
            let weight = exp::<FMA>(chunk[l] - top);
            chunk[l] = if c * LANES + l < seen { weight } else { 0.0 };
            sums[l] += chunk[l];
        }
    }
    (top, sums.into_iter().sum())
}

/// [`crate::Isa::softmax_tile`], which has checked the lengths.
#[inline(always)]
pub(crate) fn softmax<const FMA: bool>(
    shape: TileShape,
    add: &[f32],
    scores: &mut [f32],
    running: &mut RunningSoftmax<'_>,
) {
    let TileShape { rows, keys, seen, group, scale } = shape;
    let tiles = scores.as_chunks_mut::<ATTEND_TILE>().0;
    for first in (0..rows).step_by(LANES) {
        let n = LANES.min(rows - first);
        let (mut tops, mut totals) = ([f32::MIN; LANES], [0f32; LANES]);
        let (mut maxima, mut before) = (tops, totals);
        for i in 0..n {
            let row = first + i;
            let seen = seen.saturating_add_unsigned(row / group).max(0).unsigned_abs().min(keys);
            (tops[i], totals[i]) = weigh::<FMA>(&mut tiles[row], seen, scale, add[row]);
            (maxima[i], before[i]) = (running.max[row], running.total[row]);
        }
        let (mut grow, mut shrink) = ([0f32; LANES], [0f32; LANES]);
        for i in 0..LANES {
            let max = if tops[i] > maxima[i] { tops[i] } else { maxima[i] };
            grow[i] = exp::<FMA>(tops[i] - max);
            shrink[i] = exp::<FMA>(maxima[i] - max);
            maxima[i] = max;
            totals[i] = totals[i] * grow[i] + before[i] * shrink[i];
        }
        running.max[first..first + n].copy_from_slice(&maxima[..n]);
        running.total[first..first + n].copy_from_slice(&totals[..n]);
        for (factors, pair) in running.factors[first..first + n].iter_mut().zip(grow.iter().zip(&shrink)) {
            *factors = [*pair.0, *pair.1];
        }
    }
}
