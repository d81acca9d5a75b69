//! SwiGLU on the host.

use granule_quant::Isa;

use crate::error::expect_len;
use crate::{Error, Threads};

/// Elements that one thread takes at a time: a microsecond of exponentials or two.
const CHUNK: usize = 4_096;

/// `gate[i] = silu(gate[i]) * up[i]`, in place.
///
/// # Errors
/// [`Error::Shape`] if the two have different lengths.
pub fn swiglu(threads: &Threads, gate: &mut [f32], up: &[f32]) -> Result<(), Error> {
    expect_len("swiglu's up", up.len(), gate.len())?;
    threads.try_zip_chunks(up, CHUNK, gate, CHUNK, &|up, gate| Isa::best().swiglu(gate, up))?;
    Ok(())
}
