//! Matrix products: activations (tokens x cols) with weights (rows x cols), `out[t][r] = sum_c x[t][c] * w[r][c]`.
//!
//! Activations that meet a quantized weight are quantized once, to 8 bits in blocks of 32, whatever number of
//! weights they meet; float weights meet them as they are. Several products of the same activations (Q, K and V; gate
//! and up) go into one call, so that the threads meet once.

mod cpu;

pub use cpu::{Activations, QuantScratch, matmul};
