//! The orthonormal Hadamard matrix over blocks of 32 channels, which is its own inverse.

use super::BLOCK;

/// Rotates each whole block of 32 elements.
pub(super) fn blocks(x: &mut [f32]) {
    for block in x.as_chunks_mut::<BLOCK>().0 {
        rotate(block);
    }
}

/// One block: five rounds of sums and differences, and a factor of `1 / sqrt(32)`.
fn rotate(x: &mut [f32; BLOCK]) {
    let mut half = 1;
    while half < BLOCK {
        for start in (0..BLOCK).step_by(2 * half) {
            for i in start..start + half {
                (x[i], x[i + half]) = (x[i] + x[i + half], x[i] - x[i + half]);
            }
        }
        half *= 2;
    }
    let norm = 0.25 * std::f32::consts::FRAC_1_SQRT_2;
    for x in x {
        *x *= norm;
    }
}
