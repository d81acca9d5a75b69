//! Tests for any CUDA driver.

mod captures;
mod graphs;
mod interop;
mod kernels;
mod memory;
mod registered;
mod shared;
mod streams;
