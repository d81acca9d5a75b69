//! Rows of f32 with a factor for each, on a CUDA device: what brings products of scaled activations to their size.

mod cuda;

pub(crate) use cuda::cuda;
