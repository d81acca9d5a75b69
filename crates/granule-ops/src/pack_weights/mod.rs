//! Laying weights out for a device's products: rows in the ggml layout into the planes of a
//! [`WeightPlanes`], some rows at a time, as they come from a file.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

pub use cpu::cpu;
#[cfg(feature = "cuda")]
pub use cuda::cuda;

use std::ops::Range;

use granule_quant::{DType, WeightPlanes};

use crate::Error;
use crate::error::expect_len;

/// Some rows of a matrix of weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightRows {
    /// The type of the elements.
    pub dtype: DType,
    /// Rows of the whole matrix.
    pub rows: usize,
    /// Its columns.
    pub cols: usize,
    /// Which rows.
    pub piece: Range<usize>,
}

impl WeightRows {
    /// All rows.
    #[must_use]
    pub fn all(dtype: DType, rows: usize, cols: usize) -> WeightRows {
        WeightRows { dtype, rows, cols, piece: 0..rows }
    }

    /// Where the planes of the whole matrix lie, where `from` bytes are the rows and `to` bytes the matrix.
    fn check(&self, from: usize, to: usize) -> Result<WeightPlanes, Error> {
        let planes = WeightPlanes::of(self.dtype, self.rows, self.cols)?;
        let Range { start, end } = self.piece;
        if start > end || end > self.rows {
            return Err(Error::Shape { what: "rows to pack", got: end.max(start), want: self.rows });
        }
        // No more than the planes have.
        let bytes = self.dtype.row_bytes(self.cols)? * (end - start);
        expect_len("bytes of the rows to pack", from, bytes)?;
        expect_len("matrix bytes", to, planes.bytes)?;
        Ok(planes)
    }
}
