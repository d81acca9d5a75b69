//! Reading packed weights: the codes of a run as bytes, its scales as floats.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::super::LANES;
use crate::expand::{Expand, Scales, Values};
use crate::packed::{Unit, has_minimum};

/// A run of 16 rows, ready to be multiplied.
#[derive(Clone, Copy)]
pub(super) struct Run {
    /// Unsigned bytes: codes, raised where they stand for negative numbers too.
    pub(super) q: [__m512i; 8],
    /// Scale of each row, for each half.
    pub(super) d: [MaybeUninit<__m512>; 2],
    /// What is subtracted, for each half.
    pub(super) m: [MaybeUninit<__m512>; 2],
}

/// How many parts with scales of their own a run has.
pub(super) const fn parts<B: Expand>() -> usize {
    match B::SCALES {
        Scales::One | Scales::Whole => 1,
        Scales::Halves => 2,
    }
}

/// What bytes are more than the numbers that they stand for.
pub(super) const fn raised<B: Expand>() -> u8 {
    match B::VALUES {
        Values::Less(offset) => offset,
        Values::Table(_) => 128,
    }
}

/// The scales of a unit.
pub(super) struct Head {
    d: __m512,
    minimum: __m512,
}

impl Head {
    /// # Safety
    /// - The CPU has this module's instructions.
    /// - A unit of `B` is readable at `unit`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    pub(super) unsafe fn load<B: Expand>(unit: *const u8) -> Self {
        // SAFETY: the caller vouches for the unit, which starts with 16 halves, and with 16 more where it has minimums.
        unsafe {
            let d = _mm512_cvtph_ps(_mm256_loadu_si256(unit.cast()));
            let d = if B::UNIT == 1.0 { d } else { _mm512_mul_ps(d, _mm512_set1_ps(B::UNIT)) };
            let minimum = if has_minimum::<B>() {
                _mm512_cvtph_ps(_mm256_loadu_si256(unit.add(Unit::<B>::MINIMUM).cast()))
            } else {
                _mm512_setzero_ps()
            };
            Self { d, minimum }
        }
    }
}

/// Reads a run: codes as bytes, scales as floats.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - A run of `B` is readable at `p`; `head` is that of its unit.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
pub(super) unsafe fn load<B: Expand>(p: *const u8, head: &Head) -> Run {
    let unset = [MaybeUninit::uninit(); 2];
    // SAFETY: the caller vouches for the run, whose planes come before its scales, and these before its minimums.
    unsafe {
        let mut run = Run { q: codes::<B>(p), d: unset, m: unset };
        if matches!(B::SCALES, Scales::One) {
            run.d[0].write(head.d);
            // Here a minimum is added.
            run.m[0].write(_mm512_sub_ps(_mm512_setzero_ps(), head.minimum));
            return run;
        }
        for h in 0..parts::<B>() {
            let s = _mm_loadu_si128(p.add(Unit::<B>::SCALES + h * LANES).cast());
            if B::NARROW {
                let both = _mm512_cvtepu8_epi32(s);
                let s = _mm512_and_si512(both, _mm512_set1_epi32(15));
                run.d[h].write(_mm512_mul_ps(head.d, _mm512_cvtepi32_ps(s)));
                let t = _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(both));
                run.m[h].write(_mm512_mul_ps(head.minimum, t));
            } else {
                run.d[h].write(_mm512_mul_ps(head.d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(s))));
                if has_minimum::<B>() {
                    let t = _mm_loadu_si128(p.add(Unit::<B>::MINIMUMS + h * LANES).cast());
                    let t = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(t));
                    run.m[h].write(_mm512_mul_ps(head.minimum, t));
                }
            }
        }
        run
    }
}

/// Reads the codes of a run as unsigned bytes: register `j` has elements `4 j` to `4 j + 3` of each row.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - The planes of a run of `B` are readable at `p`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn codes<B: Expand>(p: *const u8) -> [__m512i; 8] {
    let (low, high) = B::BITS;
    // SAFETY: the caller vouches for the planes.
    let plane = |i: usize| unsafe { _mm512_loadu_si512(p.add(64 * i).cast()) };
    let mut q = [_mm512_setzero_si512(); 8];
    for (j, q) in q.iter_mut().enumerate() {
        *q = field(plane(j % low), j / low * low, low, 0);
        if high > 0 {
            *q = _mm512_or_si512(*q, field(plane(low + j % high), j / high * high, high, low));
        }
        if let Values::Table(table) = B::VALUES {
            // SAFETY: the table has 16 bytes.
            let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
            let raised = _mm_xor_si128(table, _mm_set1_epi8(-128));
            *q = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(raised), *q);
        }
    }
    q
}

/// Bits `from` to `from + n` of each byte, moved to `to` and on.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn field(plane: __m512i, from: usize, n: usize, to: usize) -> __m512i {
    if n == 8 {
        return plane;
    }
    let count = |n: usize| _mm_cvtsi32_si128(n as i32);
    let moved = if from > to {
        _mm512_srl_epi16(plane, count(from - to))
    } else if to > from {
        _mm512_sll_epi16(plane, count(to - from))
    } else {
        plane
    };
    let mask = ((1_u32 << n) - 1) << to;
    _mm512_and_si512(moved, _mm512_set1_epi8((mask as u8).cast_signed()))
}
