//! Products of `F16` and `BF16` weights with several tokens by the processor's dot products of bf16.
//!
//! They take half the time of sums in f32. Activations are rounded to bf16, weights of `F16` too, as the field's fastest engines
//! do: models are trained in that type.

use crate::error::check_len;
use crate::{DType, Error, Isa, Tile};

/// What rows have to be a multiple of.
const STEP: usize = 32;

/// Rows of activations in bf16, dense.
#[derive(Clone, Copy, Debug)]
pub struct Bf16Matrix<'a> {
    bits: &'a [u16],
    rows: usize,
    k: usize,
}

impl<'a> Bf16Matrix<'a> {
    /// `rows` rows of `k` numbers, the upper halves of f32.
    ///
    /// # Errors
    /// [`Error::Length`] where `bits` has another length, [`Error::TooLarge`].
    pub fn new(bits: &'a [u16], rows: usize, k: usize) -> Result<Self, Error> {
        let n = rows.checked_mul(k).ok_or(Error::TooLarge { dtype: DType::BF16, len: k })?;
        check_len("bits", n, bits.len())?;
        Ok(Self { bits, rows, k })
    }

    /// Rows (tokens, columns of the product).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements in a row.
    pub fn k(&self) -> usize {
        self.k
    }

    pub(crate) fn bits(&self) -> &'a [u16] {
        self.bits
    }
}

impl Isa {
    /// Whether [`gemm_bf16`](Self::gemm_bf16) takes rows of `k` elements of this type: the CPU has dot products of bf16, and `k` is
    /// a multiple of 32.
    pub fn has_bf16_products(self, dtype: DType, k: usize) -> bool {
        matches!(dtype, DType::F16 | DType::BF16) && k.is_multiple_of(STEP) && self.has_bf16()
    }

    /// Rounds to bf16, to nearest even. Subnormal numbers may become zeros.
    ///
    /// # Errors
    /// [`Error::Length`] where lengths disagree, [`Error::NotFinite`] for NaN and infinity. The output is then as it was.
    pub fn round_bf16(self, x: &[f32], bits: &mut [u16]) -> Result<(), Error> {
        check_len("bits", x.len(), bits.len())?;
        self.check_finite(x)?;
        self.encode(DType::BF16, x, bytemuck::cast_slice_mut(bits))
    }

    /// Product of `F16` or `BF16` weights with activations in bf16: row `r` of `w` times row `c` of `x` goes to (`r`, `c`) of
    /// `out`.
    ///
    /// `w` has `out.rows()` dense rows of `k`, at any address. Weights are rounded to bf16, subnormal ones count as zeros; the
    /// products are summed up in f32.
    ///
    /// # Errors
    /// [`Error::WrongProduct`] where [`has_bf16_products`](Self::has_bf16_products) says no, [`Error::TooLarge`] and
    /// [`Error::Length`] where lengths disagree. `out` is then as it was.
    pub fn gemm_bf16(
        self,
        dtype: DType,
        w: &[u8],
        k: usize,
        x: &Bf16Matrix<'_>,
        mut out: Tile<'_>,
    ) -> Result<(), Error> {
        if !self.has_bf16_products(dtype, k) {
            let hint =
                "products in bf16 are for F16 and BF16, rows of a multiple of 32, and CPUs that have them";
            return Err(Error::WrongProduct { dtype, hint });
        }
        crate::gemm::check_weights(dtype, w, k, out.rows())?;
        check_len("k of x", k, x.k())?;
        check_len("x", out.cols(), x.rows())?;
        if !crate::gemm::clear_if_empty(&mut out, k) {
            self.bf16_products(dtype, w, x, &mut out);
        }
        Ok(())
    }
}
