//! Planar rows: codec bit for bit the reference, and the two products of attention on f32 queries.

use std::arch::x86_64::*;

use half::f16;

use super::float::{BF16, F16, F32, Float};
use super::{LANES, block, codec, first};
use crate::x86::f16_to_f32;
use crate::{BLOCK_LEN, DType};

/// Encodes a row that [`crate::Isa::encode_planar`] has checked.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn encode_planar(dtype: DType, src: &[f32], quants: &mut [u8], scales: &mut [u8]) {
    let blocks = src.as_chunks::<BLOCK_LEN>().0.iter().zip(scales.as_chunks_mut::<2>().0);
    match dtype {
        DType::Q8_0 => {
            for ((x, d), dst) in blocks.zip(quants.as_chunks_mut::<32>().0) {
                let (scale, q, _) = block::quantize_q8_0(x);
                *d = f16::from_f32(scale).to_le_bytes();
                // SAFETY: the 32 bytes are writable; no alignment is asked for.
                unsafe { _mm256_storeu_si256(dst.as_mut_ptr().cast(), q) };
            }
        }
        DType::Q4_0 => {
            for ((x, d), dst) in blocks.zip(quants.as_chunks_mut::<16>().0) {
                let (scale, q) = block::quantize_q4_0(x);
                *d = f16::from_f32(scale).to_le_bytes();
                // SAFETY: the 16 bytes are writable; no alignment is asked for.
                unsafe { _mm_storeu_si128(dst.as_mut_ptr().cast(), q) };
            }
        }
        _ => codec::encode(dtype, src, quants),
    }
}

/// Runs `$body` for every block of a quantized row, with its index, its scale in all lanes and its unscaled elements.
/// (A macro, since a closure would have to get its instructions through iterators that do not have them.)
macro_rules! for_each_block {
    ($dtype:expr, $quants:expr, $scales:expr, |$b:ident, $d:ident, $lo:ident, $hi:ident| $body:block) => {{
        let scales = $scales.as_chunks::<2>().0;
        if $dtype == DType::Q8_0 {
            for ($b, (q, &d)) in $quants.as_chunks::<32>().0.iter().zip(scales).enumerate() {
                let ($d, ($lo, $hi)) = (_mm512_set1_ps(f16_to_f32(d)), block::widen_q8(q));
                $body
            }
        } else {
            let table = block::count_from(-8);
            for ($b, (q, &d)) in $quants.as_chunks::<16>().0.iter().zip(scales).enumerate() {
                let ($d, ($lo, $hi)) = (_mm512_set1_ps(f16_to_f32(d)), block::widen_q4(q, table));
                $body
            }
        }
    }};
}

/// Decodes a row whose lengths [`crate::Isa::decode_planar`] has checked.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn decode_planar(dtype: DType, quants: &[u8], scales: &[u8], dst: &mut [f32]) {
    if !dtype.is_quantized() {
        return codec::decode(dtype, quants, dst);
    }
    let dst = dst.as_chunks_mut::<BLOCK_LEN>().0;
    for_each_block!(dtype, quants, scales, |b, d, lo, hi| {
        block::store((_mm512_mul_ps(d, lo), _mm512_mul_ps(d, hi)), &mut dst[b]);
    });
}

/// Dot product of a row and `q`, whose lengths [`crate::Isa::dot_planar`] has checked.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn dot_planar(dtype: DType, quants: &[u8], scales: &[u8], q: &[f32]) -> f32 {
    match dtype {
        DType::F32 => return dot_float::<F32>(quants, q),
        DType::F16 => return dot_float::<F16>(quants, q),
        DType::BF16 => return dot_float::<BF16>(quants, q),
        DType::Q8_0 | DType::Q4_0 | DType::Q4_1 => {}
    }
    let q = q.as_chunks::<BLOCK_LEN>().0;
    let mut sum = [_mm512_setzero_ps(); 2];
    for_each_block!(dtype, quants, scales, |b, d, lo, hi| {
        let (q_lo, q_hi) = block::load(&q[b]);
        let products = _mm512_fmadd_ps(hi, q_hi, _mm512_mul_ps(lo, q_lo));
        // The other sum next time: one alone would wait for itself.
        sum = [sum[1], _mm512_fmadd_ps(products, d, sum[0])];
    });
    _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]))
}

