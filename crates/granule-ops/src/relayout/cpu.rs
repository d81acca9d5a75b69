//! Moving rows between layouts on the host.

use granule_quant::{ggml_from_planar, planar_from_ggml};

use crate::rows::{Rows, RowsMut};
use crate::{Error, relayout};

/// Moves every row of `from` into that of `to`, which has the same type and the other layout.
///
/// # Errors
/// [`Error::Types`], [`Error::Shape`], [`Error::SameLayout`], [`Error::NotOnHost`]. Nothing is written.
pub fn cpu(from: Rows<'_>, mut to: RowsMut<'_>) -> Result<(), Error> {
    relayout::check(from.shape(), to.shape())?;
    let dtype = from.shape().dtype();
    let to_planar = to.shape().planes().is_some();
    let (source, mut target) = (from.host()?, to.host()?);
    for i in 0..from.shape().rows() {
        let (from, to) = (source.row(i), target.row(i));
        if to_planar {
            let [quants, scales] = to;
            planar_from_ggml(dtype, from[0], quants, scales)?;
        } else {
            let [row, _] = to;
            ggml_from_planar(dtype, from[0], from[1], row)?;
        }
    }
    Ok(())
}
