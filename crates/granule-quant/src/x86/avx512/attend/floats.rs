//! Float rows: four keys with up to four queries at a time, so that each element is widened once and each sum waits for
//! nobody; values with up to four rows of weights.

use std::arch::x86_64::*;

use super::{ATTEND_TILE, fetch, first, rows_at, store_scores, transposed_sum};
use crate::attend::HeadRows;
use crate::x86::avx512::LANES;
use crate::x86::avx512::float::Float;

/// Scores of `n` queries, at most four, against all keys.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - `keys` has a row; `words` has four rows of whole chunks of 16; `scores` has four rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn scores_of<F: Float>(keys: &HeadRows<'_>, words: &[f32], n: usize, out: &mut [f32]) {
    // SAFETY: the caller vouches for it.
    unsafe {
        match n {
            1 => scores::<F, 1>(keys, words, out),
            2 => scores::<F, 2>(keys, words, out),
            3 => scores::<F, 3>(keys, words, out),
            _ => scores::<F, 4>(keys, words, out),
        }
    }
}

/// # Safety
/// As [`scores_of`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn scores<F: Float, const R: usize>(keys: &HeadRows<'_>, words: &[f32], out: &mut [f32]) {
    let width = words.len() / 4;
    let whole = keys.head_dim / LANES * LANES;
    let mask = first(keys.head_dim - whole);
    let mut start = keys.bytes.as_ptr().wrapping_add(keys.quants);
    for key in (0..keys.len).step_by(4) {
        let rows: [*const u8; 4] = rows_at(start, keys.stride, keys.len - key);
        fetch::<4>(keys, start);
        start = start.wrapping_add(keys.stride.wrapping_mul(4));
        let mut sums = [[_mm512_setzero_ps(); 4]; 4];
        // SAFETY: elements below `head_dim` of rows that there are; queries are padded to whole chunks.
        unsafe {
            for d in (0..whole).step_by(LANES) {
                let x = rows.map(|row| F::load(row.add(d * F::BYTES)));
                for (r, sums) in sums.iter_mut().take(R).enumerate() {
                    let q = _mm512_loadu_ps(words.as_ptr().add(r * width + d));
                    for (sum, x) in sums.iter_mut().zip(x) {
                        *sum = _mm512_fmadd_ps(q, x, *sum);
                    }
                }
            }
            if mask != 0 {
                let x = rows.map(|row| F::load_part(row.add(whole * F::BYTES), mask));
                for (r, sums) in sums.iter_mut().take(R).enumerate() {
                    let q = _mm512_loadu_ps(words.as_ptr().add(r * width + whole));
                    for (sum, x) in sums.iter_mut().zip(x) {
                        *sum = _mm512_fmadd_ps(q, x, *sum);
                    }
                }
            }
        }
        // Lane by lane the four partial sums of each query are left; they become one lane of the result.
        let [a, b, c, d] = sums.map(|keys| transposed_sum(keys));
        let ab = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xee>(a, b));
        let cd = _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(c, d), _mm512_shuffle_f32x4::<0xee>(c, d));
        let all = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd));
        // SAFETY: `key` is a multiple of four below the tile's length.
        unsafe { store_scores(out, key, all) };
    }
}

/// Sums of `R` query rows.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - `values` has a row; `weights`, `factors` and `sums` are those of `R` query rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn sums<F: Float, const R: usize>(
    values: &HeadRows<'_>,
    weights: &[f32],
    factors: &[[f32; 2]],
    sums: &mut [f32],
) {
    let (head_dim, mut values) = (values.head_dim, *values);
    let mut d = 0;
    while d < head_dim {
        let left = head_dim - d;
        // SAFETY: the elements are below `head_dim`.
        d += unsafe {
            match left {
                64.. => columns::<F, R, 4>(&values, d, 0xffff, weights, factors, sums),
                32.. => columns::<F, R, 2>(&values, d, 0xffff, weights, factors, sums),
                _ => columns::<F, R, 1>(&values, d, first(left), weights, factors, sums),
            }
        };
        values.ahead.lines = 0;
    }
}

/// Elements `d` to `d + 16 * C` of the sums, in the last chunk those of `mask`; answers how many.
///
/// # Safety
/// As [`sums`]; the elements are below the head dimension.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn columns<F: Float, const R: usize, const C: usize>(
    values: &HeadRows<'_>,
    d: usize,
    mask: __mmask16,
    weights: &[f32],
    factors: &[[f32; 2]],
    sums: &mut [f32],
) -> usize {
    let head_dim = values.head_dim;
    let mut tile = [[_mm512_setzero_ps(); C]; R];
    // SAFETY: rows that there are, elements of the mask, weights and sums of `R` rows.
    unsafe {
        let mut row = values.bytes.as_ptr().add(values.quants + d * F::BYTES);
        for key in 0..values.len {
            fetch::<1>(values, row.wrapping_sub(d * F::BYTES));
            let mut x = [_mm512_setzero_ps(); C];
            for (c, x) in x.iter_mut().enumerate() {
                let p = row.add(c * LANES * F::BYTES);
                *x = if C == 1 { F::load_part(p, mask) } else { F::load(p) };
            }
            for (r, tile) in tile.iter_mut().enumerate() {
                let weight = _mm512_set1_ps(*weights.as_ptr().add(r * ATTEND_TILE + key));
                for (sum, x) in tile.iter_mut().zip(x) {
                    *sum = _mm512_fmadd_ps(weight, x, *sum);
                }
            }
            row = row.wrapping_add(values.stride);
        }
        for (r, tile) in tile.into_iter().enumerate() {
            let [grow, shrink] = factors[r].map(|factor| _mm512_set1_ps(factor));
            for (c, tile) in tile.into_iter().enumerate() {
                let p = sums.as_mut_ptr().add(r * head_dim + d + c * LANES);
                let before = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, p), shrink);
                _mm512_mask_storeu_ps(p, mask, _mm512_fmadd_ps(tile, grow, before));
            }
        }
    }
    C * LANES
}
