//! Products of activations in a [form](crate::activate::Form) with weights in planes, on a CUDA device: `out[t][r] = sum_c x[t][c] *
//! w[r][c]`. On the host [`matmul`](crate::matmul()) is the one for all of it.
//!
//! The form says how many tokens there are: of few (`F32`, `Fixed`) `matvec` reads each weight once and is as
//! fast as memory is; many (`F16`, `Bf16`) meet the weights on tensor cores, tile by tile. [`Form::of`](crate::activate::Form::of)
//! knows which form is whose. Several products of the same activations (Q, K and V; gate and up) go into one call.
//!
//! Where NVIDIA's cuBLAS is installed, `cuda_blas` gives it the products of many tokens instead (feature `cublas`).

#[cfg(feature = "cublas")]
mod blas;
mod cuda;

#[cfg(feature = "cublas")]
pub use blas::{blas_scratch_bytes, cuda_blas};
pub(crate) use cuda::{Group, MatrixArgument};
pub use cuda::{Product, cuda};
