//! Attention over a tile: the portable code, compiled for these instructions, with their decoder.

use super::planar::decode_planar;
use crate::DType;
use crate::attend::{HeadRows, RunningSoftmax, TileShape, portable};

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn prepare(_: DType, head_dim: usize, q: &[f32], words: &mut [f32]) {
    portable::prepare(head_dim, q, words);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn scores(keys: &HeadRows<'_>, words: &[f32], rows: usize, scores: &mut [f32]) {
    portable::scores::<true, _>(keys, words, rows, scores, |dtype, quants, scales, out| {
        decode_planar(dtype, quants, scales, out);
    });
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn softmax(shape: TileShape, add: &[f32], scores: &mut [f32], running: &mut RunningSoftmax<'_>) {
    portable::softmax::<true>(shape, add, scores, running);
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn sums(values: &HeadRows<'_>, weights: &[f32], factors: &[[f32; 2]], sums: &mut [f32]) {
    portable::sums::<true, _>(values, weights, factors, sums, |dtype, quants, scales, out| {
        decode_planar(dtype, quants, scales, out);
    });
}