/// Dot product of a float row and `q`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn dot_float<F: Float>(row: &[u8], q: &[f32]) -> f32 {
    let mut sum = [_mm512_setzero_ps(); 2];
    let (pairs, q_rest) = q.as_chunks::<{ 2 * LANES }>();
    let row_pairs = row.chunks_exact(2 * LANES * F::BYTES);
    let row_rest = row_pairs.remainder();
    for (row, q) in row_pairs.zip(pairs) {
        let (q0, q1) = block::load(q);
        // SAFETY: the chunk holds 32 elements.
        let (x0, x1) = unsafe { (F::load(row.as_ptr()), F::load(row.as_ptr().add(LANES * F::BYTES))) };
        sum = [_mm512_fmadd_ps(x0, q0, sum[0]), _mm512_fmadd_ps(x1, q1, sum[1])];
    }
    for (row, q) in row_rest.chunks(LANES * F::BYTES).zip(q_rest.chunks(LANES)) {
        let mask = first(q.len().min(row.len() / F::BYTES));
        // SAFETY: the mask covers elements that lie in both slices.
        let (x, q) = unsafe { (F::load_part(row.as_ptr(), mask), F32::load_part(q.as_ptr().cast(), mask)) };
        sum[0] = _mm512_fmadd_ps(x, q, sum[0]);
    }
    _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]))
}

/// Adds `a` times a row to `y`; [`crate::Isa::axpy_planar`] has checked the lengths.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn axpy_planar(dtype: DType, quants: &[u8], scales: &[u8], a: f32, y: &mut [f32]) {
    match dtype {
        DType::F32 => return axpy_float::<F32>(quants, a, y),
        DType::F16 => return axpy_float::<F16>(quants, a, y),
        DType::BF16 => return axpy_float::<BF16>(quants, a, y),
        DType::Q8_0 | DType::Q4_0 | DType::Q4_1 => {}
    }
    let (a, y) = (_mm512_set1_ps(a), y.as_chunks_mut::<BLOCK_LEN>().0);
    for_each_block!(dtype, quants, scales, |b, d, lo, hi| {
        let (y_lo, y_hi) = block::load(&y[b]);
        let ad = _mm512_mul_ps(a, d);
        block::store((_mm512_fmadd_ps(lo, ad, y_lo), _mm512_fmadd_ps(hi, ad, y_hi)), &mut y[b]);
    });
}

/// Adds `a` times a float row to `y`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn axpy_float<F: Float>(row: &[u8], a: f32, y: &mut [f32]) {
    let a = _mm512_set1_ps(a);
    let (full, rest) = y.as_chunks_mut::<LANES>();
    let mut row = row.chunks(LANES * F::BYTES);
    // Not by masks too: what one row stores the next one loads, and only whole stores are handed on.
    for (y, row) in full.iter_mut().zip(&mut row) {
        // SAFETY: 16 floats are readable and writable, and the chunk has 16 elements: only the last is shorter.
        unsafe {
            let sum = _mm512_fmadd_ps(F::load(row.as_ptr()), a, _mm512_loadu_ps(y.as_ptr()));
            _mm512_storeu_ps(y.as_mut_ptr(), sum);
        }
    }
    if let Some(row) = row.next() {
        let mask = first(rest.len().min(row.len() / F::BYTES));
        // SAFETY: the mask covers elements that lie in both slices.
        unsafe {
            let (x, y) = (F::load_part(row.as_ptr(), mask), F32::load_part(rest.as_ptr().cast(), mask));
            F32::store_part(rest.as_mut_ptr().cast(), _mm512_fmadd_ps(x, a, y), mask);
        }
    }
}
