//! Tests that need the simulated driver: it has two devices, says what is held, and fails on demand.

mod contexts;
#[cfg(feature = "cublas")]
mod cublas;
mod faults;
mod full;
mod held;
mod lost;
mod peers;
mod probing;
mod replaced;
mod tools;
