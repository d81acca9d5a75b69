//! Products straight from the rows as they lie in memory.
//!
//! With one column, memory is what they wait for. It is read in its order, one row after the other, with several sums
//! of that row under way: several rows at once are several streams of memory, which the hardware follows far worse (a
//! quarter of the speed, for rows of some kilobytes).

use std::arch::x86_64::*;
use std::hint::black_box;

use super::LANES;
use super::float::{F32, Float};
use crate::x86::gather_f16;
use crate::{DType, QuantizedRow};

/// A quantized type: where its block's scales and quants are, and how `vpdpbusd` multiplies them.
pub(super) trait Quants {
    /// Bytes of one block.
    const BYTES: usize;
    /// What unsigned quants have been raised by: the quant is byte - `RAISED`.
    const RAISED: u8;
    /// Whether a block has a minimum, in the two bytes behind its scale.
    const MIN: bool;
    /// Whether the quants are nibbles.
    const NIBBLES: bool;

    /// Products of the block at `p` with the 32 quants at `x`, four to a sum; see [`units`](Self::units).
    ///
    /// # Safety
    /// - The CPU has this module's instructions.
    /// - The block's bytes at `p` and 32 at `x` are readable.
    unsafe fn products(p: *const u8, x: *const i8) -> __m256i;

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

/// Products of the 16 nibble bytes at `p`, high nibbles left where they are and so 16 times as large.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - 16 bytes at `p` and 32 at `x` are readable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn nibble_products(p: *const u8, x: *const i8) -> __m256i {
    let (lo, hi) = (0x0f0f_0f0f_0f0f_0f0f, 0xf0f0_f0f0_f0f0_f0f0_u64.cast_signed());
    // SAFETY: the caller vouches for the bytes.
    let (bytes, x) = unsafe { (_mm_loadu_si128(p.cast()), _mm256_loadu_si256(x.cast())) };
    let nibbles = _mm256_and_si256(_mm256_broadcastsi128_si256(bytes), _mm256_setr_epi64x(lo, lo, hi, hi));
    _mm256_dpbusd_epi32(_mm256_setzero_si256(), nibbles, x)
}

/// The units of [`nibble_products`].
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
    unsafe fn products(p: *const u8, x: *const i8) -> __m256i {
        // SAFETY: bytes 2 to 34 are the block's quants.
        let (q, x) = unsafe { (_mm256_loadu_si256(p.add(2).cast()), _mm256_loadu_si256(x.cast())) };
        let (raise, zero) = (_mm256_set1_epi8(-128), _mm256_setzero_si256());
        let raised = _mm256_dpbusd_epi32(zero, _mm256_xor_si256(q, raise), x);
        _mm256_sub_epi32(raised, _mm256_dpbusd_epi32(zero, raise, x))
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
    unsafe fn products(p: *const u8, x: *const i8) -> __m256i {
        // SAFETY: bytes 2 to 18 are the block's nibbles.
        unsafe { nibble_products(p.add(2), x) }
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
    unsafe fn products(p: *const u8, x: *const i8) -> __m256i {
        // SAFETY: bytes 4 to 20 are the block's nibbles.
        unsafe { nibble_products(p.add(4), x) }
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

/// Blocks whose scales are handled together.
const GROUP: usize = 8;

/// The sums of one row with one row of activations, under way.
#[derive(Clone, Copy)]
struct Sums {
    /// In [`Quants::units`]; several, since one would wait for itself.
    products: [__m256; 4],
    minimums: __m256,
}

/// Dot product of the weight row of `blocks` blocks at `w` with a row of activations.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - `blocks` blocks are readable at `w`; `x` has `blocks` blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn row<Q: Quants>(w: *const u8, x: QuantizedRow<'_>, blocks: usize) -> f32 {
    let zero = _mm256_setzero_ps();
    let mut sums = Sums { products: [zero; 4], minimums: zero };
    // The lane of a block's scale. Were it known, shuffles by constants would be taken for the better code.
    let lane = black_box(_mm256_setzero_si256());
    let full = blocks / GROUP * GROUP;
    // SAFETY: each call stays below `blocks`.
    unsafe {
        for first in (0..full).step_by(GROUP) {
            group::<Q, true>(w, x, first, GROUP, lane, &mut sums);
        }
        if full < blocks {
            group::<Q, false>(w, x, full, blocks - full, lane, &mut sums);
        }
        let [a, b, c, d] = sums.products;
        let products = _mm256_add_ps(_mm256_add_ps(a, b), _mm256_add_ps(c, d));
        let sum = _mm256_fmadd_ps(products, Q::units(), sums.minimums);
        _mm512_reduce_add_ps(_mm512_zextps256_ps512(sum))
    }
}

/// Adds blocks `first` to `first + n` (`n` is at most [`GROUP`], and that where `FULL`) to the sums.
///
/// # Safety
/// As [`row`]; the blocks are among its blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn group<Q: Quants, const FULL: bool>(
    w: *const u8,
    x: QuantizedRow<'_>,
    first: usize,
    n: usize,
    mut lane: __m256i,
    sums: &mut Sums,
) {
    let n = if FULL { GROUP } else { n };
    let present = super::first(n) as u8;
    // SAFETY: the blocks are among those of the row and of `x`; masked loads touch no others.
    unsafe {
        let block = w.add(first * Q::BYTES);
        let d = gather_f16(block, Q::BYTES, n);
        let s = _mm256_maskz_loadu_ps(present, x.s.as_ptr().add(first));
        sums.minimums = _mm256_fmadd_ps(Q::minimums(block, n, d), s, sums.minimums);
        let scales = _mm256_mul_ps(d, _mm256_maskz_loadu_ps(present, x.d.as_ptr().add(first)));
        for b in 0..n {
            let products = Q::products(block.add(b * Q::BYTES), x.q.as_ptr().add((first + b) * 32));
            let scale = _mm256_permutevar8x32_ps(scales, lane);
            let [sum, others @ ..] = sums.products;
            let sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(products), scale, sum);
            sums.products = [others[0], others[1], others[2], sum];
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
