//! Rotary position embedding on the host.

use crate::Error;
use crate::error::expect_len;

/// The turning rates of one model, in radians per position; made once when it is loaded.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    freqs: Vec<f64>,
}

impl Rope {
    /// Rates for the first `dims` elements of each head.
    ///
    /// `base` is the model's `rope.freq_base`; `linear` divides every position (1 for none); `factors` divides each
    /// rate on its own (the tensor `rope_freqs.weight` of Llama 3.1 and later, `dims / 2` long).
    ///
    /// # Errors
    /// [`Error::Dimension`] if `dims` is odd, [`Error::Shape`] if `factors` has another length.
    pub fn new(dims: usize, base: f32, linear: f32, factors: Option<&[f32]>) -> Result<Self, Error> {
        if !dims.is_multiple_of(2) {
            return Err(Error::Dimension { what: "the rotated dimension", must: "even", got: dims });
        }
        if let Some(factors) = factors {
            expect_len("rope_freqs", factors.len(), dims / 2)?;
        }
        let freqs = (0..dims / 2)
            .map(|i| {
                let factor = factors.map_or(1.0, |f| f64::from(f[i]));
                f64::from(base).powf(-((2 * i) as f64) / dims as f64) / (factor * f64::from(linear))
            })
            .collect();
        Ok(Self { freqs })
    }

    /// How many elements of each head are rotated.
    #[must_use]
    pub fn dims(&self) -> usize {
        self.freqs.len() * 2
    }

    /// Writes cosine and sine for each position, `dims()` numbers a position: cos, sin, cos, sin, …
    ///
    /// # Errors
    /// [`Error::Shape`] if `out` is not `count` x `dims()` long.
    pub fn angles(&self, first: usize, count: usize, out: &mut [f32]) -> Result<(), Error> {
        expect_len("rope angles", out.len(), count * self.dims())?;
        if self.freqs.is_empty() {
            return Ok(());
        }
        for (i, row) in out.chunks_exact_mut(self.dims()).enumerate() {
            let position = (first + i) as f64;
            for (pair, freq) in row.as_chunks_mut::<2>().0.iter_mut().zip(&self.freqs) {
                let (sin, cos) = (position * freq).sin_cos();
                *pair = [cos as f32, sin as f32];
            }
        }
        Ok(())
    }

    /// Writes cosine and sine for a turn by `delta` positions, forward or back, as [`Rope::angles`] does for a position:
    /// what was rotated to position `p` is at `p + delta` after it.
    ///
    /// # Errors
    /// [`Error::Shape`] if `out` is not `dims()` long.
    pub fn turn(&self, delta: i32, out: &mut [f32]) -> Result<(), Error> {
        expect_len("rope angles", out.len(), self.dims())?;
        for (pair, freq) in out.as_chunks_mut::<2>().0.iter_mut().zip(&self.freqs) {
            let (sin, cos) = (f64::from(delta) * freq).sin_cos();
            *pair = [cos as f32, sin as f32];
        }
        Ok(())
    }
}

/// Rotates the first `dims` elements of every head in place. `x` is tokens x heads x `head_dim`; `angles` is
/// tokens x `dims`, from [`Rope::angles`].
///
/// # Errors
/// [`Error::Shape`] if the lengths do not fit, [`Error::Dimension`] if `dims` exceeds `head_dim`.
pub fn rotate(
    x: &mut [f32],
    n_heads: usize,
    head_dim: usize,
    dims: usize,
    angles: &[f32],
) -> Result<(), Error> {
    if dims > head_dim {
        return Err(Error::Dimension {
            what: "the rotated dimension",
            must: "at most the head dimension",
            got: dims,
        });
    }
    if dims == 0 || n_heads == 0 {
        return Ok(());
    }
    expect_len("rope angles", angles.len(), angles.len() / dims * dims)?;
    expect_len("rope input", x.len(), angles.len() / dims * n_heads * head_dim)?;
    for (token, angles) in x.chunks_exact_mut(n_heads * head_dim).zip(angles.chunks_exact(dims)) {
        rotate_token(token, head_dim, angles);
    }
    Ok(())
}

/// Rotates the first elements of every head of one token, as many as there are `angles`, which are at most `head_dim`.
#[inline]
pub(crate) fn rotate_token(token: &mut [f32], head_dim: usize, angles: &[f32]) {
    for head in token.chunks_exact_mut(head_dim) {
        for (pair, turn) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles.as_chunks::<2>().0) {
            let ([a, b], [cos, sin]) = (*pair, *turn);
            *pair = [a * cos - b * sin, a * sin + b * cos];
        }
    }
}
