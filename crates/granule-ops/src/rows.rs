//! Rows of floats or of blocks in memory: type, shape and layout, as the operations that convert rows are told them.
//!
//! ```text
//! plain    | row 0: as granule_quant::encode writes it |  | row 1 …                blocks, or floats, one behind the other
//!          <----------------- stride ------------------>
//! planar   | row 0:   quants …   pad | scales … pad |     | row 1 …                all quants, then all scales
//!                     ^quants          ^scales
//!          <----------------- stride ------------------>
//! ```

use granule_device::{DeviceSlice, DeviceSliceMut};
use granule_quant::{DType, PlanarBytes, planar_bytes};

use crate::Error;

/// What every plane of a planar row starts at a multiple of, in bytes; what lies between planes belongs to nobody.
pub const PLANE_ALIGN: usize = 16;

/// Where the planes of a planar row are, in bytes from the row's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planes {
    /// Start of the quants.
    pub quants: usize,
    /// Start of the scales, behind the quants.
    pub scales: usize,
}

/// Type, number, length and place of rows: element `j` of row `i` is found from byte `i * stride` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowShape {
    dtype: DType,
    rows: usize,
    cols: usize,
    stride: usize,
    planes: Option<Planes>,
    /// Bytes from the start of a row to the end of what it holds.
    row_bytes: usize,
    /// Bytes from the start of the first row to the end of the last.
    bytes: usize,
}

impl RowShape {
    /// `rows` plain rows of `cols` elements, one right behind the other.
    ///
    /// ```
    /// use granule_ops::RowShape;
    /// use granule_quant::DType;
    ///
    /// assert_eq!(RowShape::dense(DType::Q8_0, 10, 4096)?.bytes(), 10 * 4352);
    /// assert!(RowShape::dense(DType::Q8_0, 10, 100).is_err()); // no whole number of blocks
    /// # Ok::<(), granule_ops::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Quant`] where `cols` is no whole number of blocks or the bytes overflow.
    pub fn dense(dtype: DType, rows: usize, cols: usize) -> Result<RowShape, Error> {
        RowShape::strided(dtype, rows, cols, dtype.row_bytes(cols)?)
    }

    /// `rows` plain rows of `cols` elements that start `stride` bytes apart.
    ///
    /// # Errors
    /// As [`RowShape::dense`]; [`Error::Dimension`] where rows would overlap.
    pub fn strided(dtype: DType, rows: usize, cols: usize, stride: usize) -> Result<RowShape, Error> {
        let row_bytes = dtype.row_bytes(cols)?;
        RowShape::new(dtype, rows, cols, stride, None, row_bytes)
    }

    /// `rows` planar rows of `cols` elements: quants, scales, each padded to [`PLANE_ALIGN`], one row right behind the
    /// other.
    ///
    /// # Errors
    /// As [`RowShape::planar_at`].
    pub fn planar(dtype: DType, rows: usize, cols: usize) -> Result<RowShape, Error> {
        let too_large = || granule_quant::Error::TooLarge { dtype, len: cols };
        let bytes = planes_of(dtype, cols)?;
        let scales = bytes.quants.checked_next_multiple_of(PLANE_ALIGN).ok_or_else(too_large)?;
        let end = scales.checked_add(bytes.scales).and_then(|end| end.checked_next_multiple_of(PLANE_ALIGN));
        let stride = end.ok_or_else(too_large)?;
        RowShape::planar_at(dtype, rows, cols, stride, Planes { quants: 0, scales })
    }

    /// `rows` planar rows of `cols` elements that start `stride` bytes apart, with planes where `planes` says.
    ///
    /// # Errors
    /// [`Error::Type`] for a type without planes; [`Error::Dimension`] where planes or rows overlap; [`Error::Quant`] as
    /// [`RowShape::dense`].
    pub fn planar_at(
        dtype: DType,
        rows: usize,
        cols: usize,
        stride: usize,
        planes: Planes,
    ) -> Result<RowShape, Error> {
        let bytes = planes_of(dtype, cols)?;
        let too_large = granule_quant::Error::TooLarge { dtype, len: cols };
        let quants_end = planes.quants.checked_add(bytes.quants).ok_or(too_large.clone())?;
        let end = planes.scales.checked_add(bytes.scales).ok_or(too_large)?;
        if planes.scales < quants_end {
            let what = "the start of a row's scales";
            return Err(Error::Dimension { what, must: "behind the row's quants", got: planes.scales });
        }
        RowShape::new(dtype, rows, cols, stride, Some(planes), end)
    }

