//! `Heap`: what one stream, or one part of this process, allocates from.

use std::fmt;
use std::mem::{self, ManuallyDrop};
use std::ptr;
use std::sync::{Arc, Weak};

use bytemuck::Pod;
use granule_bank::Owner;
use granule_bank::trace::{self, Event as Traced, Tracer};
use granule_device::{Bytes, Device, Event, LeaseMode, Stream};

use crate::arena::{Arena, Want};
use crate::capture::{Kept, Private};
use crate::clocks::StreamClock;
use crate::extra::Extra;
use crate::ladder::Found;
use crate::lease::{Lease, Small};
use crate::policy::{Class, Stamp, Tick, UNIT};
use crate::pool::PoolInner;
use crate::shell::{Block, Counts, Entry, Shell, Spot, State};
use crate::stats::HeapStats;
use crate::sync::MutexGuard;
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
    /// A local heap has none.
    stream: Option<Arc<Stream>>,
}

/// The heap itself, kept by its handles, by large leases, and by its shell while small ones are out.
pub(crate) struct HeapCore {
    pub(crate) shell: &'static Shell,
    // These two are taken out when this is dropped.
    pub(crate) pool: ManuallyDrop<Arc<PoolInner>>,
    pub(crate) arena: ManuallyDrop<Arc<Arena>>,
    /// A local heap has none.
    pub(crate) stream: Option<HeapStream>,
    // The pool's, one step nearer.
    device: Device,
    tracer: Tracer,
}

/// A stream's heap's stream.
pub(crate) struct HeapStream {
    /// Not kept: what it was given keeps leases, which keep this.
    pub(crate) stream: Weak<Stream>,
    /// When it is gone and its work has run: later than when the above finds nobody.
    pub(crate) end: Event,
    pub(crate) clock: Arc<StreamClock>,
}

impl HeapStream {
    /// Waits here for all that the stream was given.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(crate) fn finish(&self) -> Result<(), Error> {
        match self.stream.upgrade() {
            Some(stream) => stream.record()?.synchronize(),
            None => self.end.synchronize(),
        }
        Ok(())
    }

    /// Whether it is this stream.
    pub(crate) fn is(&self, stream: &Arc<Stream>) -> bool {
        ptr::eq(self.stream.as_ptr(), Arc::as_ptr(stream))
    }
}

