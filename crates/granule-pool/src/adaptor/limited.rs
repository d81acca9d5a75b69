//! `Limited`: no more than so many bytes at the same time.

use std::sync::Arc;

use granule_device::Bytes;

use super::{Allocate, Held};
use crate::Error;
use crate::sync::atomic::{AtomicU64, Ordering};

/// Lends no more than a limit at the same time, by the sizes that were asked for; over it a request fails with
/// [`Error::Limit`]. Clones share the limit.
#[derive(Clone, Debug)]
pub struct Limited<A> {
    inner: A,
    limit: u64,
    lent: Arc<AtomicU64>,
}

/// A part of a limit, until it is dropped.
#[derive(Debug)]
pub struct Limiting {
    size: u64,
    lent: Arc<AtomicU64>,
}

impl Drop for Limiting {
    fn drop(&mut self) {
        self.lent.fetch_sub(self.size, Ordering::Relaxed);
    }
}

impl<A> Limited<A> {
    /// Nothing is lent yet.
    pub fn new(inner: A, limit: Bytes) -> Limited<A> {
        Limited { inner, limit: limit.get(), lent: Arc::default() }
    }

    /// What is around.
    pub fn inner(&self) -> &A {
        &self.inner
    }

    /// How many bytes are lent.
    pub fn lent(&self) -> Bytes {
        Bytes::new(self.lent.load(Ordering::Relaxed))
    }

    /// Takes part of the limit. The count stands for no memory of its own, so its order with other accesses is free.
    fn claim(&self, size: Bytes) -> Result<Limiting, Error> {
        let room = |lent: u64| lent.checked_add(size.get()).filter(|&sum| sum <= self.limit);
        match self.lent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room) {
            Ok(_) => Ok(Limiting { size: size.get(), lent: Arc::clone(&self.lent) }),
            Err(lent) => {
                Err(Error::Limit { requested: size, lent: Bytes::new(lent), limit: Bytes::new(self.limit) })
            }
        }
    }
}

impl<A: Allocate> Allocate for Limited<A> {
    type Lent = Held<A::Lent, Limiting>;

    fn allocate(&self, size: Bytes, align: Bytes) -> Result<Self::Lent, Error> {
        // Claimed before and not after, so that two threads cannot both have the last of it.
        let part = self.claim(size)?;
        Ok(Held::new(self.inner.allocate(size, align)?, part))
    }
}
