//! The reference for attention over a tile: decoded rows and f32, one row after the other.

use super::planar::decode_planar;
use crate::DType;
use crate::attend::{HeadRows, RunningSoftmax, TileShape, portable};

pub(crate) fn prepare(_: DType, head_dim: usize, q: &[f32], words: &mut [f32]) {
    portable::prepare(head_dim, q, words);
}

pub(crate) fn scores(keys: &HeadRows<'_>, words: &[f32], rows: usize, scores: &mut [f32]) {
    portable::scores::<false, _>(keys, words, rows, scores, decode_planar);
}

pub(crate) fn softmax(shape: TileShape, add: &[f32], scores: &mut [f32], running: &mut RunningSoftmax<'_>) {
    portable::softmax::<false>(shape, add, scores, running);
}

pub(crate) fn sums(values: &HeadRows<'_>, weights: &[f32], factors: &[[f32; 2]], sums: &mut [f32]) {
    portable::sums::<false, _>(values, weights, factors, sums, decode_planar);
}
