//! `Shell`: what of a heap stands behind its lock, and how a lease finds it.
//!
//! The fast path of the pool is a lock, a list and a few additions. There is no time in it to count references: a lease of a class
//! names its heap by the number of the shell, and is counted by the block being out. A heap that is closed is let go of with the
//! last such block. Shells themselves are never freed; they serve another heap later.

use std::num::NonZeroU64;
use std::ptr;
use std::sync::atomic::AtomicPtr as Table;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError};

use granule_device::{Bytes, DevicePtr, DeviceSlice};

use crate::capture::Private;
use crate::clocks::StreamClock;
use crate::heap::HeapCore;
use crate::policy::{BlockId, Cache, Class, Stamp, Tick};
use crate::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// A block that was cut from an arena, from then until it goes back there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) at: DevicePtr,
    pub(crate) id: BlockId,
    /// The number of the arena.
    pub(crate) arena: u32,
    /// Its size in bytes.
    pub(crate) given: u64,
    /// Where it goes when it is given back; none: to its arena.
    pub(crate) class: Option<Class>,
}

impl Block {
    /// What its arena takes it back with.
    pub(crate) fn home(&self, stamp: Stamp) -> (u32, BlockId, Stamp) {
        (self.arena, self.id, stamp)
    }
}

/// Where a block lies and whose heap's it is, in one word:
///
/// ```text
///  63            20 19           0
///  | address / 256 | shell number |
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot(NonZeroU64);

impl Spot {
    const SHELL_BITS: u32 = 20;
    /// Addresses end here: far beyond what processors and GPUs translate.
    pub(crate) const END: u64 = 1 << 52;

    /// None for what is no address of a block.
    pub(crate) fn new(at: DevicePtr, shell: &Shell) -> Option<Spot> {
        let bits = (at.addr() << (Spot::SHELL_BITS - 8)) | u64::from(shell.number);
        NonZeroU64::new(bits).filter(|_| at.addr() < Spot::END && at.addr() >= 256).map(Spot)
    }

    #[inline]
    pub(crate) fn to_bits(self) -> u64 {
        self.0.get()
    }

    #[inline]
    pub(crate) fn from_bits(bits: u64) -> Option<Spot> {
        NonZeroU64::new(bits).map(Spot)
    }

    #[inline]
    pub(crate) fn at(self) -> DevicePtr {
        pointer((self.0.get() >> (Spot::SHELL_BITS - 8)) & !255)
    }

    #[inline]
    pub(crate) fn shell(self) -> &'static Shell {
        let number = self.0.get() as usize % MOST;
        // SAFETY: a spot is made of a shell, which is in the table and never freed.
        unsafe { &*SHELLS[number].load(Relaxed) }
    }
}

/// The address that is this number.
#[inline]
fn pointer(address: u64) -> DevicePtr {
    let origin = DeviceSlice::from(&[][..]).ptr();
    origin.add(Bytes::new(address.wrapping_sub(origin.addr())))
}

/// A free block of a class in a heap's cache: the heap's own stream may still use it, up to the tick, and nobody else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) spot: Spot,
    /// The lower half of the tick above the block's number in the pool's table: one word, for one store.
    rest: u64,
}

impl Entry {
    #[inline]
    pub(crate) fn new(spot: Spot, number: u32, tick: Tick) -> Entry {
        Entry { spot, rest: (tick << 32) | u64::from(number) }
    }

    /// The block's number in the pool's table.
    #[inline]
    pub(crate) fn number(&self) -> u32 {
        self.rest as u32
    }

    /// The tick, of which the stream is at `now`: the latest that it can be, which at worst is waited for in vain.
    pub(crate) fn tick(&self, now: Tick) -> Tick {
        now - Tick::from((now as u32).wrapping_sub((self.rest >> 32) as u32))
    }
}

/// What the blocks are that leases and caches name by number.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    /// Arena, block and size of each.
    rows: Vec<(u32, BlockId, u64)>,
    free: Vec<u32>,
}

