//! CUDA programs on the simulated driver, through an unmodified cudarc: right ones, and one wrong one for each report.
//! They need the simulator in the library path and the emulated kernels of `planted.cu`: `cargo xtask test` has both.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(
    clippy::undocumented_unsafe_blocks,
    reason = "each is a driver call with locals; what the wrong ones do is what is tested"
)]

mod sim {
    mod cublas;
    mod faults;
    mod graphs;
    mod launches;
    mod memory;
    mod order;
    mod pools;
    mod settings;
    mod support;
    mod virtual_memory;
}
