//! The Hadamard matrix (entries 1 and -1, Sylvester's construction) over parts of a row, by the fast transform.

/// Rotates each whole part of `width` elements, a power of two: rounds of sums and differences of elements that are 1, 2, 4, …
/// apart, in this order. Each number is rounded to f32 in that order wherever this is computed, so that the stored bytes
/// are the same.
pub(super) fn rotate(x: &mut [f32], width: usize) {
    match width {
        32 => x.as_chunks_mut::<32>().0.iter_mut().for_each(rotate_part),
        64 => x.as_chunks_mut::<64>().0.iter_mut().for_each(rotate_part),
        128 => x.as_chunks_mut::<128>().0.iter_mut().for_each(rotate_part),
        width => x.chunks_exact_mut(width).for_each(|x| rounds(x, 1)),
    }
}

/// The rounds that join elements `half` apart and further.
#[inline(always)]
fn rounds(x: &mut [f32], mut half: usize) {
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// A width that is known when this is compiled.
fn rotate_part<const N: usize>(x: &mut [f32; N]) {
    // The first rounds inside 8 neighbours, then whole runs of 8.
    for x in x.as_chunks_mut::<8>().0 {
        let [a, b, c, d, e, f, g, h] = *x;
        let [a, b, c, d, e, f, g, h] = [a + b, a - b, c + d, c - d, e + f, e - f, g + h, g - h];
        let [a, b, c, d, e, f, g, h] = [a + c, b + d, a - c, b - d, e + g, f + h, e - g, f - h];
        *x = [a + e, b + f, c + g, d + h, a - e, b - f, c - g, d - h];
    }
    rounds(x, 8);
}
