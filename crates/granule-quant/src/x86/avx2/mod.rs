//! AVX2 with FMA and F16C (Haswell, Zen and later).
//!
//! There are no masked loads of halves here: the tail of a float row goes through a small array.

pub(crate) mod activation;
pub(crate) mod attend;
mod block;
pub(crate) mod codec;
pub(crate) mod dot;
mod float;
pub(crate) mod gemm;
mod pack;
pub(crate) mod planar;
mod runs;
mod tile;

use std::arch::x86_64::*;

/// Floats in one register.
const LANES: usize = 8;

/// The sum of all lanes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sum(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}

/// The sum of all lanes.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn sum_i32(v: __m256i) -> i32 {
    let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b0000_1110>(v));
    _mm_cvtsi128_si32(_mm_add_epi32(v, _mm_shuffle_epi32::<0b0000_0001>(v)))
}
