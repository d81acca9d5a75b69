//! Products of many tokens by NVIDIA's cuBLAS: weights in 16 bits, some rows at a time, then the library.

use std::ops::Range;

use granule_device::{Blas, ComputeCapability, DeviceSlice, DeviceSliceMut, Gemm, GemmType, Stream};
use granule_quant::DType;

use super::cuda::{Product, by_type};
use crate::activate::{CudaActivations, Form};
use crate::launch::{check_kind, check_multiple};
use crate::unpack_weights::Dense;
use crate::{Error, Kernels, PlanarMatrix, scale_rows, unpack_weights};

/// What the parts of the scratch begin at a multiple of, in bytes.
const ALIGN: usize = 256;
/// Rows of a piece are a multiple of this, but for the last one of a matrix.
const PIECE_ROWS: usize = 128;
/// How many bytes a piece's weights, and its sums, have at most, unless that is less than [`PIECE_ROWS`] rows: as much as stays in the
/// second-level cache of large devices between the kernel that writes and the library that reads.
const PIECE_BYTES: usize = 32 << 20;
/// Bytes of an f32.
const WORD: usize = size_of::<f32>();

/// What a product needs of the scratch for each row of a piece, in bytes.
#[derive(Clone, Copy)]
struct RowBytes {
    /// Its weights in 16 bits, where they are not so already.
    weights: usize,
    /// Its sums, where they are scaled before they are added.
    sums: usize,
}

impl RowBytes {
    fn of(dtype: DType, tokens: usize, cols: usize, adds: bool) -> RowBytes {
        let direct = matches!(dtype, DType::F16 | DType::BF16);
        let scaled = Form::of(dtype, usize::MAX) == Form::F16;
        RowBytes {
            weights: if direct { 0 } else { Dense::of(dtype, cols).row_bytes() },
            sums: if scaled && adds { tokens.saturating_mul(WORD) } else { 0 },
        }
    }

    /// Bytes of a piece of so many rows.
    fn piece(self, rows: usize) -> usize {
        let [weights, sums] = [self.weights, self.sums].map(|bytes| padded(rows.saturating_mul(bytes)));
        weights.saturating_add(sums)
    }

    /// The rows of a piece of a matrix of `rows`, as many as `bytes` have room for, if they have for any.
    fn rows_in(self, bytes: usize, rows: usize) -> Option<usize> {
        if self.piece(rows) <= bytes {
            return Some(rows);
        }
        // The padding of the two parts is at most that.
        let each = self.weights.saturating_add(self.sums);
        let fit = bytes.saturating_sub(2 * (ALIGN - 1)) / each / PIECE_ROWS * PIECE_ROWS;
        (fit > 0).then_some(fit)
    }

    /// The rows of a piece as they should be.
    fn best(self, rows: usize) -> usize {
        match PIECE_BYTES.checked_div(self.weights.max(self.sums)) {
            Some(fit) => (fit / PIECE_ROWS * PIECE_ROWS).clamp(PIECE_ROWS, rows.max(PIECE_ROWS)).min(rows),
            None => rows,
        }
    }
}

fn padded(bytes: usize) -> usize {
    bytes.checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX)
}

/// Bytes of scratch for [`cuda_blas`] on a device of this compute capability: `tokens` rows of `cols` activations with products of
/// type, rows, and whether they are added, one after the other. Bounded, however many rows there are: the library's workspace, up to
/// 32 MiB of weights and as much of sums (or 128 rows of each, where that is more). Counts only: no device is asked.
#[must_use]
pub fn blas_scratch_bytes(
    capability: ComputeCapability,
    tokens: usize,
    cols: usize,
    products: impl IntoIterator<Item = (DType, usize, bool)>,
) -> usize {
    let piece = |(dtype, rows, adds)| {
        let of_row = RowBytes::of(dtype, tokens, cols, adds);
        // With the slack that finding it out again from the bytes takes.
        of_row.piece(of_row.best(rows)).saturating_add(2 * ALIGN)
    };
    workspace_bytes(capability).saturating_add(products.into_iter().map(piece).max().unwrap_or(0))
}

/// The library's part of the scratch.
fn workspace_bytes(capability: ComputeCapability) -> usize {
    Blas::workspace(capability).to_usize().unwrap_or(usize::MAX)
}

