//! Matrix products: activations (tokens x cols) with weights (rows x cols), `out[t][r] = sum_c x[t][c] * w[r][c]`.
//!
//! Activations that meet a quantized weight are quantized once, whatever number of weights they meet, to twice 8 bits
//! in blocks of 32: the number, and what 8 bits leave of it. Products of 8 bits with 8 bits are what processors do
//! fastest, and with both terms the error is that of 16 bits: results do not depend on how a prompt was cut into
//! batches, and a near tie between two tokens falls as it does in exact arithmetic. Float weights meet the activations
//! as they are. Several products of the same activations (Q, K and V; gate
//! and up) go into one call, so that the threads meet once.

mod cpu;

pub use cpu::{Activations, QuantScratch, matmul};
