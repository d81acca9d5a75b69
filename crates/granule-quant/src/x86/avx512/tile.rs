//! Small products straight from the rows as they lie in memory: some weight rows at once, so that several streams
//! of memory and several sums are under way.

use std::arch::x86_64::*;

use super::LANES;
use super::float::{F32, Float};
use crate::{DType, QuantizedRow};

/// A quantized type: where its block's quants are, as bytes of 0 to 255 for `vpdpbusd`.
pub(super) trait Quants {
    /// Bytes of one block.
    const BYTES: usize;
    /// What the bytes have been raised by: the quant is byte - `RAISED`.
    const RAISED: i8;
    /// Whether a block has a minimum, in the two bytes behind its scale.
    const MIN: bool;
    /// Whether the quants are nibbles.
    const NIBBLES: bool;

    /// The raised quants of the block at `p`, in the order of its elements.
    ///
    /// # Safety
    /// - The CPU has this module's instructions.
    /// - The block's bytes at `p` are readable.
    unsafe fn load(p: *const u8) -> __m256i;

    /// The raised quants of the two blocks at `p`.
    ///
    /// # Safety
    /// - The CPU has this module's instructions.
    /// - Both blocks' bytes at `p` are readable.
    unsafe fn load2(p: *const u8) -> __m512i;
}

/// [`DType::Q8_0`].
pub(super) struct Q8_0;
/// [`DType::Q4_0`].
pub(super) struct Q4_0;
/// [`DType::Q4_1`].
pub(super) struct Q4_1;

impl Quants for Q8_0 {
    const BYTES: usize = DType::Q8_0.block_bytes();
    const RAISED: i8 = -128;
    const MIN: bool = false;
    const NIBBLES: bool = false;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn load(p: *const u8) -> __m256i {
        // SAFETY: bytes 2 to 34 are the block's quants.
        let q = unsafe { _mm256_loadu_si256(p.add(2).cast()) };
        _mm256_xor_si256(q, _mm256_set1_epi8(-128))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn load2(p: *const u8) -> __m512i {
        // SAFETY: bytes 2 to 34 of each block are its quants.
        let (a, b) = unsafe {
            (_mm256_loadu_si256(p.add(2).cast()), _mm256_loadu_si256(p.add(2 + Self::BYTES).cast()))
        };
        _mm512_xor_si512(_mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b), _mm512_set1_epi8(-128))
    }
}

/// The nibbles of the blocks whose 16 bytes are at `a` and `b`, each in the order of its elements.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - 16 bytes at `a` and at `b` are readable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn nibbles2(a: *const u8, b: *const u8) -> __m512i {
    // SAFETY: the caller vouches for the bytes.
    let (a, b) = unsafe { (_mm_loadu_si128(a.cast()), _mm_loadu_si128(b.cast())) };
    let bytes = _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(a), 0xff00, b);
    let shifted = _mm512_srlv_epi64(bytes, _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4));
    _mm512_and_si512(shifted, _mm512_set1_epi8(15))
}

/// The nibbles of the block whose 16 bytes are at `p`, in the order of its elements.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - 16 bytes at `p` are readable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn nibbles(p: *const u8) -> __m256i {
    // SAFETY: the caller vouches for the bytes.
    let bytes = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(p.cast()) });
    let shifted = _mm256_srlv_epi64(bytes, _mm256_setr_epi64x(0, 0, 4, 4));
    _mm256_and_si256(shifted, _mm256_set1_epi8(15))
}

