//! `Counted`: what went through an allocator.

use std::sync::{Arc, PoisonError};

use granule_device::Bytes;

use super::{Allocate, Held};
use crate::Error;
use crate::sync::{Mutex, MutexGuard};

/// Counts what it lends, by the sizes that were asked for. Clones count together.
#[derive(Clone, Debug)]
pub struct Counted<A> {
    inner: A,
    counts: Arc<Counts>,
}

/// What a [`Counted`] has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct CountedStats {
    /// Requests that were served.
    pub served: u64,
    /// Requests that failed.
    pub refused: u64,
    /// What is lent now: how often.
    pub live: u64,
    /// What is lent now: how much.
    pub current: Bytes,
    /// The most that `current` ever was.
    pub peak: Bytes,
}

#[derive(Debug, Default)]
struct Counts {
    stats: Mutex<CountedStats>,
}

impl Counts {
    fn stats(&self) -> MutexGuard<'_, CountedStats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts that memory went back, when it is dropped.
#[derive(Debug)]
pub struct Counting {
    size: Bytes,
    counts: Arc<Counts>,
}

impl Drop for Counting {
    fn drop(&mut self) {
        let mut stats = self.counts.stats();
        stats.live -= 1;
        stats.current = stats.current.saturating_sub(self.size);
    }
}

impl<A> Counted<A> {
    /// Nothing is counted yet.
    pub fn new(inner: A) -> Counted<A> {
        Counted { inner, counts: Arc::default() }
    }

    /// What is around.
    pub fn inner(&self) -> &A {
        &self.inner
    }

    /// What it has seen so far.
    pub fn stats(&self) -> CountedStats {
        *self.counts.stats()
    }
}

impl<A: Allocate> Allocate for Counted<A> {
    type Lent = Held<A::Lent, Counting>;

    fn allocate(&self, size: Bytes, align: Bytes) -> Result<Self::Lent, Error> {
        let lent = self.inner.allocate(size, align);
        let mut stats = self.counts.stats();
        match lent {
            Ok(lent) => {
                stats.served += 1;
                stats.live += 1;
                stats.current = stats.current.saturating_add(size);
                stats.peak = stats.peak.max(stats.current);
                drop(stats);
                Ok(Held::new(lent, Counting { size, counts: Arc::clone(&self.counts) }))
            }
            Err(error) => {
                stats.refused += 1;
                Err(error)
            }
        }
    }
}
