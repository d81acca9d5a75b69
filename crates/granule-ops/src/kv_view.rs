//! What an attention kernel is told about a KV cache: where the rows are, and where each plane lies in a row.
//!
//! ```text
//! one group of layers in its range of addresses, with sinks:
//! byte 0                        rows_at      + row_stride  + 2 row_stride
//!      | sinks of its layers    | row 0      | row 1       | row 2 …
//!
//! one token's row, for the layers of one group:
//!          layer 0                                   layer 1 …
//! byte     k_quants   k_scales   v_quants   v_scales
//!          |          |          |          |
//!          [K quants ][K scales ][V quants ][V scales][K quants ]…
//! <---------------------- row_stride ------------------------->
//!
//! one layer's sinks, f16, each row n_kv_heads x head_dim:
//!          | K row 0 | K row 1 | K row 2 | K row 3 | V row 0 | V row 1 | V row 2 | V row 3 |
//! byte     sinks.k                                 sinks.v
//! ```
//!
//! Every plane starts at a multiple of 16 bytes. Inside a plane the heads follow one another without padding. A sequence is
//! a list of [segments](KvSegment), runs of rows, in the order of its tokens; there are no block tables.

use granule_device::{DeviceSlice, DeviceSliceMut};
use granule_quant::{DType, planar_bytes};
use smallvec::{SmallVec, smallvec};

use crate::Error;
use crate::error::expect_len;

/// The byte layout of one layer inside a cache row. Offsets are bytes from the start of the row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvRowLayout {
    /// Element type of the keys.
    pub k_type: DType,
    /// Element type of the values.
    pub v_type: DType,
    /// Key-value heads of the layer.
    pub n_kv_heads: usize,
    /// Elements of one head of K, and of V.
    pub head_dim: usize,
    /// Bytes from one token's row to the next.
    pub row_stride: usize,
    /// Byte of row 0, from the base of the group's range. What is before it are the sinks.
    pub rows_at: usize,
    /// Start of the K quants plane.
    pub k_quants: usize,
    /// Start of the K scales plane.
    pub k_scales: usize,
    /// Start of the V quants plane.
    pub v_quants: usize,
    /// Start of the V scales plane.
    pub v_scales: usize,
    /// Where the first rows are kept once more in 16 bits, if they are.
    pub sinks: Option<KvSinks>,
}

/// The first physical rows once more, in f16: what attention reads in their place. The first tokens of a text draw so much
/// attention (Xiao et al., 2023) that what their keys and values lose in 4 bits is worth more than theirs of all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvSinks {
    /// How many rows.
    pub rows: usize,
    /// Byte of this layer's K of row 0, from the base of the group's range; row `i` is `i * n_kv_heads * head_dim * 2`
    /// further.
    pub k: usize,
    /// As `k`, of V.
    pub v: usize,
}

impl KvRowLayout {
    /// Elements of K (and of V) that one token has in this layer.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Checks that planes are whole, do not overlap and end inside the row, and that the sinks end before row 0.
    fn check(&self) -> Result<(), Error> {
        let k = planar_bytes(self.k_type, self.elements())?;
        let v = planar_bytes(self.v_type, self.elements())?;
        // A head must be whole blocks, so that kernels can start at any head.
        planar_bytes(self.k_type, self.head_dim)?;
        planar_bytes(self.v_type, self.head_dim)?;
        let range = |at: usize, len: usize| at..at.saturating_add(len);
        let planes = [
            range(self.k_quants, k.quants),
            range(self.k_scales, k.scales),
            range(self.v_quants, v.quants),
            range(self.v_scales, v.scales),
        ];
        let mut before = self.k_quants;
        for plane in &planes {
            if plane.start < before || plane.end > self.row_stride {
                return Err(Error::Shape { what: "a KV plane's end", got: plane.end, want: self.row_stride });
            }
            before = plane.end;
        }
        if let Some(sinks) = self.sinks {
            let bytes = sinks.rows.saturating_mul(self.elements() * 2);
            let (k_end, v_end) = (sinks.k.saturating_add(bytes), sinks.v.saturating_add(bytes));
            if sinks.v < k_end {
                return Err(Error::Shape { what: "the start of V's sinks", got: sinks.v, want: k_end });
            }
            if v_end > self.rows_at {
                return Err(Error::Shape {
                    what: "the end of a layer's sinks",
                    got: v_end,
                    want: self.rows_at,
                });
            }
        }
        Ok(())
    }
}

/// A run of rows of one layer's group: tokens that follow one another, at rows that follow one another.
#[derive(Clone, Copy, Debug)]
pub struct KvSegment<'a> {
    /// Its rows, `len * row_stride` bytes from the first one's start.
    pub rows: DeviceSlice<'a>,
    /// Physical number of its first row in the group's range.
    pub row: usize,
    /// Its tokens.
    pub len: usize,
    /// How many positions further its keys should have been rotated than they are: the tokens' position now minus that at
    /// which they were stored.
    pub turn: i32,
}

/// All tokens of one layer of a sequence, to read.
#[derive(Clone, Debug)]
pub struct KvView<'a> {
    layout: KvRowLayout,
    sinks: Option<DeviceSlice<'a>>,
    segments: SmallVec<[KvSegment<'a>; 4]>,
    len: usize,
}