/// As [`product::cuda`](super::cuda()) of activations of many tokens ([`Form::F16`], [`Form::Bf16`]), but by cuBLAS: weights that are
/// no 16-bit floats are written into `scratch` as such, some rows at a time (quantized ones as f16, `F32` as two terms of bf16),
/// and multiplied there. Slower or faster than this project's own kernels: nobody has measured it; nothing of it has run on a
/// GPU.
///
/// `scratch` has [`blas_scratch_bytes`] at a multiple of 256 bytes; with less, down to 128 rows of each product, pieces are smaller.
/// Products of one stream may share it.
///
/// Results are within the bound that [`product::cuda`](super::cuda()) states, in which a quantized weight is off by `2^-11 |w| + 2^-25`
/// alone. How the library adds up is its own affair: the last bits may differ between devices, versions, shapes and sizes of the
/// scratch.
///
/// # Errors
/// As of [`product::cuda`](super::cuda()); [`Error::Form`] for activations of few tokens, [`Error::Shape`] for too little scratch.
/// All is checked before anything is launched; an error of the driver or the library may come when some products have been,
/// and leave others half done.
///
/// # Safety
/// - As of [`product::cuda`](super::cuda()), for `scratch` too, which nothing else touches.
pub unsafe fn cuda_blas(
    kernels: &Kernels,
    blas: &Blas,
    stream: &Stream,
    x: &CudaActivations<'_>,
    products: &mut [Product<'_>],
    mut scratch: DeviceSliceMut<'_>,
) -> Result<(), Error> {
    crate::launch::check_stream(kernels, stream)?;
    if !blas.device().is_same(kernels.device()) {
        return Err(Error::OtherDevice { what: "the handle of cuBLAS" });
    }
    for Product { weight, .. } in &*products {
        if Form::of(weight.dtype(), usize::MAX) != x.form() {
            return Err(Error::Form { dtype: weight.dtype(), form: x.form() });
        }
    }
    by_type(x, products)?;
    check_kind("scratch", scratch.kind())?;
    check_multiple("the address of scratch", scratch.ptr().addr(), ALIGN)?;
    let workspace = workspace_bytes(kernels.compute_capability());
    let room = scratch.len().saturating_sub(workspace);
    let pieces = products.iter().map(|Product { weight, adds, .. }| {
        let of_row = RowBytes::of(weight.dtype(), x.rows(), x.cols(), *adds);
        let least = of_row.piece(weight.rows().min(PIECE_ROWS)).saturating_add(2 * ALIGN);
        let want = workspace.saturating_add(least);
        let fit = of_row.rows_in(room, weight.rows()).filter(|_| scratch.len() >= workspace);
        let rows = fit.ok_or(Error::Shape { what: "bytes of scratch", got: scratch.len(), want })?;
        Ok(rows.min(of_row.best(weight.rows())))
    });
    let pieces = pieces.collect::<Result<smallvec::SmallVec<[usize; 4]>, Error>>()?;
    if x.rows() == 0 {
        return Ok(());
    }
    for (Product { weight, out, adds }, piece) in products.iter_mut().zip(pieces) {
        let one = One { kernels, blas, stream, x, weight, adds: *adds };
        for first in (0..weight.rows()).step_by(piece.max(1)) {
            let rows = first..(first + piece).min(weight.rows());
            // SAFETY: the caller's promise.
            unsafe { one.piece(rows, out.reborrow(), scratch.reborrow(), workspace) }?;
        }
        if x.form() == Form::F16 && !*adds {
            let shape = (weight.rows(), weight.rows());
            // SAFETY: as above.
            unsafe { scale_rows::cuda(kernels, stream, None, one.factors()?, out.reborrow(), shape) }?;
        }
    }
    Ok(())
}

/// One product, checked.
struct One<'a> {
    kernels: &'a Kernels,
    blas: &'a Blas,
    stream: &'a Stream,
    x: &'a CudaActivations<'a>,
    weight: &'a PlanarMatrix<'a>,
    adds: bool,
}

