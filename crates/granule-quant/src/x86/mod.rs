//! The vector paths of x86-64, one folder per instruction set; each has the modules of [`crate::scalar`].
//!
//! Functions that name instructions are `#[target_feature]` functions; what makes calling them sound is that an
//! [`Isa`](crate::Isa) of their kind exists only where the CPU has the instructions.

pub(crate) mod avx2;
pub(crate) mod avx512;
mod runs;

use std::arch::x86_64::*;

/// Asks for the cache line at `p`, which need not exist.
#[inline]
fn prefetch_line(p: *const u8) {
    #[allow(unused_unsafe, reason = "needed up to Rust 1.89")]
    // SAFETY: a prefetch does not fault, wherever it points.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(p.cast());
    }
}

/// Asks for the cache line at `p`, which need not exist, in the second-level cache: a tile of attention is more than
/// the first holds, and of lines on their way that one has places for few.
#[inline(always)]
pub(crate) fn prefetch_l2(p: *const u8) {
    #[allow(unused_unsafe, reason = "needed up to Rust 1.89")]
    // SAFETY: a prefetch does not fault, wherever it points.
    unsafe {
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }
}

/// The f32 that these two bytes are as an f16.
#[target_feature(enable = "f16c")]
#[inline]
fn f16_to_f32(bytes: [u8; 2]) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(u16::from_le_bytes(bytes)))))
}

/// The f16 numbers at `p` and after every `stride` bytes, `n` of them (at most 8), then zeros.
///
/// Put together in general registers, which keeps the vector units free.
///
/// # Safety
/// - The CPU has F16C.
/// - Two bytes at `p + i * stride` are readable for every `i < n`.
#[target_feature(enable = "f16c")]
#[inline]
unsafe fn gather_f16(p: *const u8, stride: usize, n: usize) -> __m256 {
    let mut halves = [0_u64; 2];
    for i in 0..n {
        // SAFETY: `i` is below `n`.
        let bits = unsafe { p.add(i * stride).cast::<u16>().read_unaligned() };
        halves[i / 4] |= u64::from(bits) << (i % 4 * 16);
    }
    _mm256_cvtph_ps(_mm_set_epi64x(halves[1].cast_signed(), halves[0].cast_signed()))
}
