//! What an attention kernel is told about a KV cache: where the rows are, and where each plane lies in a row.
//!
//! ```text
//! one token's row, for the layers of one group:
//!          layer 0                                   layer 1 …
//! byte     k_quants   k_scales   v_quants   v_scales
//!          |          |          |          |
//!          [K quants ][K scales ][V quants ][V scales][K quants ]…
//! <---------------------- row_stride ------------------------->
//! ```
//!
//! Every plane starts at a multiple of 16 bytes. Inside a plane the heads follow one another without padding. There
//! are no block tables: row `i` starts at `base + i * row_stride`.

use std::ops::Range;

use granule_device::{DeviceSlice, DeviceSliceMut};
use granule_quant::{DType, planar_bytes};

use crate::Error;

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
    /// Start of the K quants plane.
    pub k_quants: usize,
    /// Start of the K scales plane.
    pub k_scales: usize,
    /// Start of the V quants plane.
    pub v_quants: usize,
    /// Start of the V scales plane.
    pub v_scales: usize,
}

/// One plane pair (quants, scales) of one head.
#[derive(Clone, Copy)]
pub(crate) struct HeadPlanes {
    pub(crate) quants_at: usize,
    pub(crate) quants_len: usize,
    pub(crate) scales_at: usize,
    pub(crate) scales_len: usize,
}

impl HeadPlanes {
    /// The quants and the scales of this head in the row that starts at byte `row`.
    pub(crate) fn in_row<'a>(&self, bytes: &'a [u8], row: usize) -> (&'a [u8], &'a [u8]) {
        let quants = row + self.quants_at;
        let scales = row + self.scales_at;
        (&bytes[quants..quants + self.quants_len], &bytes[scales..scales + self.scales_len])
    }
}

impl KvRowLayout {
    /// Elements of K (and of V) that one token has in this layer.
    #[must_use]
    pub fn elements(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Checks that planes are whole, do not overlap and end inside the row; returns the plane ranges
    /// (K quants, K scales, V quants, V scales).
    fn planes(&self) -> Result<[Range<usize>; 4], Error> {
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
        Ok(planes)
    }

    pub(crate) fn head(&self, keys: bool, head: usize) -> Result<HeadPlanes, Error> {
        let (dtype, quants, scales) = if keys {
            (self.k_type, self.k_quants, self.k_scales)
        } else {
            (self.v_type, self.v_quants, self.v_scales)
        };
        let one = planar_bytes(dtype, self.head_dim)?;
        Ok(HeadPlanes {
            quants_at: quants + head * one.quants,
            quants_len: one.quants,
            scales_at: scales + head * one.scales,
            scales_len: one.scales,
        })
    }
}

fn check(layout: &KvRowLayout, bytes: usize, len: usize) -> Result<(), Error> {
    layout.planes()?;
    let last_end = len.saturating_mul(layout.row_stride);
    if bytes < last_end {
        return Err(Error::Shape { what: "bytes of a KV view", got: bytes, want: last_end });
    }
    Ok(())
}

/// The first `len` rows of one layer of a sequence, to read.
#[derive(Clone, Copy, Debug)]
pub struct KvView<'a> {
    rows: DeviceSlice<'a>,
    layout: KvRowLayout,
    len: usize,
}

impl<'a> KvView<'a> {
    /// A view of `len` rows that start at the first byte of `rows`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the rows or planes do not fit, [`Error::Quant`] if a head is no whole number of blocks.
    pub fn new(rows: DeviceSlice<'a>, layout: KvRowLayout, len: usize) -> Result<Self, Error> {
        check(&layout, rows.len(), len)?;
        Ok(Self { rows, layout, len })
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

    /// The memory behind the rows.
    #[must_use]
    pub fn rows(&self) -> DeviceSlice<'a> {
        self.rows
    }
}

/// Rows of one layer of a sequence, to write.
#[derive(Debug)]
pub struct KvViewMut<'a> {
    rows: DeviceSliceMut<'a>,
    layout: KvRowLayout,
    len: usize,
}

impl<'a> KvViewMut<'a> {
    /// A view of `len` rows that start at the first byte of `rows`.
    ///
    /// # Errors
    /// As [`KvView::new`].
    pub fn new(rows: DeviceSliceMut<'a>, layout: KvRowLayout, len: usize) -> Result<Self, Error> {
        check(&layout, rows.len(), len)?;
        Ok(Self { rows, layout, len })
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

    pub(crate) fn host_rows(&mut self) -> Result<&mut [u8], Error> {
        self.rows.as_host_mut().ok_or(Error::NotOnHost { what: "a KV cache" })
    }
}
