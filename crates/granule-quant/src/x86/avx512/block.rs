//! One block of 32: from f32 to quants, and from quants to f32.

use std::arch::x86_64::*;

use super::LANES;
use crate::BLOCK_LEN;
use crate::scalar::codec::inverse;

/// The 32 elements of a block in their order.
pub(super) type Pair = (__m512, __m512);

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
pub(super) fn load(x: &[f32; BLOCK_LEN]) -> Pair {
    // SAFETY: both halves of the 32 floats are readable; no alignment is asked for.
    unsafe { (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(LANES))) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
pub(super) fn store((lo, hi): Pair, x: &mut [f32; BLOCK_LEN]) {
    // SAFETY: both halves of the 32 floats are writable; no alignment is asked for.
    unsafe {
        _mm512_storeu_ps(x.as_mut_ptr(), lo);
        _mm512_storeu_ps(x.as_mut_ptr().add(LANES), hi);
    }
}

/// The first of the elements of `x` that are equal to `v` (one is), and so with the right sign if it is a zero.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn first_equal(x: &[f32; BLOCK_LEN], (lo, hi): Pair, v: f32) -> f32 {
    let v = _mm512_set1_ps(v);
    let lo = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(lo, v);
    let hi = _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(hi, v);
    let index = (u32::from(lo) | u32::from(hi) << LANES).trailing_zeros();
    x[index as usize % BLOCK_LEN]
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn largest_magnitude((lo, hi): Pair) -> f32 {
    _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(lo), _mm512_abs_ps(hi)))
}

/// `v` rounded half away from zero: what is just below a half, added with the sign of `v`, carries exactly the halves
/// and what is above them over the next integer.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn round(v: __m512) -> __m512i {
    let sign = _mm512_and_ps(v, _mm512_set1_ps(-0.0));
    let half = _mm512_or_ps(sign, _mm512_set1_ps(0.5_f32.next_down()));
    _mm512_cvttps_epi32(_mm512_add_ps(v, half))
}

/// Scale and 32 quants by the rule of Q8_0; the sum of the quants comes with them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
pub(super) fn quantize_q8_0(x: &[f32; BLOCK_LEN]) -> (f32, __m256i, i32) {
    let (lo, hi) = load(x);
    let d = largest_magnitude((lo, hi)) / 127.0;
    let id = _mm512_set1_ps(inverse(d));
    let (lo, hi) = (round(_mm512_mul_ps(lo, id)), round(_mm512_mul_ps(hi, id)));
    let q = _mm256_set_m128i(_mm512_cvtsepi32_epi8(hi), _mm512_cvtsepi32_epi8(lo));
    (d, q, _mm512_reduce_add_epi32(_mm512_add_epi32(lo, hi)))
}

/// Scale and 32 fixed-point numbers, none of which has a magnitude above `most`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
pub(super) fn fixed(x: &[f32; BLOCK_LEN], most: f32) -> (f32, __m512i, __m512i) {
    let (lo, hi) = load(x);
    let d = largest_magnitude((lo, hi)) / most;
    let id = _mm512_set1_ps(inverse(d));
    (d, round(_mm512_mul_ps(lo, id)), round(_mm512_mul_ps(hi, id)))
}

/// 32 quants of 0 and more, cut at 15, as nibbles.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn nibbles((lo, hi): Pair) -> __m128i {
    let most = _mm512_set1_epi32(15);
    let lo = _mm512_min_epi32(_mm512_cvttps_epi32(lo), most);
    let hi = _mm512_min_epi32(_mm512_cvttps_epi32(hi), most);
    _mm512_cvtepi32_epi8(_mm512_or_si512(lo, _mm512_slli_epi32::<4>(hi)))
}

/// Scale and nibbles by the rule of Q4_0.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
pub(super) fn quantize_q4_0(x: &[f32; BLOCK_LEN]) -> (f32, __m128i) {
    let (lo, hi) = load(x);
    let magnitude = largest_magnitude((lo, hi));
    let d = first_equal(x, (_mm512_abs_ps(lo), _mm512_abs_ps(hi)), magnitude) / -8.0;
    let (id, half) = (_mm512_set1_ps(inverse(d)), _mm512_set1_ps(8.5));
    let quant = (_mm512_add_ps(_mm512_mul_ps(lo, id), half), _mm512_add_ps(_mm512_mul_ps(hi, id), half));
    (d, nibbles(quant))
}

/// Scale, minimum and nibbles by the rule of Q4_1.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
pub(super) fn quantize_q4_1(x: &[f32; BLOCK_LEN]) -> (f32, f32, __m128i) {
    let (lo, hi) = load(x);
    let max = _mm512_reduce_max_ps(_mm512_max_ps(lo, hi));
    let min = first_equal(x, (lo, hi), _mm512_reduce_min_ps(_mm512_min_ps(lo, hi)));
    // Where both are zeros, which zero `max` is depends on the order of the reduction.
    let d = ((max - min) / 15.0).abs();
    let (id, half, m) = (_mm512_set1_ps(inverse(d)), _mm512_set1_ps(0.5), _mm512_set1_ps(min));
    let (lo, hi) = (_mm512_sub_ps(lo, m), _mm512_sub_ps(hi, m));
    let quant = (_mm512_add_ps(_mm512_mul_ps(lo, id), half), _mm512_add_ps(_mm512_mul_ps(hi, id), half));
    (d, min, nibbles(quant))
}

/// Quants of a Q8_0 block as f32.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
pub(super) fn widen_q8(q: &[u8; 32]) -> Pair {
    // SAFETY: both halves of the 32 bytes are readable; no alignment is asked for.
    let (lo, hi) =
        unsafe { (_mm_loadu_si128(q.as_ptr().cast()), _mm_loadu_si128(q.as_ptr().add(LANES).cast())) };
    (_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(lo)), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(hi)))
}

/// What each of the 16 nibbles stands for, by looking it up in a register: the lookup takes the index from the low
/// four bits and ignores the rest.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
pub(super) fn widen_q4(q: &[u8; 16], table: __m512) -> Pair {
    // SAFETY: the 16 bytes are readable; no alignment is asked for.
    let q = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(q.as_ptr().cast()) });
    (_mm512_permutexvar_ps(q, table), _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(q), table))
}

/// `from`, `from + 1`, ... as f32: the table of [`widen_q4`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
pub(super) fn count_from(from: i32) -> __m512 {
    let count = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm512_cvtepi32_ps(_mm512_add_epi32(count, _mm512_set1_epi32(from)))
}