impl HeapCore {
    pub(crate) fn new(
        pool: &Arc<PoolInner>,
        shell: &'static Shell,
        arena: Arc<Arena>,
        stream: Option<HeapStream>,
    ) -> Arc<HeapCore> {
        let (device, tracer) = (pool.device().clone(), pool.tracer().clone());
        let (pool, arena) = (ManuallyDrop::new(Arc::clone(pool)), ManuallyDrop::new(arena));
        Arc::new(HeapCore { shell, pool, arena, stream, device, tracer })
    }

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
        self.device.lease_mode() != LeaseMode::Quiet || self.tracer.is_on()
    }

    /// The fast path: the two words of a lease of a cached block, zeros where there is none. They come back in registers, which an
    /// `Option<Lease>` would not.
    #[inline(always)]
    fn pop(&self, class: Class, size: u64) -> (u64, u64) {
        if self.is_watched() {
            return (0, 0);
        }
        let waste = class.size() - size;
        let share = Counts::share(class.size(), waste);
        let mut state = self.shell.lock();
        let Some(entry) = state.cache.pop(class) else { return (0, 0) };
        state.counts.hits += 1;
        state.counts.take(share);
        drop(state);
        Lease::words(entry.spot, Small::new(class, waste as u16, entry.number()))
    }

    /// One handle more, of its stream.
    pub(crate) fn open(self: &Arc<HeapCore>, stream: Option<&Arc<Stream>>) -> Heap {
        let mut state = self.shell.lock();
        state.handles += 1;
        self.shell.fill(&mut state, self);
        // With a handle it is nothing that goes.
        let _ = state.update();
        drop(state);
        Heap { core: Arc::clone(self), stream: stream.cloned() }
    }

    /// Gives the cached blocks back to their arenas, as far as `keep` bytes of them.
    pub(crate) fn flush(&self, keep: u64) {
        let mut out = Vec::new();
        let mut state = self.shell.lock();
        state.cache.drain_to(keep, &mut out);
        let waiting = mem::take(&mut state.waiting);
        state.counts.owned -= out.len() as u64;
        state.flushed_at = state.counts.hits + state.counts.misses;
        let gone = state.update();
        drop(state);
        self.give(out);
        self.pool.give(waiting.into_iter().map(|(_, block, stamp)| block.home(stamp)).collect());
        drop(gone);
    }

    /// Gives blocks that were in this heap's cache back to their arenas.
    fn give(&self, out: Vec<(Class, Entry)>) {
        let now = self.now();
        let mut blocks = self.pool.blocks();
        let homes = out.into_iter().map(|(class, entry)| {
            let block = blocks.take(entry.number(), entry.spot.at(), Some(class));
            block.home(self.stamp(entry.tick(now)))
        });
        let homes: Vec<_> = homes.collect();
        drop(blocks);
        self.pool.give(homes);
    }

    /// What is left to do after a free: the heap is closed, or captured, or has more in its cache than it may.
    #[cold]
    #[inline(never)]
    pub(crate) fn after_free(mut state: MutexGuard<'_, State>) {
        let Some(core) = state.core.clone() else { unreachable!("a heap with a lease is kept") };
        if state.is_cached() {
            drop(state);
            return core.flush(core.pool.cache_limit() / 2);
        }
        let account = state.private.as_ref().map(Private::account);
        // Beside what was just freed, there may be what a heap has not let go of yet that is being closed or captured just now.
        let mut freed = Vec::with_capacity(1);
        state.cache.drain_to(0, &mut freed);
        state.counts.owned -= freed.len() as u64;
        let gone = state.update();
        drop(state);
        let now = core.now();
        let mut blocks = core.pool.blocks();
        let freed = freed.into_iter().map(|(class, entry)| {
            let block = blocks.take(entry.number(), entry.spot.at(), Some(class));
            Kept::new(block, core.stamp(entry.tick(now)))
        });
        let mut freed: Vec<Kept> = freed.collect();
        drop(blocks);
        if let Some(account) = account {
            // It was leased before the capture: captured work may use it, and so may the graph's launches.
            freed = freed.into_iter().filter_map(|kept| account.take_back(kept, false)).collect();
        }
        core.pool.give_kept(freed);
        drop(gone);
    }

    /// Takes blocks into the cache that this heap's stream may have at once; where there is no cache they go to their arenas.
    pub(crate) fn welcome(&self, blocks: Vec<(Block, Stamp)>) {
        let mut home = Vec::new();
        let mut entries = Vec::with_capacity(blocks.len());
        let mut table = self.pool.blocks();
        for (block, stamp) in blocks {
            match (block.class, Spot::new(block.at, self.shell)) {
                (Some(class), Some(spot)) => {
                    // Whoever waits for this stream's tick waits for what it has waited for.
                    let tick = if stamp.is_idle() { 0 } else { self.now() };
                    entries.push((class, Entry::new(spot, table.add(&block), tick), block, stamp));
                }
                _ => home.push(block.home(stamp)),
            }
        }
        drop(table);
        let mut state = self.shell.lock();
        if state.is_cached() {
            state.counts.owned += entries.len() as u64;
            entries.drain(..).for_each(|(class, entry, ..)| state.cache.push(class, entry));
            let _ = state.update();
            let over = !state.is_free_short();
            drop(state);
            if over {
                self.flush(self.pool.cache_limit() / 2);
            }
        } else {
            drop(state);
            let mut table = self.pool.blocks();
            for (class, entry, block, stamp) in entries {
                table.take(entry.number(), block.at, Some(class));
                home.push(block.home(stamp));
            }
        }
        self.pool.give(home);
    }
}

impl Drop for HeapCore {
    fn drop(&mut self) {
        if let Some(own) = &self.stream {
            self.pool.clocks().close(&own.clock);
            self.pool.tracer().retract(Traced::StreamGone { stream: own.clock.trace() });
        }
        self.pool.note_gone(self);
        self.shell.put();
        // SAFETY: they are taken once, here, and nothing uses them afterwards.
        let (pool, arena) =
            unsafe { (ManuallyDrop::take(&mut self.pool), ManuallyDrop::take(&mut self.arena)) };
        if Stream::works_here() {
            // The last of a pool may have to wait for its streams, and so for this one, which waits for this drop. Where there is no
            // thread for it, it is dropped here.
            let builder = std::thread::Builder::new().name("granule-pool".to_owned());
            let _ = builder.spawn(move || drop((arena, pool)));
        }
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
        self.stream.as_ref()
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
        if let Some(class) = Class::of(size.get())
            && let Some(lease) = Lease::of_words(self.core.pop(class, size.get()))
        {
            return Ok(lease);
        }
        self.alloc_slowly(size, UNIT, None)
    }

