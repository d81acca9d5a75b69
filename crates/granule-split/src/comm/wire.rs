//! What numbers are while they go from rank to rank.

use half::bf16;

/// The format in which an all-reduce and a reduce-scatter carry numbers between ranks. What is gathered or broadcast always goes as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Wire {
    /// As they are.
    #[default]
    F32,
    /// Half the bytes: every rank's numbers are rounded to bf16 (to nearest, ties to even), added in f32 in the order of the ranks, and of
    /// an all-reduce the sums are rounded once more. The same bits on all ranks and in all runs, as with [`Wire::F32`].
    ///
    /// With `u = 2⁻⁸` and `N` ranks an element is off from the exact sum of the `xᵣ` by at most
    /// `(2u + u² + (N − 1) × 2⁻²³) × Σ|xᵣ| + 2⁻¹³²`, an element of a reduce-scatter by `(u + (N − 1) × 2⁻²³) × Σ|xᵣ| + 2⁻¹³²`, unless it
    /// leaves the range of bf16: then it is infinite. A group of one rank sends nothing, and rounds nothing.
    Bf16,
}

impl Wire {
    /// Bytes of a number.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// The nearest bf16 of each number.
///
/// # Panics
/// None: what is longer than the other is left.
pub(crate) fn narrow(from: &[f32], to: &mut [bf16]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = bf16::from_f32(*from);
    }
}

/// The numbers as they were rounded.
pub(crate) fn widen(from: &[bf16], to: &mut [f32]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = from.to_f32();
    }
}
