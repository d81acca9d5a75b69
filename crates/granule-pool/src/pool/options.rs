//! `PoolOptions`: how a pool is set up.

use std::fmt;
use std::sync::Arc;

use granule_bank::Owner;
use granule_device::Bytes;

/// What the owner of a pool gives up when nothing else serves a request, given its size; answers how much that was.
pub(super) type Callback = Arc<dyn Fn(Bytes) -> Bytes + Send + Sync>;

/// How a pool is set up.
#[derive(Clone)]
#[non_exhaustive]
pub struct PoolOptions {
    /// Whom the bank counts the memory for; by default "pool".
    pub owner: Owner,
    /// How many bytes of free blocks a heap keeps at hand. By default it is not limited: the free blocks are not lost to others,
    /// who take them where memory is short.
    pub cache_limit: Bytes,
    pub(super) reclaim: Option<Callback>,
}

impl Default for PoolOptions {
    fn default() -> PoolOptions {
        PoolOptions { owner: Owner::new("pool"), cache_limit: Bytes::MAX, reclaim: None }
    }
}

impl PoolOptions {
    /// The defaults.
    pub fn new() -> PoolOptions {
        PoolOptions::default()
    }

    /// Counted for this owner.
    pub fn owner(self, name: impl AsRef<str>) -> PoolOptions {
        PoolOptions { owner: Owner::new(name), ..self }
    }

    /// Keeping no more than this of free blocks in a heap.
    pub fn cache_limit(self, limit: Bytes) -> PoolOptions {
        PoolOptions { cache_limit: limit, ..self }
    }

    /// Asking this function before a request fails: it is given the size that is missing, gives up what it can, leases of this pool for
    /// example, and answers how much that was. It is asked at most eight times for one request, and not again after it answers
    /// with nothing. No lock is held while it runs: it may allocate from this pool and others, and what is refused to it meanwhile is
    /// refused without it being asked again.
    ///
    /// The pool keeps it for as long as there is a heap or a lease. One that keeps a [`Heap`](crate::Heap), a [`Pool`](crate::Pool) or a [`Lease`](crate::Lease)
    /// of this pool keeps the pool, which then is never dropped: keep what it gives up outside, behind a [`Weak`](std::sync::Weak).
    pub fn reclaim(self, callback: impl Fn(Bytes) -> Bytes + Send + Sync + 'static) -> PoolOptions {
        PoolOptions { reclaim: Some(Arc::new(callback)), ..self }
    }
}

impl fmt::Debug for PoolOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (owner, limit) = (&self.owner, self.cache_limit);
        f.debug_struct("PoolOptions")
            .field("owner", owner)
            .field("cache_limit", &limit)
            .finish_non_exhaustive()
    }
}
