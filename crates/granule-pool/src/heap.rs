//! `Heap`: what one stream, or one part of this process, allocates from.

use std::fmt;
use std::sync::Arc;

use bytemuck::Pod;
use granule_bank::Owner;
use granule_bank::trace::{self, Event as Traced};
use granule_device::{Bytes, Device, LeaseMode, Stream};

use crate::arena::{Arena, Want};
use crate::capture::Kept;
use crate::clocks::StreamClock;
use crate::ladder::Found;
use crate::lease::{Extra, Lease};
use crate::policy::{Class, Stamp, Tick, UNIT};
use crate::pool::PoolInner;
use crate::shell::{Entry, Shell};
use crate::stats::HeapStats;
use crate::{Error, Pool, PoolSlice};

/// A handle to one stream's part of a pool, or to a *local* part that no stream uses. Cheap to clone; every clone is the same heap.
/// Threads may share one; threads that each have their own do not wait for each other.
///
/// What a stream's heap leases may be used by work of that stream without any wait, and the lease may be dropped as soon as that
/// work was given to the stream. A local heap's leases are for this process's own threads, and for
/// [regions](granule_device::Region), which are held until the work on them has run: each use has ended when the lease is
/// dropped.
///
/// With the last handle the heap is closed: its free blocks go back to the pool. Leases live on.
pub struct Heap {
    core: Arc<HeapCore>,
}

/// The heap itself, kept by its handles, its leases and its spare references.
pub(crate) struct HeapCore {
    pub(crate) shell: &'static Shell,
    pub(crate) pool: Arc<PoolInner>,
    pub(crate) arena: Arc<Arena>,
    /// A local heap has none.
    pub(crate) stream: Option<HeapStream>,
}

/// A stream's heap's stream.
pub(crate) struct HeapStream {
    pub(crate) stream: Arc<Stream>,
    pub(crate) clock: Arc<StreamClock>,
}

impl HeapCore {
    pub(crate) fn clock(&self) -> Option<&StreamClock> {
        self.stream.as_ref().map(|own| &*own.clock)
    }

    pub(crate) fn trace(&self) -> Option<trace::StreamId> {
        self.clock().map(StreamClock::trace)
    }

    /// What to stamp with what is given back now; 0 where nobody can still use it.
    #[inline]
    pub(crate) fn now(&self) -> Tick {
        self.stream.as_ref().map_or(0, |own| own.clock.now())
    }

    /// Who may still use a block of this heap's stream's that was given back at `tick`.
    pub(crate) fn stamp(&self, tick: Tick) -> Stamp {
        match &self.stream {
            Some(own) if tick > 0 => Stamp::One(own.clock.id(), tick),
            _ => Stamp::Idle,
        }
    }

    /// Whether somebody wants to hear of each lease.
    #[inline]
    fn is_watched(&self) -> bool {
        self.pool.device().lease_mode() != LeaseMode::Quiet || self.pool.tracer().is_on()
    }

    /// One handle more.
    pub(crate) fn open(self: &Arc<HeapCore>) -> Heap {
        let mut state = self.shell.lock();
        state.handles += 1;
        state.cached = state.private.is_none();
        drop(state);
        Heap { core: Arc::clone(self) }
    }

    /// Gives the cached blocks back to their arenas, as far as `keep` bytes of them.
    pub(crate) fn flush(&self, keep: u64) {
        let mut out = Vec::new();
        let waiting = {
            let mut state = self.shell.lock();
            state.cache.drain_to(keep, &mut out);
            std::mem::take(&mut state.waiting)
        };
        self.give(out);
        let waiting = waiting.into_iter().map(|(_, block, stamp)| block.home(stamp));
        self.pool.give(waiting.collect());
    }

    /// Gives blocks of this heap's cache back to their arenas.
    pub(crate) fn give(&self, out: Vec<(Class, Entry)>) {
        let stamped = |(_, entry): (Class, Entry)| entry.block.home(self.stamp(entry.tick));
        self.pool.give(out.into_iter().map(stamped).collect());
    }

