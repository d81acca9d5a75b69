//! Adaptors: allocators around an allocator, each of which adds one thing.
//!
//! An [`Allocate`] is anything that lends memory until what it lent is dropped: a [`Heap`], or an adaptor around another one.
//! They compose in any order, by type: what is not there costs nothing.
//!
//! | adaptor | adds |
//! | --- | --- |
//! | [`Limited`] | a limit on what is lent at the same time |
//! | [`Counted`] | statistics of what went through it |
//! | [`Logged`] | a function that hears of each allocation, refusal and return |
//!
//! ```
//! use granule_bank::{Bank, BankOptions};
//! use granule_device::{Bytes, Device, HostOptions};
//! use granule_pool::{Error, Pool, PoolOptions, adaptor::Allocate};
//! # let device = Device::host_with(HostOptions::new().capacity(Bytes::mib(16)))?;
//! let pool = Pool::new(&Bank::new(device, BankOptions::new())?, PoolOptions::new())?;
//! // One request of a server may have this much, and how much it had is known afterwards.
//! let request = pool.local()?.limited(Bytes::mib(1)).counted();
//! let mut logits = request.allocate(Bytes::kib(600), Bytes::new(256))?;
//! logits.slice_mut()?.as_host_mut().ok_or("on the host")?.fill(0); // what is lent is the heap's lease
//! assert!(matches!(request.allocate(Bytes::kib(600), Bytes::new(256)), Err(Error::Limit { .. })));
//! drop(logits);
//! assert_eq!(request.stats().peak, Bytes::kib(600));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod counted;
mod held;
mod limited;
mod logged;
#[cfg(test)]
mod tests;

pub use counted::{Counted, CountedStats, Counting};
pub use held::Held;
pub use limited::{Limited, Limiting};
pub use logged::{Happened, Logged, Logging};

use granule_device::Bytes;

use crate::{Error, Heap, Lease};

/// Something that lends memory.
pub trait Allocate {
    /// What it lends. Dropping it gives the memory back.
    type Lent;

    /// At least `size` bytes at a multiple of `align`, a power of two. The contents are whatever they were.
    ///
    /// # Errors
    /// As [`Heap::alloc_aligned`]; an adaptor's own besides.
    fn allocate(&self, size: Bytes, align: Bytes) -> Result<Self::Lent, Error>;

    /// This one, lending no more than `limit` bytes at the same time.
    fn limited(self, limit: Bytes) -> Limited<Self>
    where
        Self: Sized,
    {
        Limited::new(self, limit)
    }

    /// This one, counting what it lends.
    fn counted(self) -> Counted<Self>
    where
        Self: Sized,
    {
        Counted::new(self)
    }

    /// This one, telling a function what it does. The function is called on whichever thread allocates or gives back, and
    /// should be quick.
    fn logged<F: Fn(Happened<'_>) + Send + Sync + 'static>(self, tell: F) -> Logged<Self, F>
    where
        Self: Sized,
    {
        Logged::new(self, tell)
    }
}

impl Allocate for Heap {
    type Lent = Lease;

    fn allocate(&self, size: Bytes, align: Bytes) -> Result<Lease, Error> {
        self.alloc_aligned(size, align)
    }
}

impl<A: Allocate + ?Sized> Allocate for &A {
    type Lent = A::Lent;

    fn allocate(&self, size: Bytes, align: Bytes) -> Result<A::Lent, Error> {
        (**self).allocate(size, align)
    }
}

impl<A: Allocate + ?Sized> Allocate for std::sync::Arc<A> {
    type Lent = A::Lent;

    fn allocate(&self, size: Bytes, align: Bytes) -> Result<A::Lent, Error> {
        (**self).allocate(size, align)
    }
}
