//! Matrix products: activations (tokens x cols) with weights (rows x cols), `out[t][r] = sum_c x[t][c] * w[r][c]`.
//!
//! Activations that meet a quantized weight are quantized once, whatever number of weights they meet, in blocks of 32. One
//! token has 16 bits a number: its products wait for memory, so the second half of them is free, and a near tie between two
//! tokens falls as it does in exact arithmetic. Several tokens have 8 bits, which is what the field uses: products of 8 bits
//! with 8 bits are what processors do fastest, and those of a prompt wait for nothing else ([`Precision`] changes that). Float weights meet the
//! activations as they are; `F16` and `BF16` meet those of many tokens in bf16 where the CPU has products for that. Several products of the same activations (Q, K and V; gate and up) go into one call, so that
//! the threads meet once.
//!
//! On a CUDA device [`product`](crate::product) is the one for all products; what is here of it is for many tokens.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

pub use cpu::{Activations, Precision, QuantScratch, matmul};
#[cfg(feature = "cuda")]
pub(crate) use cuda::cuda;
