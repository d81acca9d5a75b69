//! Embedding lookup on the host.

use crate::error::expect_len;
use crate::{Error, Matrix};

/// Writes the decoded row of `table` for each id: `out` is `ids.len()` x `table.cols()`.
///
/// # Errors
/// [`Error::TokenId`] for an id outside the table, [`Error::Shape`], [`Error::NotOnHost`], [`Error::Packed`]. Ids are checked
/// before anything is written.
pub fn embed<I>(table: &Matrix<'_>, ids: I, out: &mut [f32]) -> Result<(), Error>
where
    I: ExactSizeIterator<Item = u32> + Clone,
{
    expect_len("embedding output", out.len(), ids.len() * table.cols())?;
    let bytes = table.host_bytes()?;
    if table.packing().is_some() {
        return Err(Error::Packed { dtype: table.dtype(), packed: true });
    }
    if let Some(id) = ids.clone().find(|&id| id as usize >= table.rows()) {
        return Err(Error::TokenId { id, rows: table.rows() });
    }
    for (id, row) in ids.zip(out.chunks_exact_mut(table.cols())) {
        let at = id as usize * table.row_bytes();
        granule_quant::decode(table.dtype(), &bytes[at..at + table.row_bytes()], row)?;
    }
    Ok(())
}
