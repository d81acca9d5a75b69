//! `Shell`: what of a heap stands behind its lock.
//!
//! The fast path of the pool is a lock, a list and a few additions, so a lease must find its heap without counting
//! references: [`State::spare`] keeps the counted references that are not in a lease, and a lease takes one of them along. Whoever
//! puts one back does so under the lock, and the heap may be gone before that lock is let go of; so the lock itself is not in
//! the heap but in a shell, which is never freed and serves another heap later.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use granule_device::{Bytes, DevicePtr};

use crate::capture::Private;
use crate::heap::HeapCore;
use crate::lease::Extra;
use crate::policy::{BlockId, Cache, Class, Stamp, Tick};

/// A block that was cut from an arena, from then until it goes back there. A lease and a cache hand on its box: that is eight
/// bytes, where the whole is a cache line.
#[derive(Debug)]
pub(crate) struct Block {
    /// Where it goes when it is given back; none: to its arena.
    pub(crate) class: Option<Class>,
    /// The number of the arena.
    pub(crate) arena: u32,
    /// Its size in bytes.
    pub(crate) given: u64,
    /// What was asked for, while it is leased.
    pub(crate) size: Bytes,
    /// What few leases have.
    pub(crate) extra: Option<Box<Extra>>,
    pub(crate) at: DevicePtr,
    pub(crate) id: BlockId,
}

/// A free block of a class in a heap's cache: the heap's own stream may still use it, up to the tick, and nobody else.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) block: Box<Block>,
    /// 0: nobody does.
    pub(crate) tick: Tick,
}

impl Block {
    /// What its arena takes it back with.
    pub(crate) fn home(&self, stamp: Stamp) -> (u32, BlockId, Stamp) {
        (self.arena, self.id, stamp)
    }
}

/// Sums over what a heap has leased.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Allocations that the cache served.
    pub(crate) hits: u64,
    /// Allocations that it did not serve.
    pub(crate) misses: u64,
    pub(crate) frees: u64,
    /// Bytes asked for, of live leases.
    pub(crate) requested: u64,
    /// Bytes of their blocks.
    pub(crate) given: u64,
    /// The most that this ever was.
    pub(crate) peak: u64,
}

impl Counts {
    #[inline]
    pub(crate) fn take(&mut self, requested: u64, given: u64) {
        self.requested += requested;
        self.given += given;
        if self.given > self.peak {
            self.peak = self.given;
        }
    }

    #[inline]
    pub(crate) fn give(&mut self, requested: u64, given: u64) {
        self.frees += 1;
        self.requested -= requested;
        self.given -= given;
    }

    /// Leases that are out.
    pub(crate) fn live(&self) -> u64 {
        self.hits + self.misses - self.frees
    }
}

/// What a heap's lock guards.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Whether blocks go through the cache: not before the heap is open, nor after it is closed, nor in a capture.
    pub(crate) cached: bool,
    pub(crate) counts: Counts,
    pub(crate) cache: Cache<Entry>,
    /// References to the heap for leases to come. They are what a closed heap drops.
    pub(crate) spare: Vec<Arc<HeapCore>>,
    /// Blocks of a class that further streams may still use.
    pub(crate) waiting: Vec<(Class, Box<Block>, Stamp)>,
    /// Handles of the heap. It is closed with the last one.
    pub(crate) handles: usize,
    /// What is kept apart while the stream is captured.
    pub(crate) private: Option<Private>,
}

/// A heap's lock. It outlives every heap.
#[derive(Debug, Default)]
pub(crate) struct Shell {
    state: Mutex<State>,
}

/// Shells without a heap.
static FREE: Mutex<Vec<&'static Shell>> = Mutex::new(Vec::new());

impl Shell {
    /// One that nobody has.
    pub(crate) fn get() -> &'static Shell {
        let free = lock(&FREE).pop();
        free.unwrap_or_else(|| Box::leak(Box::default()))
    }

    /// For the next heap.
    pub(crate) fn put(&'static self) {
        // The lists give their memory back; what else is in here was taken out when the heap was closed.
        let before = std::mem::take(&mut *self.lock());
        drop(before);
        lock(&FREE).push(self);
    }

    #[inline]
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Locks; what panicked under one of the pool's locks left it whole.
#[inline]
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