impl Blocks {
    /// A block that a cache or a lease will name.
    pub(crate) fn add(&mut self, block: &Block) -> u32 {
        let row = (block.arena, block.id, block.given);
        match self.free.pop() {
            Some(number) => {
                self.rows[number as usize] = row;
                number
            }
            None => {
                // There is no memory for 2^32 rows and for what they are about.
                let number = self.rows.len() as u32;
                self.rows.push(row);
                number
            }
        }
    }

    /// The block of a number, which names nothing from here on.
    pub(crate) fn take(&mut self, number: u32, at: DevicePtr, class: Option<Class>) -> Block {
        let (arena, id, given) = self.rows[number as usize];
        self.free.push(number);
        Block { at, id, arena, given, class }
    }
}

/// Sums over what a heap has leased.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Of leased blocks of classes: their units of 256 bytes in the upper 30 bits, and the bytes of them that nobody asked for in
    /// the lower 34. One addition for both.
    used: u64,
    /// The most that this was since `large` changed.
    high: u64,
    /// The most bytes that were leased before that.
    peak: u64,
    /// Allocations that the cache served.
    pub(crate) hits: u64,
    /// Allocations that it did not serve.
    pub(crate) misses: u64,
    /// Blocks of classes that are the heap's: leased as such, or in its cache.
    pub(crate) owned: u64,
    /// Leases that stand for themselves, the bytes of their blocks, and what was asked for of those.
    large: (u64, u64, u64),
}

/// One lease's part of [`Counts::used`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share(u64);

const WASTE_BITS: u32 = 34;

impl Counts {
    /// What a block of a class adds while it is leased: worked out before the lock is taken.
    #[inline]
    pub(crate) fn share(given: u64, waste: u64) -> Share {
        Share((given << (WASTE_BITS - 8)) + waste)
    }

    /// A block of a class is leased.
    #[inline]
    pub(crate) fn take(&mut self, share: Share) {
        self.used += share.0;
        if self.used > self.high {
            self.high = self.used;
        }
    }

    /// It is given back.
    #[inline]
    pub(crate) fn give(&mut self, share: Share) {
        self.used -= share.0;
    }

    /// A lease that stands for itself is made.
    pub(crate) fn take_large(&mut self, given: u64, requested: u64) {
        self.settle();
        let (count, bytes, asked) = self.large;
        self.large = (count + 1, bytes + given, asked + requested);
        self.settle();
    }

    /// It is given back.
    pub(crate) fn give_large(&mut self, given: u64, requested: u64) {
        self.settle();
        let (count, bytes, asked) = self.large;
        self.large = (count - 1, bytes - given, asked - requested);
    }

    fn settle(&mut self) {
        self.peak = self.peak();
        self.high = self.used;
    }

    fn bytes(used: u64) -> u64 {
        (used >> WASTE_BITS) << 8
    }

    /// Bytes of leased blocks.
    pub(crate) fn given(&self) -> u64 {
        Counts::bytes(self.used) + self.large.1
    }

    /// The most that this ever was.
    pub(crate) fn peak(&self) -> u64 {
        self.peak.max(Counts::bytes(self.high) + self.large.1)
    }

    /// Bytes asked for, of live leases.
    pub(crate) fn requested(&self) -> u64 {
        Counts::bytes(self.used) - (self.used & ((1 << WASTE_BITS) - 1)) + self.large.2
    }
}

/// What a heap's lock guards.
#[derive(Debug, Default)]
pub(crate) struct State {
    /// Frees go the long way where less than this is used: where the cache is over its limit, and always where there is no cache.
    least: u64,
    /// How many bytes the cache may have.
    limit: u64,
    /// Whose ticks the entries are of; a local heap's have none.
    clock: Option<Arc<StreamClock>>,
    pub(crate) counts: Counts,
    pub(crate) cache: Cache<Entry>,
    /// The heap, for its leases: as long as it is open or one of them is out.
    pub(crate) core: Option<Arc<HeapCore>>,
    /// Blocks of a class that further streams may still use.
    pub(crate) waiting: Vec<(Class, Block, Stamp)>,
    /// How many allocations there had been when the cache was last emptied.
    pub(crate) flushed_at: u64,
    /// Handles of the heap. It is closed with the last one.
    pub(crate) handles: usize,
    /// What is kept apart while the stream is captured.
    pub(crate) private: Option<Private>,
}

