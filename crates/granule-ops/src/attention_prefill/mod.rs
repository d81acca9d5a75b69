//! Attention for prompts, where many query tokens of a sequence are there at once, on tensor cores. A CUDA device's alone: on
//! the host [`attention::cpu`](crate::attention::cpu) takes prompts and single tokens alike.

mod cuda;

pub(crate) use cuda::Choice;
pub use cuda::cuda;
