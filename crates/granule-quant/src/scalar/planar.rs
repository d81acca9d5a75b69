//! The reference for planar rows: the same blocks, quants in one plane and scales in another.

use bytemuck::cast;
use half::f16;

use super::codec::{self, decode_bf16, decode_q4_0, decode_q8_0};
use crate::{BLOCK_LEN, BlockQ4_0, BlockQ8_0, DType};

/// Encodes a row that [`crate::Isa::encode_planar`] has checked.
pub(crate) fn encode_planar(dtype: DType, src: &[f32], quants: &mut [u8], scales: &mut [u8]) {
    let (blocks, scales) = (src.as_chunks().0, scales.as_chunks_mut::<2>().0);
    match dtype {
        DType::Q8_0 => {
            for ((x, q), d) in blocks.iter().zip(quants.as_chunks_mut::<32>().0).zip(scales) {
                let block = codec::encode_q8_0(x);
                (*q, *d) = (cast(block.q), block.d.to_le_bytes());
            }
        }
        DType::Q4_0 => {
            for ((x, q), d) in blocks.iter().zip(quants.as_chunks_mut::<16>().0).zip(scales) {
                let block = codec::encode_q4_0(x);
                (*q, *d) = (block.q, block.d.to_le_bytes());
            }
        }
        _ => codec::encode(dtype, src, quants),
    }
}

/// Calls `f(i, x)` for every element of a planar row; the lengths are right.
fn for_each(dtype: DType, quants: &[u8], scales: &[u8], mut f: impl FnMut(usize, f32)) {
    let scales = scales.as_chunks().0.iter().map(|&d| f16::from_le_bytes(d));
    match dtype {
        DType::F32 => {
            let x = quants.as_chunks().0.iter().enumerate();
            x.for_each(|(i, &x)| f(i, f32::from_le_bytes(x)));
        }
        DType::F16 => {
            let x = quants.as_chunks().0.iter().enumerate();
            x.for_each(|(i, &x)| f(i, f16::from_le_bytes(x).to_f32()));
        }
        DType::BF16 => {
            let x = quants.as_chunks().0.iter().enumerate();
            x.for_each(|(i, &x)| f(i, decode_bf16(u16::from_le_bytes(x))));
        }
        DType::Q8_0 => {
            for (b, (q, d)) in quants.as_chunks::<32>().0.iter().zip(scales).enumerate() {
                let x = decode_q8_0(&BlockQ8_0 { d, q: cast(*q) });
                x.into_iter().enumerate().for_each(|(i, x)| f(b * BLOCK_LEN + i, x));
            }
        }
        DType::Q4_0 => {
            for (b, (q, d)) in quants.as_chunks::<16>().0.iter().zip(scales).enumerate() {
                let x = decode_q4_0(&BlockQ4_0 { d, q: *q });
                x.into_iter().enumerate().for_each(|(i, x)| f(b * BLOCK_LEN + i, x));
            }
        }
        // Not planar, and refused before it gets here.
        _ => {}
    }
}

pub(crate) fn decode_planar(dtype: DType, quants: &[u8], scales: &[u8], dst: &mut [f32]) {
    for_each(dtype, quants, scales, |i, x| dst[i] = x);
}
