//! The atomics and threads of the pool: the standard library's, and with `--cfg shuttle` those of a scheduler that tries
//! interleavings (`tests/shuttle.rs`). References are counted by the standard library's `Arc` either way.
#![allow(unexpected_cfgs, reason = "only the tests of interleavings set it")]

#[cfg(shuttle)]
pub(super) use shuttle::{
    hint,
    sync::{Mutex, MutexGuard, atomic},
    thread, thread_local,
};
#[cfg(not(shuttle))]
pub(super) use std::{
    hint,
    sync::{Mutex, MutexGuard, atomic},
    thread, thread_local,
};

/// Whether each turn of a loop is a step of that scheduler, so that loops have to be short.
pub(super) const TRIES_INTERLEAVINGS: bool = cfg!(shuttle);