impl<'a> KvView<'a> {
    /// A view of the tokens of `segments`, one segment after the other. `sinks` are the bytes `0..rows_at` of the range; they
    /// are needed where the layout has sinks and a segment one of those rows.
    ///
    /// # Errors
    /// [`Error::Shape`] if rows, planes or sinks do not fit, [`Error::Quant`] if a head is no whole number of blocks.
    pub fn new(
        layout: KvRowLayout,
        sinks: Option<DeviceSlice<'a>>,
        segments: SmallVec<[KvSegment<'a>; 4]>,
    ) -> Result<Self, Error> {
        layout.check()?;
        let mut len = 0usize;
        for segment in &segments {
            check_rows(&layout, segment.rows.len(), segment.row, segment.len)?;
            check_sinks(&layout, sinks.map(|s| s.len()), segment.row, segment.len)?;
            len = len.saturating_add(segment.len);
        }
        Ok(Self { layout, sinks, segments, len })
    }

    /// A view of `len` rows that follow one another from row 0 on, none of them a sink: `rows` begins with row 0.
    ///
    /// # Errors
    /// As [`KvView::new`].
    pub fn contiguous(rows: DeviceSlice<'a>, layout: KvRowLayout, len: usize) -> Result<Self, Error> {
        check_rows(&layout, rows.len(), 0, len)?;
        let rows = rows.subslice(..len * layout.row_stride)?;
        Self::new(layout, None, smallvec![KvSegment { rows, row: 0, len, turn: 0 }])
    }

    /// Where the planes are.
    #[must_use]
    pub fn layout(&self) -> &KvRowLayout {
        &self.layout
    }

    /// Tokens in the view.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The runs of rows that the tokens lie in, in their order.
    #[must_use]
    pub fn segments(&self) -> &[KvSegment<'a>] {
        &self.segments
    }

    /// The bytes before row 0, where they were given.
    #[must_use]
    pub fn sinks(&self) -> Option<DeviceSlice<'a>> {
        self.sinks
    }
}

/// The rows of one append to one layer of a sequence, to write.
#[derive(Debug)]
pub struct KvViewMut<'a> {
    layout: KvRowLayout,
    sinks: Option<DeviceSliceMut<'a>>,
    rows: DeviceSliceMut<'a>,
    row: usize,
    len: usize,
}

impl<'a> KvViewMut<'a> {
    /// `len` rows from physical row `row` on; `rows` starts at the first of them. `sinks` are the bytes `0..rows_at` of the
    /// range; they are needed where the layout has sinks and one of the rows is one.
    ///
    /// # Errors
    /// As [`KvView::new`].
    pub fn new(
        layout: KvRowLayout,
        sinks: Option<DeviceSliceMut<'a>>,
        rows: DeviceSliceMut<'a>,
        row: usize,
        len: usize,
    ) -> Result<Self, Error> {
        layout.check()?;
        check_rows(&layout, rows.len(), row, len)?;
        check_sinks(&layout, sinks.as_ref().map(DeviceSliceMut::len), row, len)?;
        Ok(Self { layout, sinks, rows, row, len })
    }

    /// A view of `len` rows from row 0 on, none of them a sink.
    ///
    /// # Errors
    /// As [`KvView::new`].
    pub fn contiguous(rows: DeviceSliceMut<'a>, layout: KvRowLayout, len: usize) -> Result<Self, Error> {
        Self::new(layout, None, rows, 0, len)
    }

    /// Where the planes are.
    #[must_use]
    pub fn layout(&self) -> &KvRowLayout {
        &self.layout
    }

    /// Physical number of the first row.
    #[must_use]
    pub fn row(&self) -> usize {
        self.row
    }

    /// Tokens in the view.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The rows, the first one's first byte first.
    #[must_use]
    pub fn rows(&mut self) -> DeviceSliceMut<'_> {
        self.rows.reborrow()
    }

    /// The bytes before row 0, where they were given.
    #[must_use]
    pub fn sinks(&mut self) -> Option<DeviceSliceMut<'_>> {
        self.sinks.as_mut().map(DeviceSliceMut::reborrow)
    }

    /// The rows, and the bytes before row 0 where they were given, as the host writes them.
    pub(crate) fn host(&mut self) -> Result<(&mut [u8], Option<&mut [u8]>), Error> {
        let not_on_host = || Error::NotOnHost { what: "a KV cache" };
        let rows = self.rows.as_host_mut().ok_or_else(not_on_host)?;
        let sinks = self.sinks.as_mut().map(|s| s.as_host_mut().ok_or_else(not_on_host)).transpose()?;
        Ok((rows, sinks))
    }
}

/// Checks that `len` rows fit into `bytes`, and that their numbers can be counted.
fn check_rows(layout: &KvRowLayout, bytes: usize, row: usize, len: usize) -> Result<(), Error> {
    let last_end = len.saturating_mul(layout.row_stride);
    if bytes < last_end || row.checked_add(len).is_none() {
        return Err(Error::Shape { what: "bytes of a KV view", got: bytes, want: last_end });
    }
    Ok(())
}

/// Checks that the sinks are there if the rows need them, whole where they are.
fn check_sinks(layout: &KvRowLayout, bytes: Option<usize>, row: usize, len: usize) -> Result<(), Error> {
    let needed = len > 0 && layout.sinks.is_some_and(|sinks| row < sinks.rows);
    match bytes {
        None if needed => {
            Err(Error::Shape { what: "bytes of a KV view's sinks", got: 0, want: layout.rows_at })
        }
        Some(bytes) => expect_len("bytes of a KV view's sinks", bytes, layout.rows_at),
        None => Ok(()),
    }
}