    /// As [`Heap::alloc`], at a multiple of `align`: a power of two, up to the size of a granule.
    ///
    /// # Errors
    /// [`Error::Alignment`]; else as [`Heap::alloc`].
    pub fn alloc_aligned(&self, size: Bytes, align: Bytes) -> Result<Lease, Error> {
        self.check_alignment(align)?;
        if align.get() <= UNIT { self.alloc(size) } else { self.alloc_slowly(size, align.get(), None) }
    }

    /// As [`Heap::alloc_aligned`], with another owner's name than the pool's in recordings. The bank counts the memory for the pool's.
    ///
    /// # Errors
    /// As [`Heap::alloc_aligned`].
    pub fn alloc_for(&self, owner: &Owner, size: Bytes, align: Bytes) -> Result<Lease, Error> {
        if !self.core.pool.tracer().is_on() {
            return self.alloc_aligned(size, align);
        }
        self.check_alignment(align)?;
        self.alloc_slowly(size, align.get().max(UNIT), Some(owner))
    }

    fn check_alignment(&self, align: Bytes) -> Result<(), Error> {
        let limit = self.core.pool.largest_alignment();
        let possible = align.get().is_power_of_two() && align <= limit;
        if possible { Ok(()) } else { Err(Error::Alignment { requested: align, limit }) }
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
        let found = core.find(Want { size: rounded, align }, class, size)?;
        let extra = match Extra::of(pool, &found, size, align) {
            Ok(extra) => extra,
            Err(error) => {
                core.put_back(found);
                return Err(error);
            }
        };
        if pool.tracer().is_on() {
            self.tell(&found, extra.as_ref(), size, align, owner);
        }
        let block = found.block;
        let waste = u16::try_from(block.given - size.get()).ok();
        let mut state = core.shell.lock();
        if found.hit {
            state.counts.hits += 1;
        } else {
            state.counts.misses += 1;
        }
        if let (Some(class), None, Some(waste), Some(spot)) =
            (block.class, &extra, waste, Spot::new(block.at, core.shell))
        {
            state.counts.take(Counts::share(block.given, u64::from(waste)));
            state.counts.owned += 1;
            let _ = state.update();
            drop(state);
            let number = pool.blocks().add(&block);
            return Ok(Lease::small(spot, Small::new(class, waste, number)));
        }
        state.counts.take_large(block.given, size.get());
        drop(state);
        Ok(Lease::large(Arc::clone(core), block, size, extra.unwrap_or_default()))
    }

    fn tell(&self, found: &Found, extra: Option<&Extra>, size: Bytes, align: u64, owner: Option<&Owner>) {
        let pool = &*self.core.pool;
        let (pool_id, pool_owner) = pool.trace();
        let at = extra.map_or(found.block.at, |extra| extra.address(&found.block)).addr();
        let owner = owner.map_or(pool_owner, |owner| pool.tracer().owner(owner));
        let alloc = Traced::Alloc {
            at,
            pool: pool_id,
            owner,
            stream: self.core.trace(),
            requested: size,
            given: Bytes::new(found.block.given),
            align: Bytes::new(align),
        };
        let steal = found.from.map(|from| Traced::Steal { at, from });
        pool.tracer().emit_all(|| std::iter::once(alloc).chain(steal));
    }
}

impl HeapCore {
    /// Undoes a [`HeapCore::find`].
    fn put_back(&self, found: Found) {
        let stamp = self.stamp(self.now());
        let kept = match found.account {
            Some(account) => account.take_back(Kept::new(found.block, stamp), true),
            None => return self.welcome(vec![(found.block, stamp)]),
        };
        self.pool.give_kept(kept.into_iter().collect());
    }
}

impl Clone for Heap {
    fn clone(&self) -> Heap {
        self.core.open(self.stream.as_ref())
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        let mut state = self.core.shell.lock();
        state.handles -= 1;
        if state.handles > 0 {
            return;
        }
        drop(state);
        // Nobody is left to end a capture: what was kept for its graph goes back once all work is done.
        let (memory, gone) = self.core.end_private();
        drop(memory);
        self.core.flush(0);
        drop(gone);
    }
}

impl fmt::Debug for Heap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.core.fmt(f)
    }
}
