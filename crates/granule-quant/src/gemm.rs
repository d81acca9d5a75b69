//! Matrix products: rows of weights against rows of activations, on one thread.
//!
//! A caller with several threads gives each of them some of the weight rows and the [`Tile`] of the output that they
//! fill.

use std::marker::PhantomData;

use crate::error::check_len;
use crate::isa::by_isa;
use crate::{DType, Error, Isa, QuantizedMatrix};

/// Where a product goes: element (row `r`, column `c`) at `c * stride + r`, so that a column (all the outputs of one
/// token) is contiguous.
///
/// Tiles of one output that share no row may be filled by different threads at once.
#[derive(Debug)]
pub struct Tile<'a> {
    data: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    output: PhantomData<&'a mut [f32]>,
}

// SAFETY: a tile is an exclusive borrow of the elements that it addresses, and f32 is Send.
unsafe impl Send for Tile<'_> {}

impl<'a> Tile<'a> {
    /// The first `rows` rows of an output of `cols` columns, `stride` elements from one column to the next.
    ///
    /// # Errors
    /// [`Error::Length`] where `stride` is below `rows` (with more than one column) or `out` ends before the last
    /// element does.
    pub fn new(out: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Result<Self, Error> {
        if cols > 1 && stride < rows {
            return Err(Error::Length { what: "out_stride", expected: rows, got: stride });
        }
        let end = match (rows, cols.checked_sub(1)) {
            (0, _) | (_, None) => Some(0),
            (_, Some(before)) => before.checked_mul(stride).and_then(|start| start.checked_add(rows)),
        };
        match end {
            Some(end) if end <= out.len() => {
                Ok(Self { data: out.as_mut_ptr(), rows, cols, stride, output: PhantomData })
            }
            _ => Err(Error::Length { what: "out", expected: end.unwrap_or(usize::MAX), got: out.len() }),
        }
    }

    /// The tile that starts at `data`.
    ///
    /// # Safety
    /// For as long as `'a`:
    /// - `data + c * stride + r` is valid for reads and writes for every `r < rows`, `c < cols`;
    /// - nothing else reads or writes these elements;
    /// - `stride >= rows`, or `cols <= 1`.
    pub unsafe fn from_raw_parts(data: *mut f32, rows: usize, cols: usize, stride: usize) -> Self {
        Self { data, rows, cols, stride, output: PhantomData }
    }

    /// Weight rows: outputs of one token.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Activation rows: tokens.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Cuts the tile in two: the first `at` rows (all, where there are fewer) and the rest.
    pub fn split_rows(self, at: usize) -> (Tile<'a>, Tile<'a>) {
        let at = at.min(self.rows);
        let rest = Tile {
            // With no column or no row the address is never used, and it may lie outside the output.
            data: self.data.wrapping_add(at),
            rows: self.rows - at,
            ..self
        };
        (Tile { rows: at, ..self }, rest)
    }

    /// The rows of column `c`; an empty slice where there is no such column.
    pub(crate) fn column(&mut self, c: usize) -> &mut [f32] {
        if c >= self.cols {
            return &mut [];
        }
        // SAFETY: the tile owns every element (r < rows, c < cols), as its constructors established, and the slice
        // borrows the tile.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(c * self.stride), self.rows) }
    }
}

/// Product of quantized weights with quantized activations: `out[c * out_stride + r]` = row `r` of `w` times row `c`
/// of `x`.
///
/// `w` is rows x k of any type with blocks (dense rows, at any address), `x` is c x k. Each element is what
/// [`dot_q8`](crate::dot_q8) gives, within the bound stated there; which order it is summed in depends on the path and on c.
///
/// # Errors
/// [`Error::WrongProduct`] for a float type, [`Error::RowLength`], [`Error::TooLarge`] and [`Error::Length`] where lengths
/// disagree. `out` is then as it was.
pub fn gemm_q8(
    dtype: DType,
    w: &[u8],
    rows: usize,
    k: usize,
    x: &QuantizedMatrix<'_>,
    out: &mut [f32],
    out_stride: usize,
) -> Result<(), Error> {
    Isa::best().gemm_q8(dtype, w, k, x, Tile::new(out, rows, x.rows(), out_stride)?)
}

/// Product of float weights with f32 activations: `out[c * out_stride + r]` = row `r` of `w` times row `c` of `x`.
///
/// `w` is rows x k of `F32`, `F16` or `BF16` (dense rows, at any address), `x` is c x k, dense; any k. Each element is
/// what [`dot_f32`](crate::dot_f32) gives, within the bound stated there.
///
/// # Errors
/// [`Error::WrongProduct`] for a quantized type, [`Error::TooLarge`] and [`Error::Length`] where lengths disagree. `out`
/// is then as it was.
#[expect(
    clippy::too_many_arguments,
    reason = "a matrix product has two matrices and a result, with their shapes"
)]
pub fn gemm_f32(
    dtype: DType,
    w: &[u8],
    rows: usize,
    k: usize,
    x: &[f32],
    c: usize,
    out: &mut [f32],
    out_stride: usize,
) -> Result<(), Error> {
    Isa::best().gemm_f32(dtype, w, k, x, Tile::new(out, rows, c, out_stride)?)
}

