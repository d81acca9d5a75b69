//! Activations to 8 bits, bit for bit the reference.

use std::arch::x86_64::*;

use super::block;
use crate::BLOCK_LEN;

/// Quantizes a row that [`crate::Isa::quantize_row`] has checked.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn quantize_row(x: &[f32], q: &mut [i8], d: &mut [f32], s: &mut [f32]) {
    let blocks = x.as_chunks::<BLOCK_LEN>().0.iter().zip(q.as_chunks_mut::<BLOCK_LEN>().0);
    for ((x, q), (d, s)) in blocks.zip(d.iter_mut().zip(s)) {
        let (scale, quants, sum) = block::quantize_q8_0(x);
        // SAFETY: the 32 bytes are writable; no alignment is asked for.
        unsafe { _mm256_storeu_si256(q.as_mut_ptr().cast(), quants) };
        (*d, *s) = (scale, scale * sum as f32);
    }
}

/// [`crate::Isa::swiglu`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn swiglu(gate: &mut [f32], up: &[f32]) {
    crate::swiglu::portable::<true>(gate, up);
}
