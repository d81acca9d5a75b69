//! Tests for any CUDA driver.

mod captures;
#[cfg(feature = "cublas")]
pub(crate) mod cublas;
mod graphs;
mod interop;
mod kernels;
mod memory;
mod registered;
mod shared;
mod streams;
