//! What only a CUDA device has: kinds of memory, kernels, graphs, sharing with cudarc. `cuda::` runs on any driver, `sim::` on
//! the simulated one alone, which counts what is held and can be made to fail.
//!
//! `cargo xtask test` finds or builds a driver. Without one these tests fail; they do not pass by skipping.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod cuda;
mod sim;
mod support;
