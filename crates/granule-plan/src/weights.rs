//! Weights on a device: where they lie, and what bringing them there takes meanwhile.

use std::ops::Range;

use granule_device::Bytes;
use granule_ops::activate::PART_ALIGN;
use granule_quant::WeightPlanes;

use crate::{Error, MatrixShape};

/// Places for a model's weights in one range of a device's memory, each from a multiple of 256 bytes: matrices in planes, vectors
/// in f32. Who loads a model takes its places here, and who plans does the same.
///
/// ```
/// use granule_plan::{MatrixShape, Places};
/// use granule_quant::DType;
///
/// let mut places = Places::default();
/// let norm = places.vector(100)?;
/// let matrix = places.matrix(&MatrixShape { dtype: DType::F16, rows: 2, cols: 64 })?;
/// assert_eq!((norm, matrix.start), (0..400, 512));
/// # Ok::<(), granule_plan::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    end: usize,
}

impl Places {
    /// The place of a matrix, in bytes from the start.
    ///
    /// # Errors
    /// [`Error::Ops`] where its rows are no whole number of blocks; [`Error::TooLarge`].
    pub fn matrix(&mut self, matrix: &MatrixShape) -> Result<Range<usize>, Error> {
        self.take(WeightPlanes::of(matrix.dtype, matrix.rows, matrix.cols)?.bytes)
    }

    /// The place of `len` numbers.
    ///
    /// # Errors
    /// [`Error::TooLarge`].
    pub fn vector(&mut self, len: usize) -> Result<Range<usize>, Error> {
        self.take(len.checked_mul(size_of::<f32>()).ok_or(TOO_LARGE)?)
    }

    fn take(&mut self, bytes: usize) -> Result<Range<usize>, Error> {
        let at = self.end;
        let end = at.checked_add(bytes).ok_or(TOO_LARGE)?;
        self.end = end.checked_next_multiple_of(PART_ALIGN).ok_or(TOO_LARGE)?;
        Ok(at..end)
    }

    /// All of it, before it is rounded up to granules.
    #[must_use]
    pub fn bytes(&self) -> Bytes {
        Bytes::from_usize(self.end)
    }
}

const TOO_LARGE: Error = Error::TooLarge { what: "the weights" };

/// Bytes of a piece of weights on its way to a device, at most, unless one row is larger: some milliseconds of copying.
const PIECE: usize = 16 << 20;

/// Pieces that are under way: one being filled, one being copied, one being packed. Each is there twice, in the host's pinned memory
/// and in the device's.
pub const LOADING_PIECES: usize = 3;

/// Bytes of each piece for these matrices. The device's side of all pieces is what loading needs there beside the weights.
///
/// # Errors
/// [`Error::Ops`] where rows are no whole number of blocks; [`Error::TooLarge`].
pub fn loading_piece(matrices: impl Iterator<Item = MatrixShape>) -> Result<Bytes, Error> {
    let mut piece = 1;
    for MatrixShape { dtype, rows, cols } in matrices {
        let row = dtype.row_bytes(cols)?;
        piece = piece.max(row.checked_mul(rows).ok_or(TOO_LARGE)?.min(PIECE.max(row)));
    }
    Ok(Bytes::from_usize(piece.checked_next_multiple_of(PART_ALIGN).ok_or(TOO_LARGE)?))
}
