//! Float elements in memory: 16 at a time to and from a register.

use std::arch::x86_64::*;

use crate::DType;

/// A float type as it lies in memory.
pub(super) trait Float {
    /// Bytes of one element.
    const BYTES: usize;

    /// Loads 16 elements.
    ///
    /// # Safety
    /// - The CPU has this module's instructions.
    /// - `16 * BYTES` bytes at `p` are readable.
    unsafe fn load(p: *const u8) -> __m512;

    /// Loads the elements whose bit is set in `mask`, 0 for the others.
    ///
    /// # Safety
    /// - The CPU has this module's instructions.
    /// - The bytes of those elements at `p` are readable.
    unsafe fn load_part(p: *const u8, mask: __mmask16) -> __m512;

    /// Stores the elements whose bit is set in `mask`, rounded to nearest even; none is NaN.
    ///
    /// # Safety
    /// - The CPU has this module's instructions.
    /// - The bytes of those elements at `p` are writable.
    unsafe fn store_part(p: *mut u8, v: __m512, mask: __mmask16);
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

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn load(p: *const u8) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_loadu_ps(p.cast()) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn load_part(p: *const u8, mask: __mmask16) -> __m512 {
        // SAFETY: as above.
        unsafe { _mm512_maskz_loadu_ps(mask, p.cast()) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn store_part(p: *mut u8, v: __m512, mask: __mmask16) {
        // SAFETY: as above.
        unsafe { _mm512_mask_storeu_ps(p.cast(), mask, v) };
    }
}

impl Float for F16 {
    const BYTES: usize = DType::F16.block_bytes();

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn load(p: *const u8) -> __m512 {
        // SAFETY: as above.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(p.cast()) })
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn load_part(p: *const u8, mask: __mmask16) -> __m512 {
        // SAFETY: as above.
        _mm512_cvtph_ps(unsafe { _mm256_maskz_loadu_epi16(mask, p.cast()) })
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn store_part(p: *mut u8, v: __m512, mask: __mmask16) {
        let half = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
        // SAFETY: as above.
        unsafe { _mm256_mask_storeu_epi16(p.cast(), mask, half) };
    }
}

impl Float for BF16 {
    const BYTES: usize = DType::BF16.block_bytes();

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn load(p: *const u8) -> __m512 {
        // SAFETY: as above.
        let upper = _mm512_cvtepu16_epi32(unsafe { _mm256_loadu_si256(p.cast()) });
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(upper))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn load_part(p: *const u8, mask: __mmask16) -> __m512 {
        // SAFETY: as above.
        let upper = _mm512_cvtepu16_epi32(unsafe { _mm256_maskz_loadu_epi16(mask, p.cast()) });
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(upper))
    }

    // Not `vcvtneps2bf16`, which flushes subnormals.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn store_part(p: *mut u8, v: __m512, mask: __mmask16) {
        let bits = _mm512_castps_si512(v);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let upper = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded));
        // SAFETY: as above.
        unsafe { _mm256_mask_storeu_epi16(p.cast(), mask, upper) };
    }
}