impl State {
    /// Whether blocks go through the cache.
    pub(crate) fn is_cached(&self) -> bool {
        self.handles > 0 && self.private.is_none()
    }

    /// Leases that are out.
    pub(crate) fn live(&self) -> u64 {
        self.counts.owned - self.cached_blocks() + self.counts.large.0
    }

    pub(crate) fn cached_blocks(&self) -> u64 {
        Class::all().map(|class| self.cache.len(class) as u64).sum()
    }

    /// Takes note of blocks that have come or gone, and of the heap having been opened, closed or captured. Answers with the heap
    /// where nobody will ask for it any more; it is to be dropped without the lock.
    #[must_use = "dropped under the lock it may lock again"]
    pub(crate) fn update(&mut self) -> Option<Arc<HeapCore>> {
        self.least = match (self.is_cached(), self.limit) {
            (false, _) => u64::MAX,
            (true, u64::MAX) => 0,
            (true, limit) => {
                let held = Counts::bytes(self.counts.used) + self.cache.bytes();
                (held.saturating_sub(limit) >> 8) << WASTE_BITS
            }
        };
        if self.handles == 0 && self.counts.owned == 0 { self.core.take() } else { None }
    }

    /// What to stamp with what is given back now.
    #[inline]
    pub(crate) fn now(&self) -> Tick {
        self.clock.as_ref().map_or(0, |clock| clock.now())
    }

    /// Whether the last free can end in the cache without anything else.
    #[inline]
    pub(crate) fn is_free_short(&self) -> bool {
        self.counts.used >= self.least
    }
}

/// A heap's lock. It outlives every heap.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Shell {
    state: Mutex<State>,
    /// The same as [`State::core`], to be looked at by whoever has a lease of it.
    core: AtomicPtr<HeapCore>,
    number: u32,
}

/// How many heaps there can be at a time in a process.
pub(crate) const MOST: usize = 4096;

/// By number; null where there never was one. A number comes to another thread with whatever brings it the lease.
static SHELLS: [Table<Shell>; MOST] = [const { Table::new(ptr::null_mut()) }; MOST];

/// Shells that were made.
static MADE: AtomicU32 = AtomicU32::new(0);

/// Shells without a heap.
static FREE: Mutex<Vec<&'static Shell>> = Mutex::new(Vec::new());

impl Shell {
    fn new(number: u32) -> Box<Shell> {
        let state = State { least: u64::MAX, ..State::default() };
        Box::new(Shell { state: Mutex::new(state), core: AtomicPtr::new(ptr::null_mut()), number })
    }

    /// One that nobody has; none where there are too many heaps.
    pub(crate) fn get() -> Option<&'static Shell> {
        let mut free = lock(&FREE);
        if let Some(shell) = free.pop() {
            return Some(shell);
        }
        // Under the lock: numbers are given out one by one.
        let number = MADE.load(Relaxed);
        let place = SHELLS.get(number as usize)?;
        MADE.store(number + 1, Relaxed);
        let shell: &'static Shell = Box::leak(Shell::new(number));
        place.store(ptr::from_ref(shell).cast_mut(), Relaxed);
        Some(shell)
    }

    /// For the next heap.
    pub(crate) fn put(&'static self) {
        let before = std::mem::replace(&mut *self.lock(), State { least: u64::MAX, ..State::default() });
        drop(before);
        lock(&FREE).push(self);
    }

    /// The heap is there for leases from here on.
    pub(crate) fn fill(&self, state: &mut State, core: &Arc<HeapCore>) {
        self.core.store(Arc::as_ptr(core).cast_mut(), Ordering::Release);
        state.limit = core.pool.cache_limit();
        state.clock = core.stream.as_ref().map(|own| Arc::clone(&own.clock));
        state.core = Some(Arc::clone(core));
    }

    /// Whose shell it is. For who has a lease of it.
    ///
    /// # Safety
    /// - A block that is counted as owned by the heap is leased for as long as the answer is used: until then the shell keeps
    ///   the heap.
    pub(crate) unsafe fn heap<'a>(&self) -> &'a HeapCore {
        // SAFETY: `fill` has put it here before anything was leased, and the caller promises that it is still kept.
        unsafe { &*self.core.load(Ordering::Acquire) }
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
