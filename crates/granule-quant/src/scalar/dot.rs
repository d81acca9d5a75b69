//! The reference dot products of one row of weights with one row of activations.

use bytemuck::{Pod, pod_read_unaligned};
use half::f16;

use super::codec::{decode_bf16, nibble};
use crate::{BLOCK_LEN, BlockQ4_0, BlockQ4_1, BlockQ8_0, DType, QuantizedRow};

/// Sum over blocks of `term(block, q, d, s)`; the lengths are right.
fn sum_blocks<B: Pod>(
    row: &[u8],
    x: QuantizedRow<'_>,
    term: impl Fn(&B, &[i8; BLOCK_LEN], f32, f32) -> f32,
) -> f32 {
    let blocks = row.chunks_exact(size_of::<B>()).map(pod_read_unaligned::<B>);
    let x = x.q.as_chunks().0.iter().zip(x.d.iter().zip(x.s));
    blocks.zip(x).map(|(block, (q, (&d, &s)))| term(&block, q, d, s)).sum()
}

/// Sum over a block of weight times quant, exactly.
fn sum_products(w: impl Fn(usize) -> i32, q: &[i8; BLOCK_LEN]) -> f32 {
    q.iter().enumerate().map(|(j, &q)| w(j) * i32::from(q)).sum::<i32>() as f32
}

pub(crate) fn dot_q8(dtype: DType, row: &[u8], x: QuantizedRow<'_>) -> f32 {
    match dtype {
        DType::Q8_0 => sum_blocks(row, x, |w: &BlockQ8_0, q, d, _| {
            w.d.to_f32() * d * sum_products(|j| i32::from(w.q[j]), q)
        }),
        DType::Q4_0 => sum_blocks(row, x, |w: &BlockQ4_0, q, d, _| {
            w.d.to_f32() * d * sum_products(|j| i32::from(nibble(&w.q, j)) - 8, q)
        }),
        DType::Q4_1 => sum_blocks(row, x, |w: &BlockQ4_1, q, d, s| {
            w.d.to_f32() * d * sum_products(|j| i32::from(nibble(&w.q, j)), q) + w.m.to_f32() * s
        }),
        // Not a type of this product, and refused before it gets here.
        DType::F32 | DType::F16 | DType::BF16 => f32::NAN,
    }
}

pub(crate) fn dot_f32(dtype: DType, row: &[u8], x: &[f32]) -> f32 {
    match dtype {
        DType::F32 => row.as_chunks().0.iter().zip(x).map(|(&w, x)| f32::from_le_bytes(w) * x).sum(),
        DType::F16 => row.as_chunks().0.iter().zip(x).map(|(&w, x)| f16::from_le_bytes(w).to_f32() * x).sum(),
        DType::BF16 => {
            row.as_chunks().0.iter().zip(x).map(|(&w, x)| decode_bf16(u16::from_le_bytes(w)) * x).sum()
        }
        // Not a type of this product, and refused before it gets here.
        DType::Q8_0 | DType::Q4_0 | DType::Q4_1 => f32::NAN,
    }
}
