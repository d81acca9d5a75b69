//! Float elements in memory: 8 at a time to and from a register.

use std::arch::x86_64::*;

use super::LANES;
use crate::DType;

/// A float type as it lies in memory.
pub(super) trait Float {
    /// Bytes of one element.
    const BYTES: usize;

    /// Loads 8 elements.
    ///
    /// # Safety
    /// - The CPU has this module's instructions.
    /// - `8 * BYTES` bytes at `p` are readable.
    unsafe fn load(p: *const u8) -> __m256;

    /// Stores 8 elements, rounded to nearest even; none is NaN.
    ///
    /// # Safety
    /// - The CPU has this module's instructions.
    /// - `8 * BYTES` bytes at `p` are writable.
    unsafe fn store(p: *mut u8, v: __m256);
}

/// Loads all elements of `bytes`, 8 at most, and 0 for the others.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn load_part<F: Float>(bytes: &[u8]) -> __m256 {
    let mut all = [0; LANES * size_of::<f32>()];
    let len = bytes.len().min(all.len());
    all[..len].copy_from_slice(&bytes[..len]);
    // SAFETY: the array holds 8 elements of the largest type.
    unsafe { F::load(all.as_ptr()) }
}

/// Stores as many elements as `bytes` has room for, 8 at most.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
pub(super) fn store_part<F: Float>(bytes: &mut [u8], v: __m256) {
    let mut all = [0; LANES * size_of::<f32>()];
    // SAFETY: the array holds 8 elements of the largest type.
    unsafe { F::store(all.as_mut_ptr(), v) };
    let len = bytes.len().min(all.len());
    bytes[..len].copy_from_slice(&all[..len]);
}

/// [`DType::F32`].
pub(super) struct F32;
/// [`DType::F16`].
pub(super) struct F16;
/// [`DType::BF16`].
pub(super) struct BF16;

// SAFETY (of every block below): the caller vouches for the bytes, and the loads and stores ask for no alignment.

impl Float for F32 {
    const BYTES: usize = DType::F32.block_bytes();

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn load(p: *const u8) -> __m256 {
        // SAFETY: as above.
        unsafe { _mm256_loadu_ps(p.cast()) }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn store(p: *mut u8, v: __m256) {
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(p.cast(), v) };
    }
}

impl Float for F16 {
    const BYTES: usize = DType::F16.block_bytes();

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn load(p: *const u8) -> __m256 {
        // SAFETY: as above.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(p.cast()) })
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn store(p: *mut u8, v: __m256) {
        // SAFETY: as above.
        unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) };
    }
}

impl Float for BF16 {
    const BYTES: usize = DType::BF16.block_bytes();

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn load(p: *const u8) -> __m256 {
        // SAFETY: as above.
        let upper = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(p.cast()) });
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(upper))
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    unsafe fn store(p: *mut u8, v: __m256) {
        let bits = _mm256_castps_si256(v);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let upper = _mm256_srli_epi32::<16>(rounded);
        let (lo, hi) = (_mm256_castsi256_si128(upper), _mm256_extracti128_si256::<1>(upper));
        // SAFETY: as above.
        unsafe { _mm_storeu_si128(p.cast(), _mm_packus_epi32(lo, hi)) };
    }
}