impl Isa {
    /// [`gemm_q8`] by this path, into a tile: `w` has `out.rows()` rows of `k`, `x` has `out.cols()` rows of `k`.
    ///
    /// # Errors
    /// As [`gemm_q8`].
    pub fn gemm_q8(
        self,
        dtype: DType,
        w: &[u8],
        k: usize,
        x: &QuantizedMatrix<'_>,
        mut out: Tile<'_>,
    ) -> Result<(), Error> {
        if !dtype.is_quantized() {
            return Err(Error::WrongProduct { dtype, hint: "float weights go to gemm_f32" });
        }
        check_weights(dtype, w, k, out.rows())?;
        check_len("k of x", k, x.k())?;
        check_len("x", out.cols(), x.rows())?;
        if !clear_if_empty(&mut out, k) {
            by_isa!(self, gemm::gemm_q8(dtype, w, x, &mut out));
        }
        Ok(())
    }

    /// [`gemm_f32`] by this path, into a tile: `w` has `out.rows()` rows of `k`, `x` has `out.cols()` rows of `k`.
    ///
    /// # Errors
    /// As [`gemm_f32`].
    pub fn gemm_f32(
        self,
        dtype: DType,
        w: &[u8],
        k: usize,
        x: &[f32],
        mut out: Tile<'_>,
    ) -> Result<(), Error> {
        if dtype.is_quantized() {
            return Err(Error::WrongProduct { dtype, hint: "quantized weights go to gemm_q8" });
        }
        check_weights(dtype, w, k, out.rows())?;
        let n = out.cols().checked_mul(k).ok_or(Error::TooLarge { dtype: DType::F32, len: k })?;
        check_len("x", n, x.len())?;
        if !clear_if_empty(&mut out, k) {
            by_isa!(self, gemm::gemm_f32(dtype, w, x, &mut out));
        }
        Ok(())
    }
}

pub(crate) fn check_weights(dtype: DType, w: &[u8], k: usize, rows: usize) -> Result<(), Error> {
    let bytes = dtype.row_bytes(k)?.checked_mul(rows).ok_or(Error::TooLarge { dtype, len: k })?;
    check_len("w", bytes, w.len())
}

/// Settles a product with an extent of zero (a sum of no terms is 0) and says whether it was one.
pub(crate) fn clear_if_empty(out: &mut Tile<'_>, k: usize) -> bool {
    if k == 0 {
        for c in 0..out.cols() {
            out.column(c).fill(0.0);
        }
    }
    k == 0 || out.rows() == 0 || out.cols() == 0
}
