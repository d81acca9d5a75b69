//! The products on queries and values in f32, written so that compilers make vectors of them: compiled once for each
//! instruction set that has no way of its own, with that set's decoder.

use super::portable_softmax::fma;
pub(crate) use super::portable_softmax::softmax;
use super::{ATTEND_TILE, HeadRows};
use crate::DType;

const LANES: usize = 8;
/// Elements that are decoded at a time: two blocks.
const PART: usize = 64;

/// Rows padded with zeros to whole chunks of 16 elements.
#[inline(always)]
pub(crate) fn prepare(head_dim: usize, q: &[f32], words: &mut [f32]) {
    let width = head_dim.next_multiple_of(16).max(16);
    words.fill(0.0);
    for (row, q) in words.chunks_exact_mut(width).zip(q.chunks_exact(head_dim.max(1))) {
        row[..head_dim].copy_from_slice(q);
    }
}

/// [`crate::Isa::scores`], which has checked the lengths.
#[inline(always)]
pub(crate) fn scores<const FMA: bool, D: Fn(DType, &[u8], &[u8], &mut [f32])>(
    keys: &HeadRows<'_>,
    words: &[f32],
    rows: usize,
    scores: &mut [f32],
    decode: D,
) {
    let width = keys.head_dim.next_multiple_of(16);
    let mut part = [0f32; PART];
    for key in 0..keys.len {
        for d in (0..keys.head_dim).step_by(PART) {
            let n = PART.min(keys.head_dim - d);
            let (quants, scales) = keys.part(key, d, n);
            decode(keys.dtype, quants, scales, &mut part[..n]);
            part[n..].fill(0.0);
            for row in 0..rows {
                let q = &words[row * width + d..(row + 1) * width];
                let mut sums = [0f32; LANES];
                for (x, q) in part.as_chunks::<LANES>().0.iter().zip(q.as_chunks::<LANES>().0) {
                    for l in 0..LANES {
                        sums[l] = fma::<FMA>(x[l], q[l], sums[l]);
                    }
                }
                let sum: f32 = sums.into_iter().sum();
                let score = &mut scores[row * ATTEND_TILE + key];
                *score = if d == 0 { sum } else { *score + sum };
            }
        }
    }
}

/// [`crate::Isa::weighted_sums`], which has checked the lengths.
#[inline(always)]
pub(crate) fn sums<const FMA: bool, D: Fn(DType, &[u8], &[u8], &mut [f32])>(
    values: &HeadRows<'_>,
    weights: &[f32],
    factors: &[[f32; 2]],
    sums: &mut [f32],
    decode: D,
) {
    let width = values.head_dim;
    for (sums, [_, shrink]) in sums.chunks_exact_mut(width.max(1)).zip(factors) {
        sums.iter_mut().for_each(|sum| *sum *= shrink);
    }
    let mut part = [0f32; PART];
    for key in 0..values.len {
        for d in (0..width).step_by(PART) {
            let n = PART.min(width - d);
            let (quants, scales) = values.part(key, d, n);
            decode(values.dtype, quants, scales, &mut part[..n]);
            for (row, [grow, _]) in factors.iter().enumerate() {
                let weight = weights[row * ATTEND_TILE + key] * grow;
                for (sum, x) in sums[row * width + d..][..n].iter_mut().zip(&part[..n]) {
                    *sum = fma::<FMA>(weight, *x, *sum);
                }
            }
        }
    }
}
