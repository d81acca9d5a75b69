//! A tile's softmax: 16 scores at a time.

use std::arch::x86_64::*;

use super::{ATTEND_TILE, first};
use crate::attend::{RunningSoftmax, TileShape};
use crate::x86::avx512::LANES;

/// `exp(x)` for `x <= 0`, as the portable one.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn exp(x: __m512) -> __m512 {
    let set = |x: f32| _mm512_set1_ps(x);
    // Not a maximum, which would take the number where there is NaN.
    let x = _mm512_mask_mov_ps(x, _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, set(-87.0)), set(-87.0));
    let n = _mm512_roundscale_ps::<0>(_mm512_mul_ps(x, set(std::f32::consts::LOG2_E)));
    let f = _mm512_fmadd_ps(n, set(2.121_944_4e-4), _mm512_fmadd_ps(n, set(-0.693_359_4), x));
    let mut p = set(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = _mm512_fmadd_ps(p, f, set(c));
    }
    let p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(f, f), f), set(1.0));
    _mm512_scalef_ps(p, n)
}

/// [`crate::Isa::softmax_tile`], which has checked the lengths.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn softmax(shape: TileShape, add: &[f32], scores: &mut [f32], running: &mut RunningSoftmax<'_>) {
    let TileShape { rows, keys, seen, group, scale } = shape;
    let scale = _mm512_set1_ps(scale);
    let tiles = scores.as_chunks_mut::<ATTEND_TILE>().0;
    for start in (0..rows).step_by(LANES) {
        let n = LANES.min(rows - start);
        let (mut tops, mut totals) = ([f32::MIN; LANES], [0f32; LANES]);
        for (i, (tops, totals)) in tops.iter_mut().zip(&mut totals).take(n).enumerate() {
            let row = start + i;
            let seen = seen.saturating_add_unsigned(row / group).max(0).unsigned_abs().min(keys);
            (*tops, *totals) = weigh(&mut tiles[row], seen, scale, add[row]);
        }
        let rows = first(n);
        // SAFETY: the mask covers the numbers of `n` rows, and there are as many of each kind.
        unsafe {
            let (top, total) = (_mm512_loadu_ps(tops.as_ptr()), _mm512_loadu_ps(totals.as_ptr()));
            let max_before = _mm512_mask_loadu_ps(top, rows, running.max[start..].as_ptr());
            let before = _mm512_maskz_loadu_ps(rows, running.total[start..].as_ptr());
            let max = _mm512_max_ps(top, max_before);
            let (grow, shrink) = (exp(_mm512_sub_ps(top, max)), exp(_mm512_sub_ps(max_before, max)));
            let total = _mm512_fmadd_ps(total, grow, _mm512_mul_ps(before, shrink));
            _mm512_mask_storeu_ps(running.max[start..].as_mut_ptr(), rows, max);
            _mm512_mask_storeu_ps(running.total[start..].as_mut_ptr(), rows, total);
            let (mut grows, mut shrinks) = ([0f32; LANES], [0f32; LANES]);
            _mm512_storeu_ps(grows.as_mut_ptr(), grow);
            _mm512_storeu_ps(shrinks.as_mut_ptr(), shrink);
            let pairs = grows.into_iter().zip(shrinks);
            for (factors, (grow, shrink)) in running.factors[start..start + n].iter_mut().zip(pairs) {
                *factors = [grow, shrink];
            }
        }
    }
}

/// The weights of one row; its largest score, and what they sum to.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn weigh(scores: &mut [f32; ATTEND_TILE], seen: usize, scale: __m512, add: f32) -> (f32, f32) {
    let (lowest, add) = (_mm512_set1_ps(f32::MIN), _mm512_set1_ps(add));
    let p = scores.as_mut_ptr();
    let mut x = [lowest; ATTEND_TILE / LANES];
    let mut top = lowest;
    for (c, x) in x.iter_mut().enumerate() {
        let mask = first(seen.saturating_sub(c * LANES));
        // SAFETY: chunk `c` is in the tile.
        let score = unsafe { _mm512_loadu_ps(p.add(c * LANES)) };
        *x = _mm512_mask_mov_ps(lowest, mask, _mm512_fmadd_ps(score, scale, add));
        top = _mm512_max_ps(top, *x);
    }
    let top = _mm512_reduce_max_ps(top);
    let mut total = _mm512_setzero_ps();
    for (c, x) in x.into_iter().enumerate() {
        let mask = first(seen.saturating_sub(c * LANES));
        let weight = _mm512_maskz_mov_ps(mask, exp(_mm512_sub_ps(x, _mm512_set1_ps(top))));
        total = _mm512_add_ps(total, weight);
        // SAFETY: chunk `c` is in the tile.
        unsafe { _mm512_storeu_ps(p.add(c * LANES), weight) };
    }
    (top, _mm512_reduce_add_ps(total))
}
