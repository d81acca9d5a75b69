//! SwiGLU on the host.

use crate::error::expect_len;
use crate::threads::Disjoint;
use crate::{Error, Threads};

/// Elements that one thread takes at a time: some microseconds of exponentials.
const CHUNK: usize = 2_048;

/// `gate[i] = silu(gate[i]) * up[i]`, in place.
///
/// # Errors
/// [`Error::Shape`] if the two have different lengths.
pub fn swiglu(threads: &Threads, gate: &mut [f32], up: &[f32]) -> Result<(), Error> {
    expect_len("swiglu's up", up.len(), gate.len())?;
    let len = gate.len();
    let gate = Disjoint::new(gate);
    threads.for_each_chunk(len, CHUNK, &|_, range| {
        // SAFETY: the chunks of one call do not overlap.
        let gate = unsafe { gate.range(range.clone()) };
        for (g, &u) in gate.iter_mut().zip(&up[range]) {
            *g = *g / (1.0 + (-*g).exp()) * u;
        }
    });
    Ok(())
}
