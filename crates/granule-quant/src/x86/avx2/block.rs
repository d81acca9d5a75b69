//! One block of 32: from f32 to quants, and from quants to f32.

use std::arch::x86_64::*;

use super::{LANES, sum_i32};
use crate::BLOCK_LEN;
use crate::scalar::codec::inverse;

/// The 32 elements of a block in their order.
pub(super) type Quad = [__m256; 4];

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn load(x: &[f32; BLOCK_LEN]) -> Quad {
    let mut quad = [_mm256_setzero_ps(); 4];
    for (v, x) in quad.iter_mut().zip(x.as_chunks::<LANES>().0) {
        // SAFETY: the 8 floats are readable; no alignment is asked for.
        *v = unsafe { _mm256_loadu_ps(x.as_ptr()) };
    }
    quad
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn store(quad: Quad, x: &mut [f32; BLOCK_LEN]) {
    for (v, x) in quad.into_iter().zip(x.as_chunks_mut::<LANES>().0) {
        // SAFETY: the 8 floats are writable; no alignment is asked for.
        unsafe { _mm256_storeu_ps(x.as_mut_ptr(), v) };
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn abs(v: __m256) -> __m256 {
    _mm256_andnot_ps(_mm256_set1_ps(-0.0), v)
}

/// The first of the elements of `x` that are equal to `v` (one is), and so with the right sign if it is a zero; `quad`
/// has the elements, or their magnitudes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn first_equal(x: &[f32; BLOCK_LEN], quad: Quad, v: f32) -> f32 {
    let v = _mm256_set1_ps(v);
    let mut equal = 0;
    for (i, part) in quad.into_iter().enumerate() {
        let mask = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(part, v));
        equal |= mask.cast_unsigned() << (i * LANES);
    }
    x[equal.trailing_zeros() as usize % BLOCK_LEN]
}

/// The largest (the negated smallest, of what is negated) of all elements.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn max([a, b, c, d]: Quad) -> f32 {
    let v = _mm256_max_ps(_mm256_max_ps(a, b), _mm256_max_ps(c, d));
    let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
}

/// `v` rounded half away from zero: what is just below a half, added with the sign of `v`, carries exactly the halves
/// and what is above them over the next integer.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn round(v: __m256) -> __m256i {
    let sign = _mm256_and_ps(v, _mm256_set1_ps(-0.0));
    let half = _mm256_or_ps(sign, _mm256_set1_ps(0.5_f32.next_down()));
    _mm256_cvttps_epi32(_mm256_add_ps(v, half))
}

/// Scale and 32 quants by the rule of Q8_0; the sum of the quants comes with them.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn quantize_q8_0(x: &[f32; BLOCK_LEN]) -> (f32, __m256i, i32) {
    let quad = load(x);
    let d = max(quad.map(|v| abs(v))) / 127.0;
    let id = _mm256_set1_ps(inverse(d));
    let [a, b, c, d4] = quad.map(|v| round(_mm256_mul_ps(v, id)));
    let total = _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d4));
    // Packing goes by halves of the registers, and leaves four bytes of each in turn.
    let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d4));
    let q = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    (d, q, sum_i32(total))
}

/// 32 quants of 0 and more, cut at 15, as nibbles.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn nibbles(quad: Quad) -> __m128i {
    let [a, b, c, d] = quad.map(|v| _mm256_min_epi32(_mm256_cvttps_epi32(v), _mm256_set1_epi32(15)));
    let lo = _mm256_or_si256(a, _mm256_slli_epi32::<4>(c));
    let hi = _mm256_or_si256(b, _mm256_slli_epi32::<4>(d));
    let words = _mm256_packus_epi32(lo, hi);
    let bytes = _mm256_packus_epi16(words, words);
    _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 0, 0, 0, 0)))
}

/// Scale and nibbles by the rule of Q4_0.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn quantize_q4_0(x: &[f32; BLOCK_LEN]) -> (f32, __m128i) {
    let quad = load(x);
    let magnitudes = quad.map(|v| abs(v));
    let d = first_equal(x, magnitudes, max(magnitudes)) / -8.0;
    let (id, half) = (_mm256_set1_ps(inverse(d)), _mm256_set1_ps(8.5));
    (d, nibbles(quad.map(|v| _mm256_add_ps(_mm256_mul_ps(v, id), half))))
}

/// Scale, minimum and nibbles by the rule of Q4_1.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn quantize_q4_1(x: &[f32; BLOCK_LEN]) -> (f32, f32, __m128i) {
    let quad = load(x);
    let negated = quad.map(|v| _mm256_xor_ps(v, _mm256_set1_ps(-0.0)));
    let min = first_equal(x, quad, -max(negated));
    // Where both are zeros, which zero the largest is depends on the order of the reduction.
    let d = ((max(quad) - min) / 15.0).abs();
    let (id, half, m) = (_mm256_set1_ps(inverse(d)), _mm256_set1_ps(0.5), _mm256_set1_ps(min));
    (d, min, nibbles(quad.map(|v| _mm256_add_ps(_mm256_mul_ps(_mm256_sub_ps(v, m), id), half))))
}

/// 16 signed bytes as f32.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn widen(bytes: __m128i) -> [__m256; 2] {
    [bytes, _mm_unpackhi_epi64(bytes, bytes)].map(|half| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(half)))
}

/// Quants of a Q8_0 block as f32.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn widen_q8(q: &[u8; 32]) -> Quad {
    // SAFETY: both halves of the 32 bytes are readable; no alignment is asked for.
    let (lo, hi) =
        unsafe { (_mm_loadu_si128(q.as_ptr().cast()), _mm_loadu_si128(q.as_ptr().add(16).cast())) };
    let ([a, b], [c, d]) = (widen(lo), widen(hi));
    [a, b, c, d]
}

/// Nibbles less `offset` as f32.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn widen_q4(q: &[u8; 16], offset: i8) -> Quad {
    let (mask, offset) = (_mm_set1_epi8(15), _mm_set1_epi8(offset));
    // SAFETY: the 16 bytes are readable; no alignment is asked for.
    let q = unsafe { _mm_loadu_si128(q.as_ptr().cast()) };
    let [a, b] = widen(_mm_sub_epi8(_mm_and_si128(q, mask), offset));
    let [c, d] = widen(_mm_sub_epi8(_mm_and_si128(_mm_srli_epi16::<4>(q), mask), offset));
    [a, b, c, d]
}
