//! Products of the types that are expanded, by `vpmaddubsw`.

use super::sum;
use super::tile::pairs;
use crate::x86::runs::products_of_runs;

products_of_runs!("avx2,fma,f16c", fours, sum);

/// Sums of four products each; of `x` none is -128.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
fn fours(w: __m256i, x: __m256i) -> __m256i {
    pairs(_mm256_maddubs_epi16(w, x))
}
