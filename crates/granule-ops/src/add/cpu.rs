//! The residual sum on the host.

use crate::error::expect_len;
use crate::{Error, Threads};

/// Elements that one thread takes at a time.
const CHUNK: usize = 16_384;

/// `x[i] += y[i]`.
///
/// # Errors
/// [`Error::Shape`] if the two have different lengths.
pub fn add(threads: &Threads, x: &mut [f32], y: &[f32]) -> Result<(), Error> {
    expect_len("residual", y.len(), x.len())?;
    threads.try_zip_chunks(y, CHUNK, x, CHUNK, &|y, x| {
        x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        Ok(())
    })
}
