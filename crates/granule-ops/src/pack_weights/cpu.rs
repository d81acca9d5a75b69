//! Packing weights on the host.

use granule_device::{DeviceSlice, DeviceSliceMut};
use granule_quant::pack_planes_rows;

use crate::Error;
use crate::pack_weights::WeightRows;

/// Lays the rows of `from`, dense in the ggml layout and at any address, out in `to`, the planes of the whole matrix. Its other
/// rows, and what lies between planes, stay as they are.
///
/// # Errors
/// [`Error::Quant`], [`Error::Shape`], [`Error::NotOnHost`]. Nothing is written.
pub fn cpu(weights: &WeightRows, from: DeviceSlice<'_>, mut to: DeviceSliceMut<'_>) -> Result<(), Error> {
    weights.check(from.len(), to.len())?;
    let from = from.as_host().ok_or(Error::NotOnHost { what: "rows to pack" })?;
    let to = to.as_host_mut().ok_or(Error::NotOnHost { what: "a weight matrix" })?;
    let WeightRows { dtype, rows, cols, ref piece } = *weights;
    Ok(pack_planes_rows(dtype, rows, cols, piece.clone(), from, to)?)
}
