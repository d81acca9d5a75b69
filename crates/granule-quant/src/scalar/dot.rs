//! The reference dot products of one row of weights with one row of activations.

use bytemuck::{Pod, pod_read_unaligned};
use half::f16;

use super::codec::{decode_bf16, nibble};
use crate::expand::{Expand, Minimum, Run, by_block};
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

/// Dot product of a row of blocks that are expanded.
fn sum_runs<B: Expand>(row: &[u8], x: QuantizedRow<'_>) -> f32 {
    let runs = row.chunks_exact(size_of::<B>()).map(pod_read_unaligned::<B>);
    let runs = runs.flat_map(|block| (0..B::RUNS).map(move |i| block.run(i)));
    let x = x.q.as_chunks().0.iter().zip(x.d.iter().zip(x.s));
    runs.zip(x).map(|(w, (q, (&d, &s)))| run_product::<B>(&w, q, d, s)).sum()
}

/// The products of a run with 32 quants of activations, whose scale is `d`, and whose sum times that is `s`.
fn run_product<B: Expand>(w: &Run, q: &[i8; BLOCK_LEN], d: f32, s: f32) -> f32 {
    let half = |h: usize| (&w.q.as_chunks::<16>().0[h], &q.as_chunks::<16>().0[h]);
    let products = |h: usize| {
        let (w, q) = half(h);
        w.iter().zip(q).map(|(&w, &q)| i32::from(w) * i32::from(q)).sum::<i32>() as f32
    };
    let sum = |h: usize| d * half(h).1.iter().map(|&q| i32::from(q)).sum::<i32>() as f32;
    let minimums = match B::MINIMUM {
        Minimum::None => 0.0,
        Minimum::Whole => w.m[0] * s,
        Minimum::Halves => w.m[0] * sum(0) + w.m[1] * sum(1),
    };
    w.d[0] * d * products(0) + w.d[1] * d * products(1) + minimums
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
        // What is left in the end is not of this product, and refused before it gets here.
        _ => by_block!(dtype, sum_runs, (row, x), f32::NAN),
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
        _ => f32::NAN,
    }
}
