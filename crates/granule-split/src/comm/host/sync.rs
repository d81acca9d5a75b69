//! The locks and atomics of a meeting: the standard library's, and with `--cfg shuttle` those of a scheduler that tries
//! interleavings (`tests/shuttle.rs`). References are counted by the standard library's `Arc` either way.
#![allow(unexpected_cfgs, reason = "only the tests of interleavings set it")]

#[cfg(shuttle)]
pub(super) use shuttle::{
    hint,
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread,
};
#[cfg(not(shuttle))]
pub(super) use std::{
    hint,
    sync::{Condvar, Mutex, MutexGuard, atomic},
    thread,
};

/// Whether each turn of a loop is a step of that scheduler, so that loops have to be short.
pub(super) const TRIES_INTERLEAVINGS: bool = cfg!(shuttle);
