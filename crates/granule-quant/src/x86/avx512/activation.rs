//! Activations to 8 and 16 bits, bit for bit the reference.

use std::arch::x86_64::*;

use super::{LANES, block};
use crate::BLOCK_LEN;
use crate::scalar::activation::most;

/// Quantizes a row that [`crate::Isa::quantize_row`] has checked.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn quantize_row(x: &[f32], q: &mut [i8], d: &mut [f32], s: &mut [f32]) {
    let blocks = x.as_chunks::<BLOCK_LEN>().0.iter().zip(q.as_chunks_mut::<BLOCK_LEN>().0);
    for ((x, q), (d, s)) in blocks.zip(d.iter_mut().zip(s)) {
        let (scale, quants, sum) = block::quantize_q8_0(x);
        // SAFETY: the 32 bytes are writable; no alignment is asked for.
        unsafe { _mm256_storeu_si256(q.as_mut_ptr().cast(), quants) };
        (*d, *s) = (scale, scale * sum as f32);
    }
}

/// Turns a row that [`crate::Isa::quantize_fixed`] has checked into fixed-point numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
        let (scale, first, second) = block::fixed(x, most(wide));
        *d = scale;
        let sum = _mm512_reduce_add_epi32(first);
        *sums = [sum + _mm512_reduce_add_epi32(second), sum];
        // What the signed low byte leaves is rounded to a multiple of 256.
        let above = |n| _mm512_srai_epi32::<8>(_mm512_add_epi32(n, _mm512_set1_epi32(128)));
        let highs = if wide { [above(first), above(second)] } else { [first, second] };
        store_bytes(highs, high);
        if let Some(low) = low.next() {
            store_bytes([first, second], low);
        }
    }
}

/// The low bytes of 32 numbers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn store_bytes(numbers: [__m512i; 2], bytes: &mut [i8; BLOCK_LEN]) {
    for (numbers, bytes) in numbers.into_iter().zip(bytes.as_chunks_mut::<LANES>().0) {
        // SAFETY: the 16 bytes are writable; no alignment is asked for.
        unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(numbers)) };
    }
}

/// [`crate::Isa::swiglu`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) {
    crate::swiglu::portable::<true>(gate, up);
}
