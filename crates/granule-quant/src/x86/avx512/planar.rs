//! Planar rows: codec bit for bit the reference.

use std::arch::x86_64::*;

use half::f16;

use super::{block, codec};
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