    /// Lets go of blocks over the limit: the older half of them.
    #[cold]
    pub(crate) fn shrink(&self) {
        self.flush(self.pool.cache_limit() / 2);
    }
}

impl Drop for HeapCore {
    fn drop(&mut self) {
        if let Some(own) = &self.stream {
            self.pool.clocks().close(&own.clock);
            self.pool.tracer().retract(Traced::StreamGone { stream: own.clock.trace() });
        }
        self.shell.put();
    }
}

impl fmt::Debug for HeapCore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.clock() {
            Some(clock) => write!(f, "Heap({}, stream {})", self.pool.owner(), clock.id().0),
            None => write!(f, "Heap({}, local)", self.pool.owner()),
        }
    }
}

impl Heap {
    pub(crate) fn core(&self) -> &Arc<HeapCore> {
        &self.core
    }

    /// The pool that it is a part of.
    pub fn pool(&self) -> Pool {
        Pool::of(Arc::clone(&self.core.pool))
    }

    /// The device whose memory it is.
    pub fn device(&self) -> &Device {
        self.core.pool.device()
    }

    /// The stream whose work uses its leases; a local heap has none.
    pub fn stream(&self) -> Option<&Arc<Stream>> {
        self.core.stream.as_ref().map(|own| &own.stream)
    }

    /// Memory of at least `size` bytes at a multiple of 256. Its contents are whatever they were. No bytes are a lease too: it has
    /// an address of its own.
    ///
    /// Where a block of the size is free in this heap that takes a lock and no driver call; else see the ladder in the crate's
    /// documentation. Not to be called in a function that runs on a stream, which could come to wait for itself.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::TooLarge`]; [`Error::Device`] where a call failed and nothing else served the request.
    #[inline]
    pub fn alloc(&self, size: Bytes) -> Result<Lease, Error> {
        match Class::of(size.get()).and_then(|class| self.alloc_cached(class, size)) {
            Some(lease) => Ok(lease),
            None => self.alloc_slowly(size, UNIT, None),
        }
    }

    /// The fast path: two words, so that they come back in registers.
    fn alloc_cached(&self, class: Class, size: Bytes) -> Option<Lease> {
        let core = &*self.core;
        if core.is_watched() {
            return None;
        }
        let mut state = core.shell.lock();
        let Entry { mut block, .. } = state.cache.pop(class)?;
        state.counts.hits += 1;
        state.counts.take(size.get(), block.given);
        let spare = state.spare.pop();
        drop(state);
        block.size = size;
        Some(Lease::new(spare.unwrap_or_else(|| Arc::clone(&self.core)), block))
    }

    /// As [`Heap::alloc`], at a multiple of `align`: a power of two, up to the size of a granule.
    ///
    /// # Errors
    /// [`Error::Alignment`]; else as [`Heap::alloc`].
    pub fn alloc_aligned(&self, size: Bytes, align: Bytes) -> Result<Lease, Error> {
        let limit = self.core.pool.largest_alignment();
        if !align.get().is_power_of_two() || align > limit {
            return Err(Error::Alignment { requested: align, limit });
        }
        if align.get() <= UNIT { self.alloc(size) } else { self.alloc_slowly(size, align.get(), None) }
    }

    /// As [`Heap::alloc_aligned`], with another owner's name than the pool's in recordings. The bank counts the memory for the pool's.
    ///
    /// # Errors
    /// As [`Heap::alloc_aligned`].
    pub fn alloc_for(&self, owner: &Owner, size: Bytes, align: Bytes) -> Result<Lease, Error> {
        if self.core.pool.tracer().is_on() {
            let limit = self.core.pool.largest_alignment();
            if !align.get().is_power_of_two() || align > limit {
                return Err(Error::Alignment { requested: align, limit });
            }
            return self.alloc_slowly(size, align.get().max(UNIT), Some(owner));
        }
        self.alloc_aligned(size, align)
    }