    fn new(
        dtype: DType,
        rows: usize,
        cols: usize,
        stride: usize,
        planes: Option<Planes>,
        row_bytes: usize,
    ) -> Result<RowShape, Error> {
        if stride < row_bytes {
            let what = "the stride of rows";
            return Err(Error::Dimension { what, must: "at least a row's bytes", got: stride });
        }
        let last = rows.saturating_sub(1).checked_mul(stride);
        let end = last.and_then(|last| last.checked_add(row_bytes));
        let bytes = end.ok_or(granule_quant::Error::TooLarge { dtype, len: rows.saturating_mul(cols) })?;
        let bytes = if rows == 0 { 0 } else { bytes };
        Ok(RowShape { dtype, rows, cols, stride, planes, row_bytes, bytes })
    }

    /// The type of the elements.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// How many rows.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements in a row.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes from the start of a row to that of the next.
    #[must_use]
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Where the planes are; `None` for plain rows.
    #[must_use]
    pub fn planes(&self) -> Option<Planes> {
        self.planes
    }

    /// Bytes from the start of the first row to the end of the last.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The ranges of one row's quants and scales, from the row's start; of plain rows the whole row and nothing.
    fn plane_ranges(&self) -> [std::ops::Range<usize>; 2] {
        match self.planes {
            None => [0..self.row_bytes, self.row_bytes..self.row_bytes],
            Some(Planes { quants, scales }) => {
                let scale_bytes = self.row_bytes - scales;
                // Each f16 scale stands for one block.
                let quant_bytes = scale_bytes / 2 * (self.dtype.block_bytes() - 2);
                [quants..quants + quant_bytes, scales..self.row_bytes]
            }
        }
    }
}

/// Bytes of the planes of a row.
fn planes_of(dtype: DType, cols: usize) -> Result<PlanarBytes, Error> {
    if !is_cached(dtype) {
        return Err(Error::Type { what: "planar rows", must: "q8_0 or q4_0", got: dtype });
    }
    Ok(planar_bytes(dtype, cols)?)
}

fn check(shape: &RowShape, len: usize) -> Result<(), Error> {
    if len < shape.bytes {
        return Err(Error::Shape { what: "bytes of rows", got: len, want: shape.bytes });
    }
    Ok(())
}

/// Rows to read.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    data: DeviceSlice<'a>,
    shape: RowShape,
}

impl<'a> Rows<'a> {
    /// Rows that begin at the first byte of `data`; what is behind the last row is not looked at.
    ///
    /// # Errors
    /// [`Error::Shape`] where `data` is too short.
    pub fn new(data: DeviceSlice<'a>, shape: RowShape) -> Result<Rows<'a>, Error> {
        check(&shape, data.len())?;
        Ok(Rows { data: data.subslice(..shape.bytes)?, shape })
    }

    /// What they are.
    #[must_use]
    pub fn shape(&self) -> &RowShape {
        &self.shape
    }

    /// The memory, from the first row's first byte to the last row's last.
    #[must_use]
    pub fn data(&self) -> DeviceSlice<'a> {
        self.data
    }

    /// The memory on the host.
    pub(crate) fn host(&self) -> Result<HostRows<'a>, Error> {
        let bytes = self.data.as_host().ok_or(Error::NotOnHost { what: "the rows to read" })?;
        Ok(HostRows { bytes, shape: self.shape })
    }
}

/// Rows to write.
#[derive(Debug)]
pub struct RowsMut<'a> {
    data: DeviceSliceMut<'a>,
    shape: RowShape,
}

impl<'a> RowsMut<'a> {
    /// Rows that begin at the first byte of `data`; what is behind the last row is not touched.
    ///
    /// # Errors
    /// [`Error::Shape`] where `data` is too short.
    pub fn new(data: DeviceSliceMut<'a>, shape: RowShape) -> Result<RowsMut<'a>, Error> {
        check(&shape, data.len())?;
        Ok(RowsMut { data: data.subslice(..shape.bytes)?, shape })
    }

    /// What they are.
    #[must_use]
    pub fn shape(&self) -> &RowShape {
        &self.shape
    }

    /// The memory, from the first row's first byte to the last row's last.
    #[must_use]
    pub fn data(&mut self) -> DeviceSliceMut<'_> {
        self.data.reborrow()
    }

    /// The memory on the host.
    pub(crate) fn host(&mut self) -> Result<HostRowsMut<'_>, Error> {
        let shape = self.shape;
        let bytes = self.data.as_host_mut().ok_or(Error::NotOnHost { what: "the rows to write" })?;
        Ok(HostRowsMut { bytes, shape })
    }
}

/// Rows that this process reads.
pub(crate) struct HostRows<'a> {
    bytes: &'a [u8],
    shape: RowShape,
}

impl HostRows<'_> {
    /// The quants and the scales of row `i`; of plain rows all of it and nothing.
    pub(crate) fn row(&self, i: usize) -> [&[u8]; 2] {
        let row = &self.bytes[i * self.shape.stride..];
        self.shape.plane_ranges().map(|range| &row[range])
    }
}

