//! Products of the types that are expanded, by `vpdpbusd`.

use crate::x86::runs::products_of_runs;

products_of_runs!("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni", fours, sum);

/// Sums of four products each; of `x` none is -128.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn fours(w: __m256i, x: __m256i) -> __m256i {
    _mm256_dpbusd_epi32(_mm256_setzero_si256(), w, x)
}

/// The sum of all lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn sum(v: __m256) -> f32 {
    _mm512_reduce_add_ps(_mm512_zextps256_ps512(v))
}
