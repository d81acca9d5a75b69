//! The kernels against the host's reference, bit for bit: each by itself in the emulator, and through its launcher on a
//! CUDA device, the simulated one or a real one.
//!
//! A test is a function of a [`machine::Machine`]. `emulated::` runs wherever there is a C++ compiler; `cuda::` needs a CUDA
//! driver, which `cargo xtask test` provides or finds; `host::` holds the host's twins to the same oracle.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod activate;
#[cfg(feature = "cuda")]
mod cuda;
mod emulated;
mod exhaustive;
mod host;
mod machine;
mod matmul;
mod matvec;
mod numbers;
mod oracle;
mod planes;
mod prefill;
mod properties;
#[path = "../support/random.rs"]
mod random;
mod ranks;
mod rope;
mod sample;
mod weights;
