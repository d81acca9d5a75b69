//! Moving rows of Q8_0 or Q4_0 blocks between the plain and the planar layout, byte for byte.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

pub use cpu::cpu;
#[cfg(feature = "cuda")]
pub use cuda::cuda;

use crate::Error;
use crate::rows::{RowShape, check_pair, is_cached};

/// The types are the same, one side is planar and the other is not.
fn check(from: &RowShape, to: &RowShape) -> Result<(), Error> {
    check_pair("relayout", from, to, is_cached, |dtype| dtype == from.dtype())?;
    if from.planes().is_some() == to.planes().is_some() {
        return Err(Error::SameLayout);
    }
    Ok(())
}
