//! How a split tensor lies in the memory of its devices: strides, rows behind the last one, bytes.

use std::ops::Range;

use granule_device::Bytes;

use super::{Shard, TensorSplit};
use crate::{Error, Result};

/// What kernels want between and behind the rows of a shard. It is zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Padding {
    /// Bytes that rows begin at multiples of.
    pub row_align: usize,
    /// Rows that a shard has a multiple of.
    pub rows_multiple: usize,
}

impl Default for Padding {
    /// None.
    fn default() -> Self {
        Padding { row_align: 1, rows_multiple: 1 }
    }
}

/// A split tensor with its padding: what each device will hold, to the byte.
///
/// ```text
/// | row 0 of the shard | zeros to the stride | row 1 | zeros | … | last row | zeros | rows of zeros |
/// ```
///
/// ```
/// use granule_device::Bytes;
/// use granule_quant::DType;
/// use granule_split::{BufferPlan, Padding, Split, TensorSplit};
///
/// let tensor = TensorSplit::new(DType::Q8_0, 5, 96, Split::Row, vec![0..32, 32..96])?;
/// let plan = BufferPlan::new(tensor, Padding { row_align: 64, rows_multiple: 4 })?;
/// assert_eq!((plan.stride(1)?, plan.bytes(1)?), (128, 8 * 128)); // 68 bytes a row
/// assert_eq!(plan.held(1, Bytes::mib(2))?, Bytes::mib(2));
/// # Ok::<(), granule_split::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BufferPlan {
    tensor: TensorSplit,
    padding: Padding,
}

/// Bytes that lie one behind the other both in a shard and in the whole tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// Where they begin, counted from the piece of the shard that was asked for.
    pub(crate) here: usize,
    /// Where they begin in the bytes of the whole tensor's rows.
    pub(crate) whole: usize,
    /// How many.
    pub(crate) len: usize,
}

impl BufferPlan {
    /// The plan of a tensor with this padding.
    ///
    /// # Errors
    /// [`Error::Shape`] for a padding to multiples of nothing, or to more than can be addressed.
    pub fn new(tensor: TensorSplit, padding: Padding) -> Result<BufferPlan> {
        let Padding { row_align, rows_multiple } = padding;
        if row_align == 0 || rows_multiple == 0 {
            return Err(Error::Shape { what: format!("a padding to multiples of nothing: {padding:?}") });
        }
        let plan = BufferPlan { tensor, padding };
        for rank in 0..plan.tensor.ranks() {
            let stride = plan.tensor.row_bytes(rank)?.checked_next_multiple_of(row_align);
            let rows = plan.tensor.shard(rank)?.rows.len().checked_next_multiple_of(rows_multiple);
            let bytes = stride.zip(rows).and_then(|(stride, rows)| stride.checked_mul(rows));
            if bytes.is_none_or(|bytes| isize::try_from(bytes).is_err()) {
                return Err(Error::Shape { what: format!("more bytes than can be addressed: {padding:?}") });
            }
        }
        Ok(plan)
    }

    /// The tensor.
    #[must_use]
    pub fn tensor(&self) -> &TensorSplit {
        &self.tensor
    }

    /// Bytes from the start of one row of this rank's shard to that of the next.
    ///
    /// # Errors
    /// [`Error::NoRank`].
    pub fn stride(&self, rank: usize) -> Result<usize> {
        Ok(self.tensor.row_bytes(rank)?.next_multiple_of(self.padding.row_align))
    }

    /// Rows of this rank's shard, those of zeros behind the last one too.
    ///
    /// # Errors
    /// [`Error::NoRank`].
    pub fn rows(&self, rank: usize) -> Result<usize> {
        Ok(self.tensor.shard(rank)?.rows.len().next_multiple_of(self.padding.rows_multiple))
    }

    /// Bytes of this rank's shard with all padding.
    ///
    /// # Errors
    /// [`Error::NoRank`].
    pub fn bytes(&self, rank: usize) -> Result<usize> {
        Ok(self.stride(rank)? * self.rows(rank)?)
    }

    /// What this rank's bank holds for it: its bytes in whole granules of this size.
    ///
    /// # Errors
    /// [`Error::NoRank`].
    pub fn held(&self, rank: usize, granule: Bytes) -> Result<Bytes> {
        let bytes = Bytes::from_usize(self.bytes(rank)?);
        let granules = bytes.pieces_of(granule).unwrap_or(usize::MAX);
        Ok(granule.saturating_mul(granules as u64))
    }

    /// Whether there is anything between this rank's rows.
    #[cfg(feature = "cuda")]
    pub(crate) fn is_padded(&self, rank: usize) -> Result<bool> {
        Ok(self.stride(rank)? != self.tensor.row_bytes(rank)?)
    }

    /// Which bytes of this rank's memory are these rows of the whole tensor, of those that the rank has in `shard`; none where it has
    /// none of them. Without the padding of the last row.
    pub(crate) fn span(
        &self,
        rank: usize,
        shard: &Shard,
        rows: &Range<usize>,
    ) -> Result<Option<Range<usize>>> {
        let own = self.tensor.shard(rank)?.rows;
        let (start, end) = (shard.rows.start.max(rows.start), shard.rows.end.min(rows.end));
        if start >= end {
            return Ok(None);
        }
        let (stride, row) = (self.stride(rank)?, self.tensor.row_bytes(rank)?);
        Ok(Some((start - own.start) * stride..(end - 1 - own.start) * stride + row))
    }

    /// What lies at `span` of this rank's memory, a part of a [`BufferPlan::span`], where `from` is the first row of those whose bytes are
    /// at hand.
    pub(crate) fn runs(
        &self,
        rank: usize,
        span: Range<usize>,
        from: usize,
    ) -> Result<impl Iterator<Item = Run>> {
        let (stride, row, shard) =
            (self.stride(rank)?, self.tensor.row_bytes(rank)?, self.tensor.shard(rank)?);
        let whole = self.tensor.row_bytes_whole();
        let column = self.tensor.bytes_of(shard.cols.start);
        let is_dense = stride == whole;
        let mut at = span.start;
        Ok(std::iter::from_fn(move || {
            loop {
                if at >= span.end {
                    return None;
                }
                let (index, within) = (at / stride, at % stride);
                let start = at;
                let len =
                    if is_dense { span.end - at } else { row.saturating_sub(within).min(span.end - at) };
                at = if is_dense { span.end } else { (start - within + stride).min(span.end) };
                if len > 0 {
                    let whole = (shard.rows.start + index - from) * whole + column + within;
                    return Some(Run { here: start - span.start, whole, len });
                }
            }
        }))
    }
}
