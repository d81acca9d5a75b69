//! `KvFold`: the tables of one layer's keys, or values, and what they do to one head.

use super::hadamard;
use crate::Error;
use crate::error::expect_len;

/// Constants and scales of every channel, in tables of n_kv_heads x head_dim.
///
/// `store` computes `H0 ((x - constant) * scale)`, with the Hadamard matrix `H0` of entries 1 and -1: the factor that makes it
/// orthonormal is in the tables already. `H0 H0 = width`, so `inverse * scale * width = 1` for every channel.
#[derive(Clone, Debug, PartialEq)]
pub struct KvFold {
    n_kv_heads: usize,
    head_dim: usize,
    width: usize,
    constants: Vec<f32>,
    scales: Vec<f32>,
    inverses: Vec<f32>,
}

impl KvFold {
    /// The tables for a layer: what is subtracted from each channel, and what it is multiplied with after that (and before an
    /// orthonormal rotation), both n_kv_heads x head_dim.
    ///
    /// # Errors
    /// [`Error::Dimension`] for a head dimension of 0 or a scale that is not positive, or so large or small that its inverse
    /// is no normal number; [`Error::Shape`] for tables of another length; [`Error::Quant`] for a constant that is not finite.
    pub fn new(
        n_kv_heads: usize,
        head_dim: usize,
        constants: Vec<f32>,
        mut scales: Vec<f32>,
    ) -> Result<Self, Error> {
        if head_dim == 0 {
            return Err(Error::Dimension { what: "a transform's head", must: "1 or more", got: 0 });
        }
        expect_len("a transform's constants", constants.len(), n_kv_heads * head_dim)?;
        expect_len("a transform's scales", scales.len(), n_kv_heads * head_dim)?;
        if let Some(index) = constants.iter().position(|c| !c.is_finite()) {
            return Err(granule_quant::Error::NotFinite { index }.into());
        }
        let width = 1 << head_dim.trailing_zeros();
        let norm = 1.0 / (width as f64).sqrt();
        let mut inverses = Vec::with_capacity(scales.len());
        for (channel, scale) in scales.iter_mut().enumerate() {
            let inverse = (norm / f64::from(*scale)) as f32;
            *scale = (f64::from(*scale) * norm) as f32;
            if !(scale.is_normal() && *scale > 0.0 && inverse.is_normal()) {
                let must = "positive, with an inverse";
                return Err(Error::Dimension {
                    what: "the scale of a transform's channel",
                    must,
                    got: channel,
                });
            }
            inverses.push(inverse);
        }
        Ok(Self { n_kv_heads, head_dim, width, constants, scales, inverses })
    }

    /// Key-value heads of the layer.
    #[must_use]
    pub fn n_kv_heads(&self) -> usize {
        self.n_kv_heads
    }

    /// Elements of a head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Channels that are rotated into one another: the largest power of two that divides the head dimension.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// What is subtracted from each channel, kv heads x head dim.
    #[must_use]
    pub fn constants(&self) -> &[f32] {
        &self.constants
    }

    /// What each channel is multiplied with after that, `1 / sqrt(width)` included; kv heads x head dim.
    #[must_use]
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// What undoes the scales, and the two rotations' factor of `width`; kv heads x head dim.
    #[must_use]
    pub fn inverses(&self) -> &[f32] {
        &self.inverses
    }

    /// Bytes of the tables.
    pub(super) fn bytes(&self) -> usize {
        Self::bytes_of(self.n_kv_heads, self.head_dim)
    }

    /// Bytes of the tables for so many heads of so many channels: here, and in a device's memory.
    #[must_use]
    pub const fn bytes_of(n_kv_heads: usize, head_dim: usize) -> usize {
        3 * size_of::<f32>() * n_kv_heads * head_dim
    }

    /// A head of keys or values into what is stored.
    #[inline]
    pub(super) fn store(&self, head: usize, x: &mut [f32]) {
        let at = head * self.head_dim;
        let tables = self.constants[at..].iter().zip(&self.scales[at..]);
        for (x, (constant, scale)) in x.iter_mut().zip(tables) {
            *x = (*x - constant) * scale;
        }
        hadamard::rotate(x, self.width);
    }

    /// A query into the form in which it meets stored keys; answers its product with the constants.
    #[inline]
    pub(super) fn meet(&self, head: usize, query: &mut [f32]) -> f32 {
        let at = head * self.head_dim..(head + 1) * self.head_dim;
        let sum = dot(query, &self.constants[at.clone()]);
        for (q, inverse) in query.iter_mut().zip(&self.inverses[at]) {
            *q *= inverse;
        }
        hadamard::rotate(query, self.width);
        sum
    }

    /// A mean of stored values into that of the values.
    #[inline]
    pub(super) fn restore(&self, head: usize, out: &mut [f32]) {
        hadamard::rotate(out, self.width);
        let at = head * self.head_dim;
        let tables = self.constants[at..].iter().zip(&self.inverses[at..]);
        for (x, (constant, inverse)) in out.iter_mut().zip(tables) {
            *x = *x * inverse + constant;
        }
    }
}

/// A product in eight sums, so that it does not wait for one addition after the other.
#[inline]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let mut sums = [0f32; 8];
    for (a, b) in a.iter().zip(b) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
