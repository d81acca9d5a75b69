//! The engine on a CUDA device: what it computes, beside the naive twin and the host; what it holds, and what it asks the driver
//! for.
#![cfg(feature = "cuda")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test stops where something is not as it should be"
)]
#![allow(dead_code, reason = "of what tests share, these need a part")]

#[path = "../support/mod.rs"]
mod support;
#[path = "../support/tales/mod.rs"]
mod tales;

mod covering;
mod cuda;