impl One<'_> {
    /// Term `i` of the activations.
    fn term(&self, i: usize) -> Result<DeviceSlice<'_>, Error> {
        let layout = self.x.layout();
        let bytes = self.x.rows() * layout.stride * size_of::<u16>();
        Ok(self.x.data().subslice(layout.parts[i]..layout.parts[i] + bytes)?)
    }

    /// What takes the tokens' factors off, f32.
    fn factors(&self) -> Result<DeviceSlice<'_>, Error> {
        let start = self.x.layout().parts[1];
        Ok(self.x.data().subslice(start..start + self.x.rows() * WORD)?)
    }

    /// The products of some rows of the weights, but for the factors where they are not added: their place is in `out`, which
    /// is all of the result.
    ///
    /// # Safety
    /// - As of [`cuda_blas`].
    unsafe fn piece(
        &self,
        rows: Range<usize>,
        out: DeviceSliceMut<'_>,
        scratch: DeviceSliceMut<'_>,
        workspace: usize,
    ) -> Result<(), Error> {
        let One { kernels, blas, stream, x, weight, adds } = *self;
        let (dtype, cols, tokens) = (weight.dtype(), weight.cols(), x.rows());
        let (mut workspace, rest) = scratch.split_at(workspace)?;
        let of_row = RowBytes::of(dtype, tokens, cols, adds);
        let (weights, sums) = rest.split_at(padded(rows.len() * of_row.weights))?;
        let mut dense = weights.subslice(..rows.len() * of_row.weights)?;
        let all = weight.rows();
        let mut out = out.subslice(rows.start * WORD..((tokens - 1) * all + rows.end) * WORD)?;
        let direct = of_row.weights == 0;
        if !direct {
            // SAFETY: the caller's promise.
            unsafe { unpack_weights::cuda(kernels, stream, weight, rows.clone(), dense.reborrow()) }?;
        }
        // The terms of the weights.
        let Dense { stride, terms } = Dense::of(dtype, cols);
        let whole = if direct {
            let row = weight.planes().low_stride;
            weight.data().subslice(rows.start * row..rows.end * row)?
        } else {
            dense.as_slice()
        };
        let w = |term: usize| {
            let bytes = whole.len() / terms;
            whole.subslice(term * bytes..(term + 1) * bytes)
        };
        let factors = if x.form() == Form::F16 { GemmType::F16 } else { GemmType::Bf16 };
        // The product of both second terms is of order 2^-18 of the whole: within the bound without it.
        let pairs: &[(usize, usize)] = match dtype {
            DType::F32 => &[(0, 0), (1, 0), (0, 1)],
            DType::BF16 => &[(0, 0), (1, 0)],
            _ => &[(0, 0)],
        };
        let scaled = of_row.sums > 0;
        let mut sums = sums.subslice(..rows.len() * of_row.sums)?;
        for (i, &(x_term, w_term)) in pairs.iter().enumerate() {
            let gemm = Gemm {
                factors,
                tokens,
                rows: rows.len(),
                cols,
                x: self.term(x_term)?,
                x_stride: x.layout().stride,
                w: w(w_term)?,
                w_stride: stride,
                out: if scaled { sums.reborrow() } else { out.reborrow() },
                out_stride: if scaled { rows.len() } else { all },
                adds: i > 0 || adds && !scaled,
            };
            // SAFETY: the caller's promise.
            unsafe { blas.gemm(stream, gemm, workspace.reborrow()) }?;
        }
        if scaled {
            let shape = (rows.len(), all);
            // SAFETY: as above.
            unsafe { scale_rows::cuda(kernels, stream, Some(sums.as_slice()), self.factors()?, out, shape) }?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A100: ComputeCapability = ComputeCapability { major: 8, minor: 0 };
    const MIB: usize = 1 << 20;

    #[test]
    fn scratch_is_bounded_and_only_what_is_needed() {
        let bytes = |dtype, tokens, rows, cols, adds| {
            blas_scratch_bytes(A100, tokens, cols, [(dtype, rows, adds)]) - 4 * MIB - 2 * ALIGN
        };
        // The shapes of an 8B model.
        assert_eq!(bytes(DType::Q4_0, 512, 4096, 4096, false), 32 * MIB);
        assert_eq!(bytes(DType::Q4_0, 512, 4096, 4096, true), 40 * MIB);
        assert_eq!(bytes(DType::Q4_K, 512, 128_256, 4096, false), 32 * MIB);
        assert_eq!(bytes(DType::F32, 512, 4096, 4096, true), 32 * MIB);
        assert_eq!(bytes(DType::BF16, 512, 14336, 4096, true), 0);
        assert_eq!(bytes(DType::F16, 512, 14336, 4096, false), 0);
        assert_eq!(bytes(DType::F16, 512, 4096, 4096, true), 8 * MIB);
        // A few rows, and rows of which 128 are more than the bound.
        assert_eq!(bytes(DType::Q8_0, 9, 3, 32, true), 256 + 256);
        assert_eq!(bytes(DType::Q8_0, 9, 4096, MIB, false), 128 * 2 * MIB);
        assert_eq!(blas_scratch_bytes(A100, 512, 4096, []), 4 * MIB);
    }

    #[test]
    fn the_pieces_are_those_that_the_scratch_was_for() {
        for dtype in [DType::Q4_0, DType::F32, DType::F16] {
            for (tokens, rows, cols) in
                [(1, 1, 32), (9, 300, 4096), (4096, 128_256, 4096), (512, 77, 1 << 20)]
            {
                for adds in [false, true] {
                    let of_row = RowBytes::of(dtype, tokens, cols, adds);
                    let room =
                        blas_scratch_bytes(A100, tokens, cols, [(dtype, rows, adds)]) - workspace_bytes(A100);
                    let fit = of_row.rows_in(room, rows).unwrap();
                    assert!(fit >= of_row.best(rows), "{dtype}, {tokens}, {rows}, {cols}: {fit}");
                    assert!(of_row.piece(fit) <= room);
                }
            }
        }
    }
}
