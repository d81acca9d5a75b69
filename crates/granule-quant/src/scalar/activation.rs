//! The reference quantizer of activations: the Q8_0 rule, with scales kept in f32.

use super::codec::{quants_q8_0, scale_q8_0};
use crate::BLOCK_LEN;

/// Quantizes a row that [`crate::Isa::quantize_row`] has checked.
pub(crate) fn quantize_row(x: &[f32], q: &mut [i8], d: &mut [f32], s: &mut [f32]) {
    let blocks = x.as_chunks::<BLOCK_LEN>().0.iter().zip(q.as_chunks_mut::<BLOCK_LEN>().0);
    for ((x, q), (d, s)) in blocks.zip(d.iter_mut().zip(s)) {
        *d = scale_q8_0(x);
        *q = quants_q8_0(x, *d);
        *s = *d * q.iter().map(|&q| i32::from(q)).sum::<i32>() as f32;
    }
}
