//! The locks and atomics of the pool: the standard library's, and with `--cfg shuttle` those of a scheduler that tries
//! interleavings (`tests/shuttle.rs`). References are counted by the standard library's `Arc` either way.
#![allow(unexpected_cfgs, reason = "only the tests of interleavings set it")]

#[cfg(shuttle)]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(shuttle))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};
