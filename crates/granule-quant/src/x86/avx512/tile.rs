//! Products straight from the rows as they lie in memory.
//!
//! With one column, memory is what they wait for. It is read in its order, one row after the other, with several sums
//! of that row under way: several rows at once are several streams of memory, which the hardware follows far worse (a
//! quarter of the speed, for rows of some kilobytes).

use std::arch::x86_64::*;
use std::hint::black_box;

use super::LANES;
use super::float::{F32, Float};
use crate::x86::{gather_f16, prefetch_l2};
use crate::{DType, QuantizedRow};

/// A quantized type: where its block's scales and quants are, and how `vpdpbusd` multiplies them.
pub(super) trait Quants {
    /// Bytes of one block.
    const BYTES: usize;
    /// What raises quants to unsigned bytes: the nibbles are so already, signed quants become so when they are packed.
    const RAISED: u8;
    /// Whether a block has a minimum, in the two bytes behind its scale.
    const MIN: bool;
    /// Whether the quants are nibbles.
    const NIBBLES: bool;

    /// The quants of the block at `p` as [`products`](Self::products) takes them.
    ///
    /// # Safety
    /// - The CPU has this module's instructions.
    /// - The block's bytes at `p` are readable.
    unsafe fn load(p: *const u8) -> __m256i;

    /// Products of a block's quants with 32 quants of activations, none of which is -128, four to a sum; see
    /// [`units`](Self::units).
    ///
    /// # Safety
    /// - The CPU has this module's instructions.
    unsafe fn products(w: __m256i, x: __m256i) -> __m256i;

    /// What one is worth in each sum of [`products`](Self::products).
    ///
    /// # Safety
    /// - The CPU has this module's instructions.
    unsafe fn units() -> __m256;

    /// What belongs to the sums of activations of the `n` blocks (at most 8) at `p`, whose scales are `d`: the minimum,
    /// or what takes off what [`products`](Self::products) has left raised.
    ///
    /// # Safety
    /// - The CPU has this module's instructions.
    /// - `n` blocks are readable at `p`.
    unsafe fn minimums(p: *const u8, n: usize, d: __m256) -> __m256;
}

/// [`DType::Q8_0`].
pub(super) struct Q8_0;
/// [`DType::Q4_0`].
pub(super) struct Q4_0;
/// [`DType::Q4_1`].
pub(super) struct Q4_1;

/// The 16 nibble bytes at `p` twice: low nibbles, then high ones left where they are and so 16 times as large.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - 16 bytes at `p` are readable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn nibbles(p: *const u8) -> __m256i {
    let (lo, hi) = (0x0f0f_0f0f_0f0f_0f0f, 0xf0f0_f0f0_f0f0_f0f0_u64.cast_signed());
    // SAFETY: the caller vouches for the bytes.
    let bytes = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(p.cast()) });
    _mm256_and_si256(bytes, _mm256_setr_epi64x(lo, lo, hi, hi))
}

/// The units of products with [`nibbles`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn nibble_units() -> __m256 {
    let high = 1.0 / 16.0;
    _mm256_setr_ps(1.0, 1.0, 1.0, 1.0, high, high, high, high)
}

