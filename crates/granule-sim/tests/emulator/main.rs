//! The kernel emulator, tested with kernels that are right and kernels that have one mistake each.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod build;
mod correct;
mod faults;
mod library;
mod numbers;
mod planted;
mod programs;
mod tensor;
mod widths;
