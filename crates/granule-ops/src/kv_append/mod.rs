//! New keys and values into a cache, in one pass over each token: the keys are rotated to their position, both are
//! [transformed](crate::KvTransform), encoded and stored; of the first rows of a sequence a second copy is kept in 16 bits,
//! where the layout has [sinks](crate::KvSinks).

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

pub use cpu::cpu;
#[cfg(feature = "cuda")]
pub use cuda::{CudaAppend, cuda};

use crate::KvTransform;

/// What the tokens of one append have in common.
#[derive(Clone, Copy, Debug)]
pub struct AppendShape<'a> {
    /// Elements of each key that are rotated; 0 for keys that are rotated already.
    pub rope_dims: usize,
    /// Cosines and sines of the tokens' positions, tokens x `rope_dims`, from [`Rope::angles`](crate::Rope::angles).
    pub angles: &'a [f32],
    /// The layer's transform. None stores keys and values as they are.
    pub transform: Option<&'a KvTransform>,
}
