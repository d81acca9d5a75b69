//! Ranks that are GPUs of one process: on the simulated driver, whose seeds run streams in other orders.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "support/naive.rs"]
mod naive;
#[path = "peer_group/support.rs"]
mod support;

#[path = "peer_group/cuda.rs"]
mod cuda;
