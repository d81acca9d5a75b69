//! Embedding lookup: token ids to rows of the embedding table.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

pub use cpu::embed;
#[cfg(feature = "cuda")]
pub use cuda::cuda;
