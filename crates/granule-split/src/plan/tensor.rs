//! One tensor over ranks: which rows and columns each of them has, and the bytes of those.

use std::ops::Range;

use granule_quant::DType;

use super::shares::check_ranks;
use crate::{Error, Result};

/// Which way a weight of `rows` x `cols` is split; its product with a vector of `cols` elements has `rows`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Split {
    /// Each rank has some rows: some elements of the product, whole. It is the columns of the transposed weight, hence the name.
    Column,
    /// Each rank has some columns: the product is the sum of the ranks' products.
    Row,
    /// Each rank has all.
    Replicated,
}

/// What a rank has of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Rows of the whole tensor.
    pub rows: Range<usize>,
    /// Columns of the whole tensor; their boundaries are boundaries of blocks.
    pub cols: Range<usize>,
}

/// One tensor over ranks. Its bytes, and those of shards, are rows in the ggml layout one behind the other, as in a file.
///
/// ```
/// use granule_quant::DType;
/// use granule_split::{Split, TensorSplit};
///
/// // Two rows of four numbers, the columns over two ranks.
/// let split = TensorSplit::new(DType::F16, 2, 4, Split::Row, vec![0..1, 1..4])?;
/// let whole: Vec<u8> = (0..16).collect();
/// let mut shard = vec![0; split.bytes(1)?];
/// split.copy_shard(1, 0..2, &whole, &mut shard)?;
/// assert_eq!(shard, [2, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14, 15]);
/// # Ok::<(), granule_split::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSplit {
    dtype: DType,
    rows: usize,
    cols: usize,
    split: Split,
    parts: Vec<Range<usize>>,
    /// Bytes of all of it.
    bytes: usize,
}

impl TensorSplit {
    /// A tensor of which each rank has a part: a range of rows for [`Split::Column`], of columns for [`Split::Row`].
    ///
    /// Parts follow one another and leave nothing out. Parts of rows may overlap, so that several ranks have the same key-value head;
    /// of columns they may not, since such products would count twice in the sum. Parts of [`Split::Replicated`] are all rows.
    ///
    /// # Errors
    /// [`Error::Shape`] naming what is wrong with the parts, [`Error::Ranks`], [`Error::Quant`] where rows are no whole blocks, or all of it
    /// are more bytes than can be counted.
    pub fn new(
        dtype: DType,
        rows: usize,
        cols: usize,
        split: Split,
        parts: Vec<Range<usize>>,
    ) -> Result<TensorSplit> {
        check_ranks(parts.len())?;
        let bytes = dtype.row_bytes(cols)?.checked_mul(rows);
        let bytes = bytes.ok_or(granule_quant::Error::TooLarge { dtype, len: rows.saturating_mul(cols) })?;
        if bytes == 0 {
            return Err(Error::Shape { what: format!("a tensor of {rows} rows of {cols}") });
        }
        let (what, n, unit) = match split {
            Split::Column | Split::Replicated => ("rows", rows, 1),
            Split::Row => ("columns", cols, dtype.block_len()),
        };
        let (mut starts, mut covered) = (0, 0);
        for (rank, part) in parts.iter().enumerate() {
            let Range { start, end } = *part;
            let wrong = if start >= end || end > n {
                format!("no part of {n} {what}")
            } else if split == Split::Replicated && *part != (0..n) {
                format!("not all of {n} {what}, which each rank has")
            } else if !start.is_multiple_of(unit) || !end.is_multiple_of(unit) {
                format!("no whole blocks of {unit}")
            } else if start > covered || start < starts || end < covered {
                format!("not what follows {what} 0 to {covered}")
            } else if split == Split::Row && start < covered {
                format!("also of another rank, up to {covered}")
            } else {
                (starts, covered) = (start, end);
                continue;
            };
            return Err(Error::Shape { what: format!("{what} {start} to {end} of rank {rank}: {wrong}") });
        }
        if covered != n {
            return Err(Error::Shape { what: format!("{what} {covered} to {n} are nobody's") });
        }
        Ok(TensorSplit { dtype, rows, cols, split, parts, bytes })
    }

    /// A tensor that each of so many ranks has whole.
    ///
    /// # Errors
    /// As [`TensorSplit::new`].
    pub fn replicated(dtype: DType, rows: usize, cols: usize, ranks: usize) -> Result<TensorSplit> {
        check_ranks(ranks)?;
        TensorSplit::new(dtype, rows, cols, Split::Replicated, vec![0..rows; ranks])
    }

    /// The type of its elements.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows of the whole.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the whole.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Which way it is split.
    #[must_use]
    pub fn split(&self) -> Split {
        self.split
    }

    /// How many ranks there are.
    #[must_use]
    pub fn ranks(&self) -> usize {
        self.parts.len()
    }

