//! Products of a few tokens on a CUDA device, as fast as it reads the weights. [`product`](crate::product) says when.

mod cuda;

pub(crate) use cuda::cuda;
