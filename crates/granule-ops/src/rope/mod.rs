//! Rotary position embedding over adjacent pairs (Su et al., 2021), as GGUF's `llama` stores its weights:
//! `(x[2i], x[2i+1])` turns by `position * freq[i]`, with `freq[i] = base^(-2i/dims) / factor[i] / linear`.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

pub(crate) use cpu::rotate_token;
pub use cpu::{Rope, rotate};
#[cfg(feature = "cuda")]
pub use cuda::cuda;
