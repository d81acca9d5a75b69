//! `Logged`: a function that hears what an allocator does.

use std::fmt;
use std::sync::Arc;

use granule_device::Bytes;

use super::{Allocate, Held};
use crate::Error;

/// What happened at a [`Logged`], in the sizes that were asked for.
#[derive(Debug)]
#[non_exhaustive]
pub enum Happened<'a> {
    /// Memory was lent.
    Lent {
        /// How much was asked for.
        size: Bytes,
        /// At a multiple of what.
        align: Bytes,
    },
    /// A request failed.
    Refused {
        /// How much was asked for.
        size: Bytes,
        /// At a multiple of what.
        align: Bytes,
        /// Why.
        error: &'a Error,
    },
    /// Memory went back.
    Returned {
        /// How much had been asked for.
        size: Bytes,
    },
}

/// Tells a function of each allocation, refusal and return, once it has happened. The pool's own
/// [recordings](granule_bank::trace) say more and cost less; this is for a few allocations of one's own.
pub struct Logged<A, F> {
    inner: A,
    tell: Arc<F>,
}

/// Tells that memory went back, when it is dropped.
pub struct Logging<F: Fn(Happened<'_>)> {
    size: Bytes,
    tell: Arc<F>,
}

impl<F: Fn(Happened<'_>)> Drop for Logging<F> {
    fn drop(&mut self) {
        (self.tell)(Happened::Returned { size: self.size });
    }
}

impl<A, F: Fn(Happened<'_>)> Logged<A, F> {
    /// Tells `tell`.
    pub fn new(inner: A, tell: F) -> Logged<A, F> {
        Logged { inner, tell: Arc::new(tell) }
    }

    /// What is around.
    pub fn inner(&self) -> &A {
        &self.inner
    }
}

impl<A: Allocate, F: Fn(Happened<'_>)> Allocate for Logged<A, F> {
    type Lent = Held<A::Lent, Logging<F>>;

    fn allocate(&self, size: Bytes, align: Bytes) -> Result<Self::Lent, Error> {
        match self.inner.allocate(size, align) {
            Ok(lent) => {
                (self.tell)(Happened::Lent { size, align });
                Ok(Held::new(lent, Logging { size, tell: Arc::clone(&self.tell) }))
            }
            Err(error) => {
                (self.tell)(Happened::Refused { size, align, error: &error });
                Err(error)
            }
        }
    }
}

impl<A: Clone, F> Clone for Logged<A, F> {
    fn clone(&self) -> Logged<A, F> {
        Logged { inner: self.inner.clone(), tell: Arc::clone(&self.tell) }
    }
}

impl<A: fmt::Debug, F> fmt::Debug for Logged<A, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logged").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<F: Fn(Happened<'_>)> fmt::Debug for Logging<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logging").field("size", &self.size).finish_non_exhaustive()
    }
}