/// Rows that this process writes.
pub(crate) struct HostRowsMut<'a> {
    bytes: &'a mut [u8],
    shape: RowShape,
}

impl HostRowsMut<'_> {
    /// The quants and the scales of row `i`; of plain rows all of it and nothing.
    pub(crate) fn row(&mut self, i: usize) -> [&mut [u8]; 2] {
        let row = &mut self.bytes[i * self.shape.stride..];
        let [quants, scales] = self.shape.plane_ranges();
        let (before, after) = row.split_at_mut(scales.start);
        [&mut before[quants], &mut after[..scales.len()]]
    }
}

/// Checks that `from` and `to` have as many rows of as many elements, and types that `op` converts between.
pub(crate) fn check_pair(
    op: &'static str,
    from: &RowShape,
    to: &RowShape,
    takes: impl Fn(DType) -> bool,
    gives: impl Fn(DType) -> bool,
) -> Result<(), Error> {
    if !takes(from.dtype()) || !gives(to.dtype()) {
        return Err(Error::Types { op, from: from.dtype(), to: to.dtype() });
    }
    for (what, got, want) in [
        ("rows of the target", to.rows(), from.rows()),
        ("elements of the target's rows", to.cols(), from.cols()),
    ] {
        if got != want {
            return Err(Error::Shape { what, got, want });
        }
    }
    Ok(())
}

/// True for f32, f16 and bf16.
pub(crate) fn is_float(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16)
}

/// True for the block types that have kernels.
pub(crate) fn is_cached(dtype: DType) -> bool {
    matches!(dtype, DType::Q8_0 | DType::Q4_0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_measured_to_the_end_of_the_last() {
        let shape = RowShape::strided(DType::Q4_0, 3, 64, 40).unwrap();
        assert_eq!(shape.bytes(), 2 * 40 + 36);
        assert_eq!(RowShape::dense(DType::F16, 0, 64).unwrap().bytes(), 0);
        // 3 blocks: 96 bytes of quants, 6 of scales.
        let shape = RowShape::planar(DType::Q8_0, 2, 96).unwrap();
        let planes = Planes { quants: 0, scales: 96 };
        assert_eq!((shape.stride(), shape.planes(), shape.bytes()), (112, Some(planes), 112 + 102));
        assert_eq!(shape.plane_ranges(), [0..96, 96..102]);
    }

    #[test]
    fn what_cannot_be_laid_out_is_refused() {
        let dimension = |got: Result<RowShape, Error>| matches!(got, Err(Error::Dimension { .. }));
        assert!(dimension(RowShape::strided(DType::F32, 1, 32, 127)));
        let planar_at = |stride, quants, scales| {
            RowShape::planar_at(DType::Q4_0, 2, 64, stride, Planes { quants, scales })
        };
        assert!(planar_at(64, 16, 48).is_ok());
        assert!(dimension(planar_at(64, 16, 47)));
        assert!(dimension(planar_at(51, 16, 48)));
        assert!(planar_at(usize::MAX, 0, usize::MAX - 3).is_err());
        assert!(matches!(RowShape::planar(DType::F16, 1, 32), Err(Error::Type { .. })));
        assert!(matches!(RowShape::planar(DType::Q4_1, 1, 32), Err(Error::Type { .. })));
        for &dtype in DType::ALL.iter().filter(|&&dtype| dtype.is_quantized() && !is_cached(dtype)) {
            assert!(matches!(RowShape::planar(dtype, 1, 256), Err(Error::Type { .. })));
        }
        assert!(matches!(RowShape::dense(DType::Q8_0, 1, 33), Err(Error::Quant(_))));
        assert!(matches!(RowShape::dense(DType::F32, 5, usize::MAX / 4 - 3), Err(Error::Quant(_))));
        let too_short =
            Rows::new(DeviceSlice::from(&[0u8; 33][..]), RowShape::dense(DType::Q8_0, 1, 32).unwrap());
        assert!(matches!(too_short, Err(Error::Shape { got: 33, want: 34, .. })));
    }

    /// Launchers and their host twins check a pair before anything else.
    #[test]
    fn block_types_without_kernels_are_refused_by_name() {
        let floats = RowShape::dense(DType::F32, 1, 256).unwrap();
        for &dtype in DType::ALL.iter().filter(|&&dtype| dtype.is_quantized() && !is_cached(dtype)) {
            let blocks = RowShape::dense(dtype, 1, 256).unwrap();
            for (from, to, takes, gives) in [
                (blocks, floats, is_cached as fn(DType) -> bool, is_float as fn(DType) -> bool),
                (floats, blocks, is_float, is_cached),
                (blocks, blocks, is_cached, is_cached),
            ] {
                let error = check_pair("op", &from, &to, takes, gives).unwrap_err().to_string();
                assert!(error.contains(dtype.name()), "{error}");
            }
        }
    }
}
