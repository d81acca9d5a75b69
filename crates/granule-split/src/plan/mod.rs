//! Which rank holds which part: shares, dimensions, a transformer's heads and widths, tensors. Pure: nothing is allocated or read
//! here, and the same numbers always give the same plan.
//!
//! ```
//! use granule_quant::DType;
//! use granule_split::{Role, Shares, SplitShape, TransformerSplit};
//!
//! // The shape of an 8B model with K-quant weights, three parts of it on the first device and one on the second.
//! let shape = SplitShape {
//!     n_heads: 32,
//!     n_kv_heads: 8,
//!     head_dim: 128,
//!     n_ff: 14_336,
//!     n_vocab: 128_256,
//!     heads_block: 256,
//!     ff_block: 256,
//! };
//! let split = TransformerSplit::new(&shape, &Shares::ratio(&[3, 1])?)?;
//! assert_eq!(split.ranks()[0].kv_heads, 0..6);
//! assert_eq!(split.ranks()[1].heads, 24..32);
//!
//! let down = split.tensor(Role::FfnDown, DType::Q4_K, 4096, 14_336)?;
//! assert_eq!(down.shard(1)?.cols, 10_752..14_336);
//! assert_eq!(down.bytes(1)?, 4096 * DType::Q4_K.row_bytes(3584)?);
//!
//! // Sixteen devices hold every key-value head twice; seventeen are too many.
//! let split = TransformerSplit::new(&shape, &Shares::equal(16)?)?;
//! assert_eq!((split.ranks()[3].kv_heads.clone(), split.ranks()[3].heads.clone()), (1..2, 6..8));
//! # Ok::<(), granule_split::Error>(())
//! ```

mod padded;
mod shares;
mod tensor;
mod transformer;

use std::ops::Range;

pub use padded::{BufferPlan, Padding};
pub use shares::Shares;
pub use tensor::{Shard, Split, TensorSplit};
pub(crate) use tensor::{check, check_rows};
pub use transformer::{RankShape, Role, SplitShape, TransformerSplit};

use crate::{Error, Result};

/// Ranks that a group has at most.
pub const MAX_RANKS: usize = 16;

/// Divides `n` elements of a dimension among the ranks, in order: boundaries are multiples of `unit`, every rank gets one unit or
/// more, and the last piece may be shorter than a unit where `n` is no multiple of it.
///
/// How many units a rank gets is its share by largest remainders, ties to the first; ranks whose share is less than one unit get one,
/// and the others share what that leaves.
///
/// ```
/// use granule_split::{Shares, plan::divide};
/// assert_eq!(divide("rows", 100, 32, &Shares::equal(3)?)?, [0..64, 64..96, 96..100]);
/// # Ok::<(), granule_split::Error>(())
/// ```
///
/// # Errors
/// [`Error::Indivisible`] where there are fewer units than ranks, [`Error::Shape`] for a unit of nothing.
pub fn divide(dimension: &'static str, n: usize, unit: usize, shares: &Shares) -> Result<Vec<Range<usize>>> {
    if unit == 0 {
        return Err(Error::Shape { what: format!("{dimension} in pieces of nothing") });
    }
    let units = n.div_ceil(unit);
    if units < shares.ranks() {
        let (ranks, legal) = (shares.ranks(), (1..=units.min(MAX_RANKS)).collect());
        return Err(Error::Indivisible { dimension, size: n, unit, ranks, legal });
    }
    let mut end = 0;
    let pieces = shares.of(units).into_iter().map(|units| {
        let start = end;
        end += units;
        // `end` is at most the number of units, and all but the last of them lie before `n`.
        start * unit..end.saturating_mul(unit).min(n)
    });
    Ok(pieces.collect())
}

#[cfg(test)]
mod tests;