    /// Bytes of the whole.
    #[must_use]
    pub fn whole_bytes(&self) -> usize {
        self.bytes
    }

    /// What this rank has.
    ///
    /// # Errors
    /// [`Error::NoRank`]; this goes for all that take a rank.
    pub fn shard(&self, rank: usize) -> Result<Shard> {
        let part = self.part(rank)?;
        Ok(match self.split {
            Split::Column | Split::Replicated => Shard { rows: part, cols: 0..self.cols },
            Split::Row => Shard { rows: 0..self.rows, cols: part },
        })
    }

    /// What of its shard no rank before this one has: it is the *first holder* of that. Together those of all ranks are the
    /// tensor, every element once. May be no rows at all.
    ///
    /// # Errors
    /// [`Error::NoRank`].
    pub fn first_held(&self, rank: usize) -> Result<Shard> {
        let mut shard = self.shard(rank)?;
        if self.split != Split::Row {
            // Parts ascend at both ends, so that none before the last one reaches further.
            let before = self.parts[..rank].last().map_or(0, |before| before.end);
            shard.rows.start = shard.rows.start.max(before).min(shard.rows.end);
        }
        Ok(shard)
    }

    /// Bytes of a row of this rank's shard, in the ggml layout.
    ///
    /// # Errors
    /// [`Error::NoRank`].
    pub fn row_bytes(&self, rank: usize) -> Result<usize> {
        Ok(self.bytes_of(self.shard(rank)?.cols.len()))
    }

    /// Bytes of this rank's shard, in the ggml layout.
    ///
    /// # Errors
    /// [`Error::NoRank`].
    pub fn bytes(&self, rank: usize) -> Result<usize> {
        Ok(self.row_bytes(rank)? * self.shard(rank)?.rows.len())
    }

    /// Where rows of a rank's shard lie in the whole tensor's bytes, if they lie there one behind the other: where the shard has whole rows.
    /// `rows` are the shard's, counted from 0.
    ///
    /// # Errors
    /// [`Error::NoRank`], [`Error::Size`] for rows that the shard does not have.
    pub fn place(&self, rank: usize, rows: Range<usize>) -> Result<Option<Range<usize>>> {
        let shard = self.shard(rank)?;
        check_rows(&rows, shard.rows.len())?;
        let at = |row: usize| (shard.rows.start + row) * self.row_bytes_whole();
        Ok((shard.cols == (0..self.cols)).then(|| at(rows.start)..at(rows.end)))
    }

    /// Copies rows of a rank's shard out of the whole tensor: `rows` are the shard's, counted from 0, `from` is the whole tensor, and
    /// `to` is as long as those rows.
    ///
    /// # Errors
    /// [`Error::NoRank`], [`Error::Size`] where a length or the range does not fit; then nothing is copied.
    pub fn copy_shard(&self, rank: usize, rows: Range<usize>, from: &[u8], to: &mut [u8]) -> Result<()> {
        let (shard, row) = (self.shard(rank)?, self.row_bytes(rank)?);
        check_rows(&rows, shard.rows.len())?;
        check("the tensor's bytes", from.len(), self.bytes)?;
        check("the bytes of a shard's rows", to.len(), rows.len() * row)?;
        let whole = self.row_bytes_whole();
        let from = &from[(shard.rows.start + rows.start) * whole..(shard.rows.start + rows.end) * whole];
        if row == whole {
            to.copy_from_slice(from);
            return Ok(());
        }
        let at = self.bytes_of(shard.cols.start);
        // Of a part of the columns a row has a block or more, so rows are not empty.
        for (to, from) in to.chunks_exact_mut(row).zip(from.chunks_exact(whole)) {
            to.copy_from_slice(&from[at..at + row]);
        }
        Ok(())
    }

    fn part(&self, rank: usize) -> Result<Range<usize>> {
        self.parts.get(rank).cloned().ok_or(Error::NoRank { rank, ranks: self.parts.len() })
    }

    /// Bytes of a row of the whole.
    pub(crate) fn row_bytes_whole(&self) -> usize {
        self.bytes_of(self.cols)
    }

    /// Bytes of so many of its columns, which are whole blocks and no more than it has.
    pub(super) fn bytes_of(&self, cols: usize) -> usize {
        cols / self.dtype.block_len() * self.dtype.block_bytes()
    }
}

pub(crate) fn check(what: &'static str, found: usize, expected: usize) -> Result<()> {
    if found == expected { Ok(()) } else { Err(Error::Size { what, found, expected }) }
}

pub(crate) fn check_rows(rows: &Range<usize>, n: usize) -> Result<()> {
    let expected = rows.end.max(rows.start);
    if rows.start <= rows.end && rows.end <= n {
        Ok(())
    } else {
        Err(Error::Size { what: "rows to copy from", found: n, expected })
    }
}
