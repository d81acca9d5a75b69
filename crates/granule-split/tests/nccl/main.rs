//! Ranks over NCCL, or over what stands for it in the simulated driver: threads of one process with a GPU each.
#![cfg(feature = "nccl")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../support/naive.rs"]
mod naive;
#[path = "../peer_group/support.rs"]
#[allow(dead_code, reason = "not every test needs all of it")]
mod support;

mod cuda;