impl Quants for Q4_0 {
    const BYTES: usize = DType::Q4_0.block_bytes();
    const RAISED: i8 = 8;
    const MIN: bool = false;
    const NIBBLES: bool = true;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn load(p: *const u8) -> __m256i {
        // SAFETY: bytes 2 to 18 are the block's nibbles.
        unsafe { nibbles(p.add(2)) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn load2(p: *const u8) -> __m512i {
        // SAFETY: bytes 2 to 18 of each block are its nibbles.
        unsafe { nibbles2(p.add(2), p.add(2 + Self::BYTES)) }
    }
}

impl Quants for Q4_1 {
    const BYTES: usize = DType::Q4_1.block_bytes();
    const RAISED: i8 = 0;
    const MIN: bool = true;
    const NIBBLES: bool = true;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn load(p: *const u8) -> __m256i {
        // SAFETY: bytes 4 to 20 are the block's nibbles.
        unsafe { nibbles(p.add(4)) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn load2(p: *const u8) -> __m512i {
        // SAFETY: bytes 4 to 20 of each block are its nibbles.
        unsafe { nibbles2(p.add(4), p.add(4 + Self::BYTES)) }
    }
}

/// What raised bytes add to a sum of products with `x`, to be taken off: the start of every integer sum.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn minus_raised<Q: Quants>(x: __m512i) -> __m512i {
    if Q::RAISED == 0 {
        return _mm512_setzero_si512();
    }
    let zero = _mm512_setzero_si512();
    _mm512_sub_epi32(zero, _mm512_dpbusd_epi32(zero, _mm512_set1_epi8(Q::RAISED), x))
}

/// The f16 numbers in the first two bytes at `p` and after every `stride` bytes, `n` of them (at most 8), then zeros.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - Two bytes at `p + i * stride` are readable for every `i < n`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn gather_f16(p: *const u8, stride: usize, n: usize) -> __m256 {
    let mut bits = [0_u16; 8];
    for (i, bits) in bits.iter_mut().take(n).enumerate() {
        // SAFETY: `i` is below `n`.
        *bits = unsafe { p.add(i * stride).cast::<u16>().read_unaligned() };
    }
    // SAFETY: the array has 16 bytes.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bits.as_ptr().cast()) })
}

/// Blocks whose scales are handled together.
const GROUP: usize = 8;

/// Dot products of `R` weight rows of `blocks` blocks with one row of activations.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - Each of `w` has `blocks` readable blocks; `x` has `blocks` blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn gemv<Q: Quants, const R: usize>(
    w: [*const u8; R],
    x: QuantizedRow<'_>,
    blocks: usize,
) -> [f32; R] {
    let mut sums = [_mm512_setzero_ps(); R];
    let mut mins = [_mm256_setzero_ps(); R];
    let full = blocks / GROUP * GROUP;
    // SAFETY: each call stays below `blocks`.
    unsafe {
        for first in (0..full).step_by(GROUP) {
            group::<Q, R>(w, x, first, GROUP, &mut sums, &mut mins);
        }
        if full < blocks {
            group::<Q, R>(w, x, full, blocks - full, &mut sums, &mut mins);
        }
    }
    let mut out = [0.0; R];
    for r in 0..R {
        let mins = if Q::MIN { _mm512_zextps256_ps512(mins[r]) } else { _mm512_setzero_ps() };
        out[r] = _mm512_reduce_add_ps(_mm512_add_ps(sums[r], mins));
    }
    out
}

/// Adds blocks `first` to `first + n` (`n` is at most [`GROUP`]) of each row to the sums.
///
/// # Safety
/// As [`gemv`]; the blocks are among its blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn group<Q: Quants, const R: usize>(
    w: [*const u8; R],
    x: QuantizedRow<'_>,
    first: usize,
    n: usize,
    sums: &mut [__m512; R],
    mins: &mut [__m256; R],
) {
    let present = super::first(n) as u8;
    // SAFETY: the blocks are among those of the rows and of `x`; masked loads touch no others.
    unsafe {
        let d = _mm256_maskz_loadu_ps(present, x.d.as_ptr().add(first));
        let s = _mm256_maskz_loadu_ps(present, x.s.as_ptr().add(first));
        let mut scales = [_mm512_setzero_ps(); R];
        for r in 0..R {
            let block = w[r].add(first * Q::BYTES);
            let scale = _mm256_mul_ps(gather_f16(block, Q::BYTES, n), d);
            scales[r] = _mm512_zextps256_ps512(scale);
            if Q::MIN {
                mins[r] = _mm256_fmadd_ps(gather_f16(block.add(2), Q::BYTES, n), s, mins[r]);
            }
        }
        // The scale of a pair's first block goes to the lower eight lanes, that of its second to the upper eight.
        let mut lanes = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1);
        for b in (first..first + n / 2 * 2).step_by(2) {
            let q = _mm512_loadu_si512(x.q.as_ptr().add(b * 32).cast());
            let start = minus_raised::<Q>(q);
            for r in 0..R {
                let product = _mm512_dpbusd_epi32(start, Q::load2(w[r].add(b * Q::BYTES)), q);
                let scale = _mm512_permutexvar_ps(lanes, scales[r]);
                sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), scale, sums[r]);
            }
            lanes = _mm512_add_epi32(lanes, _mm512_set1_epi32(2));
        }
        if n % 2 == 1 {
            let b = first + n - 1;
            let q = _mm512_zextsi256_si512(_mm256_loadu_si256(x.q.as_ptr().add(b * 32).cast()));
            let start = minus_raised::<Q>(q);
            for r in 0..R {
                let quants = _mm512_zextsi256_si512(Q::load(w[r].add(b * Q::BYTES)));
                let product = _mm512_dpbusd_epi32(start, quants, q);
                // The upper lanes, where there is no block, are zeros times the scale of none, a zero.
                let scale = _mm512_permutexvar_ps(lanes, scales[r]);
                sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), scale, sums[r]);
            }
        }
    }
}

/// Products of `R` float weight rows with `C` rows of activations, `k` elements each: `[row][activation row]`.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - Each of `w` has `k` readable elements of `F`, each of `x` `k` readable floats.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn float<F: Float, const R: usize, const C: usize>(
    w: [*const u8; R],
    x: [*const f32; C],
    k: usize,
) -> [[f32; C]; R] {
    let mut sums = [[_mm512_setzero_ps(); C]; R];
    let full = k / LANES * LANES;
    for i in (0..full).step_by(LANES) {
        let mut b = [_mm512_setzero_ps(); C];
        for c in 0..C {
            // SAFETY: 16 elements from `i` are below `k`.
            b[c] = unsafe { _mm512_loadu_ps(x[c].add(i)) };
        }
        for r in 0..R {
            // SAFETY: 16 elements from `i` are below `k`.
            let a = unsafe { F::load(w[r].add(i * F::BYTES)) };
            for c in 0..C {
                sums[r][c] = _mm512_fmadd_ps(a, b[c], sums[r][c]);
            }
        }
    }
    if full < k {
        let mask = super::first(k - full);
        for r in 0..R {
            // SAFETY: the mask covers the elements from `full` to `k`.
            let a = unsafe { F::load_part(w[r].add(full * F::BYTES), mask) };
            for c in 0..C {
                // SAFETY: the mask covers the elements from `full` to `k`.
                let b = unsafe { F32::load_part(x[c].add(full).cast(), mask) };
                sums[r][c] = _mm512_fmadd_ps(a, b, sums[r][c]);
            }
        }
    }
    let mut out = [[0.0; C]; R];
    for r in 0..R {
        for c in 0..C {
            out[r][c] = _mm512_reduce_add_ps(sums[r][c]);
        }
    }
    out
}