impl Quants for Q8_0 {
    const BYTES: usize = DType::Q8_0.block_bytes();
    const RAISED: u8 = 128;
    const MIN: bool = false;
    const NIBBLES: bool = false;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn load(p: *const u8) -> __m256i {
        // SAFETY: bytes 2 to 34 are the block's quants.
        unsafe { _mm256_loadu_si256(p.add(2).cast()) }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn products(w: __m256i, x: __m256i) -> __m256i {
        _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn units() -> __m256 {
        _mm256_set1_ps(1.0)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn minimums(_: *const u8, _: usize, _: __m256) -> __m256 {
        _mm256_setzero_ps()
    }
}

impl Quants for Q4_0 {
    const BYTES: usize = DType::Q4_0.block_bytes();
    const RAISED: u8 = 8;
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
    unsafe fn products(w: __m256i, x: __m256i) -> __m256i {
        _mm256_dpbusd_epi32(_mm256_setzero_si256(), w, x)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn units() -> __m256 {
        nibble_units()
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn minimums(_: *const u8, _: usize, d: __m256) -> __m256 {
        _mm256_mul_ps(d, _mm256_set1_ps(-8.0))
    }
}

impl Quants for Q4_1 {
    const BYTES: usize = DType::Q4_1.block_bytes();
    const RAISED: u8 = 0;
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
    unsafe fn products(w: __m256i, x: __m256i) -> __m256i {
        _mm256_dpbusd_epi32(_mm256_setzero_si256(), w, x)
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn units() -> __m256 {
        nibble_units()
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn minimums(p: *const u8, n: usize, _: __m256) -> __m256 {
        // SAFETY: bytes 2 and 3 of each block are its minimum.
        unsafe { gather_f16(p.add(2), Self::BYTES, n) }
    }
}

/// Bytes that memory is asked for ahead of what is multiplied; 8,192 gave 0.94 of what this does.
const AHEAD: usize = 6144;
/// Blocks whose scales are handled together.
const GROUP: usize = 8;

/// The sums of one row with one row of activations, under way.
#[derive(Clone, Copy)]
struct Sums {
    /// Several, since one would wait for itself.
    products: [__m256; 4],
    minimums: __m256,
}

/// Dot products of the weight row of `blocks` blocks at `w` with `C` rows of activations.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - `blocks` blocks are readable at `w`; each of `x` has `blocks` blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn row<Q: Quants, const C: usize>(
    w: *const u8,
    x: [QuantizedRow<'_>; C],
    blocks: usize,
) -> [f32; C] {
    let zero = _mm256_setzero_ps();
    let mut sums = [Sums { products: [zero; 4], minimums: zero }; C];
    // The lane of a block's scale. Were it known, shuffles by constants would be taken for the better code.
    let lane = black_box(_mm256_setzero_si256());
    let full = blocks / GROUP * GROUP;
    let mut out = [0.0; C];
    // SAFETY: each call stays below `blocks`.
    unsafe {
        for first in (0..full).step_by(GROUP) {
            group::<Q, C, true>(w, x, first, GROUP, lane, &mut sums);
        }
        if full < blocks {
            group::<Q, C, false>(w, x, full, blocks - full, lane, &mut sums);
        }
        for c in 0..C {
            let [p0, p1, p2, p3] = sums[c].products;
            let products = _mm256_add_ps(_mm256_add_ps(p0, p1), _mm256_add_ps(p2, p3));
            let sum = _mm256_fmadd_ps(products, Q::units(), sums[c].minimums);
            out[c] = _mm512_reduce_add_ps(_mm512_zextps256_ps512(sum));
        }
    }
    out
}

/// Adds blocks `first` to `first + n` (`n` is at most [`GROUP`], and that where `FULL`) to the sums.
///
/// # Safety
/// As [`row`]; the blocks are among its blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn group<Q: Quants, const C: usize, const FULL: bool>(
    w: *const u8,
    x: [QuantizedRow<'_>; C],
    first: usize,
    n: usize,
    mut lane: __m256i,
    sums: &mut [Sums; C],
) {
    let n = if FULL { GROUP } else { n };
    let present = super::first(n) as u8;
    // SAFETY: the blocks are among those of the row and of `x`; masked loads touch no others.
    unsafe {
        let block = w.add(first * Q::BYTES);
        let d = gather_f16(block, Q::BYTES, n);
        let minimums = Q::minimums(block, n, d);
        let mut scales = [d; C];
        for c in 0..C {
            let s = _mm256_maskz_loadu_ps(present, x[c].s.as_ptr().add(first));
            sums[c].minimums = _mm256_fmadd_ps(minimums, s, sums[c].minimums);
            scales[c] = _mm256_mul_ps(d, _mm256_maskz_loadu_ps(present, x[c].d.as_ptr().add(first)));
        }
        for b in 0..n {
            let w = Q::load(block.add(b * Q::BYTES));
            for c in 0..C {
                let x = _mm256_loadu_si256(x[c].q.as_ptr().add((first + b) * 32).cast());
                let products = _mm256_cvtepi32_ps(Q::products(w, x));
                let scale = _mm256_permutevar8x32_ps(scales[c], lane);
                let [sum, others @ ..] = sums[c].products;
                let sum = _mm256_fmadd_ps(products, scale, sum);
                sums[c].products = [others[0], others[1], others[2], sum];
            }
            lane = _mm256_add_epi32(lane, _mm256_set1_epi32(1));
        }
    }
}

/// Dot product of the float weight row of `k` elements at `w` with the floats at `x`.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - `k` elements of `F` are readable at `w`, `k` floats at `x`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn float_row<F: Float>(w: *const u8, x: *const f32, k: usize) -> f32 {
    const STEP: usize = 4 * LANES;
    // Several sums, since one would wait for itself.
    let mut sums = [_mm512_setzero_ps(); 4];
    let full = k / STEP * STEP;
    for i in (0..full).step_by(STEP) {
        // Across pages, which the hardware does not; and not into the first-level cache, whose few places for lines on their way
        // would be the limit.
        for line in (0..STEP * F::BYTES).step_by(64) {
            prefetch_l2(w.wrapping_add(i * F::BYTES + AHEAD + line));
        }
        for (j, sum) in sums.iter_mut().enumerate() {
            let i = i + j * LANES;
            // SAFETY: 16 elements from `i` are below `k`.
            *sum = unsafe { _mm512_fmadd_ps(F::load(w.add(i * F::BYTES)), _mm512_loadu_ps(x.add(i)), *sum) };
        }
    }
    for i in (full..k).step_by(LANES) {
        let mask = super::first(k - i);
        // SAFETY: the mask covers elements below `k`.
        let (a, b) =
            unsafe { (F::load_part(w.add(i * F::BYTES), mask), F32::load_part(x.add(i).cast(), mask)) };
        sums = [sums[1], sums[2], sums[3], _mm512_fmadd_ps(a, b, sums[0])];
    }
    let [a, b, c, d] = sums;
    _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(a, b), _mm512_add_ps(c, d)))
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
