//! Attention over a tile: four queries at a time, floats by f32 products, blocks by integer products.

mod floats;
mod quant_sums;
mod quants;
mod softmax;

use std::arch::x86_64::*;

pub(crate) use self::softmax::softmax;
use super::first;
use super::float::{BF16, F16, F32};
use crate::DType;
use crate::attend::{ATTEND_TILE, HeadRows, QUAD, portable};
use crate::x86::prefetch_l2;

/// [`crate::Isa::prepare_queries`], which has checked the lengths.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn prepare(dtype: DType, head_dim: usize, q: &[f32], words: &mut [f32]) {
    if dtype.is_quantized() {
        quants::prepare(dtype, head_dim, q, words);
    } else {
        portable::prepare(head_dim, q, words);
    }
}

/// [`crate::Isa::scores`], which has checked the lengths.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn scores(keys: &HeadRows<'_>, words: &[f32], rows: usize, scores: &mut [f32]) {
    let quads = rows.div_ceil(QUAD).max(1);
    let mut keys = *keys;
    if keys.len == 0 {
        return;
    }
    for (quad, words) in words.chunks_exact((words.len() / quads).max(1)).enumerate() {
        let n = QUAD.min(rows - quad * QUAD);
        let scores = &mut scores[quad * QUAD * ATTEND_TILE..(quad + 1) * QUAD * ATTEND_TILE];
        // SAFETY: `HeadRows` vouches for the rows; there are scores of four rows, and the words of a quad.
        unsafe {
            match keys.dtype {
                DType::F32 => floats::scores_of::<F32>(&keys, words, n, scores),
                DType::F16 => floats::scores_of::<F16>(&keys, words, n, scores),
                DType::BF16 => floats::scores_of::<BF16>(&keys, words, n, scores),
                DType::Q8_0 => quants::scores::<quants::Q8_0>(&keys, words, scores),
                DType::Q4_0 => quants::scores::<quants::Q4_0>(&keys, words, scores),
                // Not planar, and refused before it gets here.
                _ => {}
            }
        }
        // Once is enough.
        keys.ahead.lines = 0;
    }
}

/// [`crate::Isa::weighted_sums`], which has checked the lengths.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn sums(values: &HeadRows<'_>, weights: &[f32], factors: &[[f32; 2]], sums: &mut [f32]) {
    let mut values = *values;
    if values.len == 0 || values.head_dim == 0 {
        return;
    }
    let quads = weights.chunks(QUAD * ATTEND_TILE).zip(factors.chunks(QUAD));
    for ((weights, factors), sums) in quads.zip(sums.chunks_mut(QUAD * values.head_dim)) {
        // SAFETY: `HeadRows` vouches for the rows; weights and sums are those of as many query rows as there are factors.
        unsafe {
            match factors.len() {
                1 => sums_of::<1>(&values, weights, factors, sums),
                2 => sums_of::<2>(&values, weights, factors, sums),
                3 => sums_of::<3>(&values, weights, factors, sums),
                _ => sums_of::<4>(&values, weights, factors, sums),
            }
        }
        values.ahead.lines = 0;
    }
}

/// The sums of `R` query rows.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - `values` has a row; `weights`, `factors` and `sums` are those of `R` query rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn sums_of<const R: usize>(
    values: &HeadRows<'_>,
    weights: &[f32],
    factors: &[[f32; 2]],
    sums: &mut [f32],
) {
    // SAFETY: the caller vouches for it.
    unsafe {
        match values.dtype {
            DType::F32 => floats::sums::<F32, R>(values, weights, factors, sums),
            DType::F16 => floats::sums::<F16, R>(values, weights, factors, sums),
            DType::BF16 => floats::sums::<BF16, R>(values, weights, factors, sums),
            DType::Q8_0 => quant_sums::sums::<quants::Q8_0, R>(values, weights, factors, sums),
            DType::Q4_0 => quant_sums::sums::<quants::Q4_0, R>(values, weights, factors, sums),
            // Not planar, and refused before it gets here.
            _ => {}
        }
    }
}

/// Where `N` rows are, from one on; where there are fewer, the last one again.
#[inline(always)]
fn rows_at<const N: usize>(p: *const u8, stride: usize, left: usize) -> [*const u8; N] {
    if left >= N {
        std::array::from_fn(|j| p.wrapping_add(j * stride))
    } else {
        std::array::from_fn(|j| p.wrapping_add(j.min(left - 1) * stride))
    }
}

/// Asks for what is wanted while `N` rows are read, the first quants of the first of which are at `p`.
#[inline(always)]
fn fetch<const N: usize>(rows: &HeadRows<'_>, p: *const u8) {
    for k in 0..rows.ahead.lines {
        let line = p.wrapping_sub(rows.quants).wrapping_add(rows.ahead.at + 64 * k);
        for j in 0..N {
            prefetch_l2(line.wrapping_add(j * rows.stride));
        }
    }
}

/// Four registers of four keys' sums, all of them partial, as one: 128-bit lane `j` has the four keys' sums over lane `j`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn transposed_sum([a, b, c, d]: [__m512; 4]) -> __m512 {
    let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
    let (lo, hi) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
    _mm512_add_ps(_mm512_castpd_ps(lo), _mm512_castpd_ps(hi))
}

/// Stores lane `j` as the scores of query row `j` against four keys from `key` on.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - `scores` has four rows, `key + 4` is at most [`ATTEND_TILE`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn store_scores(scores: &mut [f32], key: usize, v: __m512) {
    debug_assert!(scores.len() == QUAD * ATTEND_TILE && key + 4 <= ATTEND_TILE);
    let p = scores.as_mut_ptr().wrapping_add(key);
    // SAFETY: the caller vouches for the place.
    unsafe {
        _mm_storeu_ps(p, _mm512_castps512_ps128(v));
        _mm_storeu_ps(p.add(ATTEND_TILE), _mm512_extractf32x4_ps::<1>(v));
        _mm_storeu_ps(p.add(2 * ATTEND_TILE), _mm512_extractf32x4_ps::<2>(v));
        _mm_storeu_ps(p.add(3 * ATTEND_TILE), _mm512_extractf32x4_ps::<3>(v));
    }
}
