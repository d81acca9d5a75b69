//! Tests for any CUDA driver.

mod graphs;
mod interop;
mod kernels;
mod memory;
mod shared;
mod streams;
