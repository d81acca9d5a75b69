//! Rows to and from f32, bit for bit the reference.

use std::arch::x86_64::*;

use half::f16;

use super::float::{BF16, F16, F32, Float};
use super::{LANES, block, first};
use crate::expand::{by_block, decode as decode_runs};
use crate::scalar::codec::encode_plainly;
use crate::x86::f16_to_f32;
use crate::{BLOCK_LEN, DType};

/// Encodes a row that [`crate::Isa::encode`] has checked.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn encode(dtype: DType, src: &[f32], dst: &mut [u8]) {
    let blocks = src.as_chunks::<BLOCK_LEN>().0.iter();
    match dtype {
        DType::F32 => encode_float::<F32>(src, dst),
        DType::F16 => encode_float::<F16>(src, dst),
        DType::BF16 => encode_float::<BF16>(src, dst),
        DType::Q8_0 => {
            for (x, dst) in blocks.zip(dst.as_chunks_mut::<34>().0) {
                let (d, q, _) = block::quantize_q8_0(x);
                dst[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
                // SAFETY: the 32 bytes behind the scale are writable; no alignment is asked for.
                unsafe { _mm256_storeu_si256(dst[2..].as_mut_ptr().cast(), q) };
            }
        }
        DType::Q4_0 => {
            for (x, dst) in blocks.zip(dst.as_chunks_mut::<18>().0) {
                let (d, q) = block::quantize_q4_0(x);
                dst[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
                // SAFETY: the 16 bytes behind the scale are writable; no alignment is asked for.
                unsafe { _mm_storeu_si128(dst[2..].as_mut_ptr().cast(), q) };
            }
        }
        DType::Q4_1 => {
            for (x, dst) in blocks.zip(dst.as_chunks_mut::<20>().0) {
                let (d, m, q) = block::quantize_q4_1(x);
                dst[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
                dst[2..4].copy_from_slice(&f16::from_f32(m).to_le_bytes());
                // SAFETY: the 16 bytes behind scale and minimum are writable; no alignment is asked for.
                unsafe { _mm_storeu_si128(dst[4..].as_mut_ptr().cast(), q) };
            }
        }
        _ => encode_plainly(dtype, src, dst),
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn encode_float<F: Float>(src: &[f32], dst: &mut [u8]) {
    for (src, dst) in src.chunks(LANES).zip(dst.chunks_mut(LANES * F::BYTES)) {
        let mask = first(src.len().min(dst.len() / F::BYTES));
        // SAFETY: the mask covers elements that lie in both slices.
        unsafe { F::store_part(dst.as_mut_ptr(), F32::load_part(src.as_ptr().cast(), mask), mask) };
    }
}

/// Decodes a row whose lengths [`crate::Isa::decode`] has checked.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn decode(dtype: DType, src: &[u8], dst: &mut [f32]) {
    match dtype {
        DType::F32 => return decode_float::<F32>(src, dst),
        DType::F16 => return decode_float::<F16>(src, dst),
        DType::BF16 => return decode_float::<BF16>(src, dst),
        DType::Q8_0 | DType::Q4_0 | DType::Q4_1 => {}
        _ => return by_block!(dtype, decode_runs, (src, dst), ()),
    }
    let dst = dst.as_chunks_mut::<BLOCK_LEN>().0.iter_mut();
    match dtype {
        DType::Q8_0 => {
            for (&[d0, d1, ref q @ ..], dst) in src.as_chunks::<34>().0.iter().zip(dst) {
                let d = _mm512_set1_ps(f16_to_f32([d0, d1]));
                let (lo, hi) = block::widen_q8(q);
                block::store((_mm512_mul_ps(d, lo), _mm512_mul_ps(d, hi)), dst);
            }
        }
        DType::Q4_0 => {
            let table = block::count_from(-8);
            for (&[d0, d1, ref q @ ..], dst) in src.as_chunks::<18>().0.iter().zip(dst) {
                let d = _mm512_set1_ps(f16_to_f32([d0, d1]));
                let (lo, hi) = block::widen_q4(q, table);
                block::store((_mm512_mul_ps(d, lo), _mm512_mul_ps(d, hi)), dst);
            }
        }
        DType::Q4_1 => {
            let table = block::count_from(0);
            for (&[d0, d1, m0, m1, ref q @ ..], dst) in src.as_chunks::<20>().0.iter().zip(dst) {
                let (d, m) = (f16_to_f32([d0, d1]), f16_to_f32([m0, m1]));
                let (d, m) = (_mm512_set1_ps(d), _mm512_set1_ps(m));
                let (lo, hi) = block::widen_q4(q, table);
                let (lo, hi) = (_mm512_mul_ps(d, lo), _mm512_mul_ps(d, hi));
                block::store((_mm512_add_ps(lo, m), _mm512_add_ps(hi, m)), dst);
            }
        }
        _ => {}
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn decode_float<F: Float>(src: &[u8], dst: &mut [f32]) {
    for (src, dst) in src.chunks(LANES * F::BYTES).zip(dst.chunks_mut(LANES)) {
        let mask = first(dst.len().min(src.len() / F::BYTES));
        // SAFETY: the mask covers elements that lie in both slices.
        unsafe { F32::store_part(dst.as_mut_ptr().cast(), F::load_part(src.as_ptr(), mask), mask) };
    }
}

/// The bits of the largest magnitude: ordered like the magnitudes, with infinity and then NaN above all.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn max_magnitude_bits(x: &[f32]) -> u32 {
    let magnitude = _mm512_set1_epi32(i32::MAX);
    let mut max = _mm512_setzero_si512();
    for x in x.chunks(LANES) {
        // SAFETY: the mask covers the elements of the slice.
        let bits = _mm512_castps_si512(unsafe { F32::load_part(x.as_ptr().cast(), first(x.len())) });
        max = _mm512_max_epi32(max, _mm512_and_si512(bits, magnitude));
    }
    _mm512_reduce_max_epi32(max).cast_unsigned()
}