    /// Memory for `len` values, whose contents are whatever they were.
    ///
    /// # Errors
    /// As [`Heap::alloc`].
    pub fn alloc_slice<T: Pod>(&self, len: usize) -> Result<PoolSlice<T>, Error> {
        let Some(size) = Bytes::from_usize(len).checked_mul(size_of::<T>() as u64) else {
            return Err(self.core.pool.too_large(Bytes::MAX));
        };
        let align = Bytes::from_usize(align_of::<T>().max(1));
        let lease = self.alloc_aligned(size, align)?;
        Ok(PoolSlice::new(lease, len))
    }

    /// What it has leased and what it has free.
    pub fn stats(&self) -> HeapStats {
        HeapStats::of(&self.core)
    }

    #[cold]
    #[inline(never)]
    fn alloc_slowly(&self, size: Bytes, align: u64, owner: Option<&Owner>) -> Result<Lease, Error> {
        let (core, pool) = (&self.core, &*self.core.pool);
        let class = if align <= UNIT { Class::of(size.get().max(1)) } else { None };
        let rounded =
            class.map_or(size.get().max(1).checked_next_multiple_of(UNIT), |class| Some(class.size()));
        let Some(rounded) = rounded else { return Err(pool.too_large(size)) };
        let mut found = core.find(Want { size: rounded, align }, class, size)?;
        found.block.size = size;
        found.block.extra = match Extra::of(pool, &found) {
            Ok(extra) => extra,
            Err(error) => {
                core.put_back(found);
                return Err(error);
            }
        };
        let mut state = core.shell.lock();
        if found.hit {
            state.counts.hits += 1;
        } else {
            state.counts.misses += 1;
        }
        state.counts.take(size.get(), found.block.given);
        let spare = state.spare.pop();
        drop(state);
        if pool.tracer().is_on() {
            self.tell(&found, align, owner);
        }
        Ok(Lease::new(spare.unwrap_or_else(|| Arc::clone(core)), found.block))
    }

    fn tell(&self, found: &Found, align: u64, owner: Option<&Owner>) {
        let pool = &*self.core.pool;
        let (pool_id, pool_owner) = pool.trace();
        let owner = owner.map_or(pool_owner, |owner| pool.tracer().owner(owner));
        let alloc = Traced::Alloc {
            at: found.block.address().addr(),
            pool: pool_id,
            owner,
            stream: self.core.trace(),
            requested: found.block.size,
            given: Bytes::new(found.block.given),
            align: Bytes::new(align),
        };
        let steal = found.from.map(|from| Traced::Steal { at: found.block.address().addr(), from });
        pool.tracer().emit_all(|| std::iter::once(alloc).chain(steal));
    }
}

impl HeapCore {
    /// Undoes a [`HeapCore::find`].
    fn put_back(&self, found: Found) {
        let Found { block, account, .. } = found;
        let mut state = self.shell.lock();
        match (block.class, account) {
            (Some(class), None) if state.cached => {
                let tick = self.now();
                state.cache.push(class, Entry { block, tick });
            }
            (_, account) => {
                drop(state);
                let kept = Kept { stamp: self.stamp(self.now()), block };
                let kept = match account {
                    Some(account) => account.take_back(kept, true),
                    None => Some(kept),
                };
                self.pool.give(kept.into_iter().map(|kept| kept.block.home(kept.stamp)).collect());
            }
        }
    }
}

impl Clone for Heap {
    fn clone(&self) -> Heap {
        self.core.open()
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        let mut state = self.core.shell.lock();
        state.handles -= 1;
        if state.handles > 0 {
            return;
        }
        state.cached = false;
        let spare = std::mem::take(&mut state.spare);
        let private = state.private.take();
        drop(state);
        drop(spare);
        // Nobody is left to end a capture: what was kept for its graph goes back once all work is done.
        drop(private.map(|private| self.core.keep(private)));
        self.core.flush(0);
    }
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.core.fmt(f)
    }
}
