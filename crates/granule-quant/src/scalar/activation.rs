//! The reference quantizers of activations: the Q8_0 rule with scales kept in f32, and fixed point.

use super::codec::{inverse, largest, quants_q8_0, scale_q8_0};
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

/// What a number of 8 bits, or of 16, is at most: the high byte of the largest is 127 in both.
pub(crate) const fn most(wide: bool) -> f32 {
    if wide { 32512.0 } else { 127.0 }
}

/// Turns a row that [`crate::Isa::quantize_fixed`] has checked into fixed-point numbers.
pub(crate) fn quantize_fixed(
    x: &[f32],
    high: &mut [i8],
    low: &mut [i8],
    d: &mut [f32],
    sums: &mut [[i32; 2]],
) {
    let wide = !low.is_empty();
    let mut low = low.as_chunks_mut::<BLOCK_LEN>().0.iter_mut();
    let blocks = x.as_chunks::<BLOCK_LEN>().0.iter().zip(high.as_chunks_mut::<BLOCK_LEN>().0);
    for ((x, high), (d, sums)) in blocks.zip(d.iter_mut().zip(sums)) {
        *d = largest(x).1.abs() / most(wide);
        let id = inverse(*d);
        let numbers = x.map(|x| (x * id).round() as i32);
        *sums = [numbers.iter().sum(), numbers[..16].iter().sum()];
        *high = numbers.map(|n| (if wide { (n + 128) >> 8 } else { n }) as i8);
        if let Some(low) = low.next() {
            *low = numbers.map(|n| n as i8);
        }
    }
}

/// [`crate::Isa::swiglu`].
pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) {
    crate::swiglu::portable::<false>(gate, up);
}
