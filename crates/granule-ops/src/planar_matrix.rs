//! A weight matrix on a device: its type, its shape, where its planes lie and where its bytes are.

use granule_device::DeviceSlice;
use granule_quant::{DType, WeightPlanes};

use crate::Error;
use crate::error::expect_len;
use crate::launch::{check_kind, check_multiple};

/// What kernels want the address of a matrix in planes to be a multiple of, in bytes.
pub(crate) const ALIGN: usize = 256;

/// A weight matrix of `rows` x `cols` in memory that kernels can reach, in the planes of [`WeightPlanes`], as
/// [`pack_weights`](crate::pack_weights) makes them.
#[derive(Clone, Copy, Debug)]
pub struct PlanarMatrix<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    planes: WeightPlanes,
    data: DeviceSlice<'a>,
}

impl<'a> PlanarMatrix<'a> {
    /// Bytes of `rows` x `cols` elements.
    ///
    /// # Errors
    /// [`Error::Quant`] where a row is no whole number of blocks, or all are more bytes than can be counted.
    pub fn bytes(dtype: DType, rows: usize, cols: usize) -> Result<usize, Error> {
        Ok(WeightPlanes::of(dtype, rows, cols)?.bytes)
    }

    /// A matrix over `data`, [`PlanarMatrix::bytes`] of a CUDA device's memory at a multiple of 256 bytes.
    ///
    /// # Errors
    /// [`Error::Quant`] as [`PlanarMatrix::bytes`], [`Error::Shape`] where `data` has another length, [`Error::NotOnDevice`],
    /// [`Error::Alignment`].
    pub fn new(dtype: DType, rows: usize, cols: usize, data: DeviceSlice<'a>) -> Result<Self, Error> {
        let planes = WeightPlanes::of(dtype, rows, cols)?;
        expect_len("matrix bytes", data.len(), planes.bytes)?;
        check_kind("a weight matrix", data.kind())?;
        check_multiple("the address of a weight matrix", data.ptr().addr(), ALIGN)?;
        Ok(Self { dtype, rows, cols, planes, data })
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

    /// Where its planes lie in [`PlanarMatrix::data`].
    #[must_use]
    pub fn planes(&self) -> WeightPlanes {
        self.planes
    }

    /// The bytes.
    #[must_use]
    pub fn data(&self) -> DeviceSlice<'a> {
        self.data
    }
}
