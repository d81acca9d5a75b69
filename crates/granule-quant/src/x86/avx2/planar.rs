//! Planar rows: codec bit for bit the reference, and the two products of attention on f32 queries.

use std::arch::x86_64::*;

use half::f16;

use super::float::{BF16, F16, F32, Float, load_part, store_part};
use super::{LANES, block, codec, sum};
use crate::x86::f16_to_f32;
use crate::{BLOCK_LEN, DType};

/// Encodes a row that [`crate::Isa::encode_planar`] has checked.
#[target_feature(enable = "avx2,fma,f16c")]
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
    ($dtype:expr, $quants:expr, $scales:expr, |$b:ident, $d:ident, $x:ident| $body:block) => {{
        let scales = $scales.as_chunks::<2>().0;
        if $dtype == DType::Q8_0 {
            for ($b, (q, &d)) in $quants.as_chunks::<32>().0.iter().zip(scales).enumerate() {
                let ($d, $x) = (_mm256_set1_ps(f16_to_f32(d)), block::widen_q8(q));
                $body
            }
        } else {
            for ($b, (q, &d)) in $quants.as_chunks::<16>().0.iter().zip(scales).enumerate() {
                let ($d, $x) = (_mm256_set1_ps(f16_to_f32(d)), block::widen_q4(q, 8));
                $body
            }
        }
    }};
}

/// Decodes a row whose lengths [`crate::Isa::decode_planar`] has checked.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn decode_planar(dtype: DType, quants: &[u8], scales: &[u8], dst: &mut [f32]) {
    if !dtype.is_quantized() {
        return codec::decode(dtype, quants, dst);
    }
    let dst = dst.as_chunks_mut::<BLOCK_LEN>().0;
    for_each_block!(dtype, quants, scales, |b, d, x| {
        block::store(x.map(|x| _mm256_mul_ps(d, x)), &mut dst[b]);
    });
}

/// Dot product of a row and `q`, whose lengths [`crate::Isa::dot_planar`] has checked.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn dot_planar(dtype: DType, quants: &[u8], scales: &[u8], q: &[f32]) -> f32 {
    match dtype {
        DType::F32 => return dot_float::<F32>(quants, q),
        DType::F16 => return dot_float::<F16>(quants, q),
        DType::BF16 => return dot_float::<BF16>(quants, q),
        DType::Q8_0 | DType::Q4_0 | DType::Q4_1 => {}
    }
    let q = q.as_chunks::<BLOCK_LEN>().0;
    let mut sums = [_mm256_setzero_ps(); 2];
    for_each_block!(dtype, quants, scales, |b, d, x| {
        let q = block::load(&q[b]);
        let lo = _mm256_fmadd_ps(x[1], q[1], _mm256_mul_ps(x[0], q[0]));
        let hi = _mm256_fmadd_ps(x[3], q[3], _mm256_mul_ps(x[2], q[2]));
        sums = [_mm256_fmadd_ps(lo, d, sums[0]), _mm256_fmadd_ps(hi, d, sums[1])];
    });
    sum(_mm256_add_ps(sums[0], sums[1]))
}

/// Dot product of a float row and `q`.
#[target_feature(enable = "avx2,fma,f16c")]
fn dot_float<F: Float>(row: &[u8], q: &[f32]) -> f32 {
    // Two, since one would wait for itself.
    let mut sums = [_mm256_setzero_ps(); 2];
    let (full, rest) = q.as_chunks::<LANES>();
    let mut row = row.chunks(LANES * F::BYTES);
    for (q, row) in full.iter().zip(&mut row) {
        // SAFETY: 8 floats are readable, and the chunk has 8 elements: only the last is shorter.
        let (x, q) = unsafe { (F::load(row.as_ptr()), _mm256_loadu_ps(q.as_ptr())) };
        sums = [sums[1], _mm256_fmadd_ps(x, q, sums[0])];
    }
    if let Some(row) = row.next() {
        let q = load_part::<F32>(bytemuck::cast_slice(rest));
        sums[0] = _mm256_fmadd_ps(load_part::<F>(row), q, sums[0]);
    }
    sum(_mm256_add_ps(sums[0], sums[1]))
}

/// Adds `a` times a row to `y`; [`crate::Isa::axpy_planar`] has checked the lengths.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn axpy_planar(dtype: DType, quants: &[u8], scales: &[u8], a: f32, y: &mut [f32]) {
    match dtype {
        DType::F32 => return axpy_float::<F32>(quants, a, y),
        DType::F16 => return axpy_float::<F16>(quants, a, y),
        DType::BF16 => return axpy_float::<BF16>(quants, a, y),
        DType::Q8_0 | DType::Q4_0 | DType::Q4_1 => {}
    }
    let (a, y) = (_mm256_set1_ps(a), y.as_chunks_mut::<BLOCK_LEN>().0);
    for_each_block!(dtype, quants, scales, |b, d, x| {
        let (ad, mut sums) = (_mm256_mul_ps(a, d), block::load(&y[b]));
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = _mm256_fmadd_ps(x, ad, *sum);
        }
        block::store(sums, &mut y[b]);
    });
}

/// Adds `a` times a float row to `y`.
#[target_feature(enable = "avx2,fma,f16c")]
fn axpy_float<F: Float>(row: &[u8], a: f32, y: &mut [f32]) {
    let a = _mm256_set1_ps(a);
    let (full, rest) = y.as_chunks_mut::<LANES>();
    let mut row = row.chunks(LANES * F::BYTES);
    for (y, row) in full.iter_mut().zip(&mut row) {
        // SAFETY: 8 floats are readable and writable, and the chunk has 8 elements: only the last is shorter.
        unsafe {
            let sum = _mm256_fmadd_ps(F::load(row.as_ptr()), a, _mm256_loadu_ps(y.as_ptr()));
            _mm256_storeu_ps(y.as_mut_ptr(), sum);
        }
    }
    if let Some(row) = row.next() {
        let y = bytemuck::cast_slice_mut(rest);
        store_part::<F32>(y, _mm256_fmadd_ps(load_part::<F>(row), a, load_part::<F32>(y)));
    }
}
