//! Rows to and from f32, bit for bit the reference.

use std::arch::x86_64::*;

use half::f16;

use super::float::{BF16, F16, F32, Float, load_part, store_part};
use super::{LANES, block};
use crate::expand::{by_block, decode as decode_runs};
use crate::scalar::codec::encode_plainly;
use crate::x86::f16_to_f32;
use crate::{BLOCK_LEN, DType};

/// Encodes a row that [`crate::Isa::encode`] has checked.
#[target_feature(enable = "avx2,fma,f16c")]
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

#[target_feature(enable = "avx2,fma,f16c")]
fn encode_float<F: Float>(src: &[f32], dst: &mut [u8]) {
    let (full, rest) = src.as_chunks::<LANES>();
    let mut dst = dst.chunks_mut(LANES * F::BYTES);
    for (src, dst) in full.iter().zip(&mut dst) {
        // SAFETY: 8 floats are readable, and the chunk has room for 8 elements: only the last is shorter.
        unsafe { F::store(dst.as_mut_ptr(), F32::load(src.as_ptr().cast())) };
    }
    if let Some(dst) = dst.next() {
        store_part::<F>(dst, load_part::<F32>(bytemuck::cast_slice(rest)));
    }
}

/// Decodes a row whose lengths [`crate::Isa::decode`] has checked.
#[target_feature(enable = "avx2,fma,f16c")]
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
                let d = _mm256_set1_ps(f16_to_f32([d0, d1]));
                block::store(block::widen_q8(q).map(|q| _mm256_mul_ps(d, q)), dst);
            }
        }
        DType::Q4_0 => {
            for (&[d0, d1, ref q @ ..], dst) in src.as_chunks::<18>().0.iter().zip(dst) {
                let d = _mm256_set1_ps(f16_to_f32([d0, d1]));
                block::store(block::widen_q4(q, 8).map(|q| _mm256_mul_ps(d, q)), dst);
            }
        }
        DType::Q4_1 => {
            for (&[d0, d1, m0, m1, ref q @ ..], dst) in src.as_chunks::<20>().0.iter().zip(dst) {
                let (d, m) = (f16_to_f32([d0, d1]), f16_to_f32([m0, m1]));
                let (d, m) = (_mm256_set1_ps(d), _mm256_set1_ps(m));
                block::store(block::widen_q4(q, 0).map(|q| _mm256_add_ps(_mm256_mul_ps(d, q), m)), dst);
            }
        }
        _ => {}
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn decode_float<F: Float>(src: &[u8], dst: &mut [f32]) {
    let (full, rest) = dst.as_chunks_mut::<LANES>();
    let mut src = src.chunks(LANES * F::BYTES);
    for (dst, src) in full.iter_mut().zip(&mut src) {
        // SAFETY: the chunk has 8 elements (only the last is shorter), and 8 floats are writable.
        unsafe { F32::store(dst.as_mut_ptr().cast(), F::load(src.as_ptr())) };
    }
    if let Some(src) = src.next() {
        store_part::<F32>(bytemuck::cast_slice_mut(rest), load_part::<F>(src));
    }
}

/// The bits of the largest magnitude: ordered like the magnitudes, with infinity and then NaN above all.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn max_magnitude_bits(x: &[f32]) -> u32 {
    let magnitude = _mm256_set1_epi32(i32::MAX);
    let mut max = _mm256_setzero_si256();
    let (full, rest) = x.as_chunks::<LANES>();
    for x in full {
        // SAFETY: 8 floats are readable; no alignment is asked for.
        let bits = unsafe { _mm256_loadu_si256(x.as_ptr().cast()) };
        max = _mm256_max_epi32(max, _mm256_and_si256(bits, magnitude));
    }
    let mut lanes = [0_u32; LANES];
    // SAFETY: the array has 32 bytes; no alignment is asked for.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), max) };
    lanes.into_iter().fold(crate::scalar::codec::max_magnitude_bits(rest), u32::max)
}
