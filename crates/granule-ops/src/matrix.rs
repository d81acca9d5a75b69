//! A weight matrix in place: its type, its shape, how it is laid out and where its bytes are.

use granule_device::DeviceSlice;
use granule_quant::{DType, Packing};

use crate::Error;
use crate::error::expect_len;

/// A weight matrix of `rows` x `cols`: in the ggml layout, row after row, each `dtype.row_bytes(cols)` bytes, at any alignment;
/// or packed for this machine's products.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    packing: Option<Packing>,
    data: DeviceSlice<'a>,
}

impl<'a> Matrix<'a> {
    /// A matrix over `data`, which must hold exactly `rows` x `cols` elements.
    ///
    /// # Errors
    /// [`Error::Quant`] if a row is no whole number of blocks, [`Error::Shape`] if `data` has another length.
    pub fn new(dtype: DType, rows: usize, cols: usize, data: DeviceSlice<'a>) -> Result<Self, Error> {
        let row_bytes = dtype.row_bytes(cols)?;
        let want = row_bytes.checked_mul(rows).ok_or(Error::Shape {
            what: "matrix",
            got: data.len(),
            want: usize::MAX,
        })?;
        expect_len("matrix bytes", data.len(), want)?;
        Ok(Self { dtype, rows, cols, row_bytes, packing: None, data })
    }

    /// A matrix that [`Packing::pack`] made, over `data`, which must hold exactly `rows` x `cols` elements.
    ///
    /// # Errors
    /// [`Error::Quant`] if a row is no whole number of blocks, [`Error::Shape`] if `data` has another length.
    pub fn packed(packing: Packing, rows: usize, cols: usize, data: DeviceSlice<'a>) -> Result<Self, Error> {
        let dtype = packing.dtype();
        expect_len("matrix bytes", data.len(), packing.bytes(rows, cols)?)?;
        Ok(Self { dtype, rows, cols, row_bytes: dtype.row_bytes(cols)?, packing: Some(packing), data })
    }

    /// How it is packed; none where rows lie one after the other.
    #[must_use]
    pub fn packing(&self) -> Option<Packing> {
        self.packing
    }

    /// The type of its elements.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows: the length of the product's result.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: the length of the vector it is multiplied with.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of one row in the ggml layout.
    #[must_use]
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The bytes, if the host can read them.
    ///
    /// # Errors
    /// [`Error::NotOnHost`].
    pub fn host_bytes(&self) -> Result<&'a [u8], Error> {
        self.data.as_host().ok_or(Error::NotOnHost { what: "a weight matrix" })
    }
}
