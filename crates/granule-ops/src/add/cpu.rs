//! The residual sum on the host.

use crate::Error;
use crate::error::expect_len;

/// `x[i] += y[i]`.
///
/// # Errors
/// [`Error::Shape`] if the two have different lengths.
pub fn add(x: &mut [f32], y: &[f32]) -> Result<(), Error> {
    expect_len("residual", y.len(), x.len())?;
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
    Ok(())
}
