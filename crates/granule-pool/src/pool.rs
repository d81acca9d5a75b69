//! `Pool`: the heaps over one bank for one purpose, and what they have in common.

mod options;
mod trim;

use std::cell::Cell;
use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use granule_bank::trace::{self, Event as Traced, Tracer};
use granule_bank::{Bank, Owner, ReclaimGuard, Stock};
use granule_device::{Buffer, Bytes, Device, Home, Stream};

pub use self::options::PoolOptions;
use crate::Error;
use crate::arena::Arena;
use crate::capture::{Account, Kept};
use crate::clocks::Clocks;
use crate::heap::{Heap, HeapCore, HeapStream};
use crate::ladder::Ask;
use crate::policy::{BlockId, Stamp};
use crate::shell::{Blocks, MOST, Shell, lock};
use crate::source::{Memory, Source};
use crate::stats::{Past, PoolStats, waiting};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// Memory for one purpose on one device: a heap for each stream, over one bank. Cheap to clone; every clone is the same pool.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<PoolInner>,
}

/// What heaps have in common. Kept by pools, heaps and leases.
pub(crate) struct PoolInner {
    bank: Bank,
    options: PoolOptions,
    source: Source,
    home: Home,
    clocks: Clocks,
    heaps: Mutex<Vec<Weak<HeapCore>>>,
    /// By number. An arena whose heap is gone stays while there is memory in it.
    arenas: Mutex<Vec<Option<Arc<Arena>>>>,
    /// Leases that were allocations of their own, until the work on them has run.
    apart: Mutex<Vec<(Stamp, Buffer)>>,
    /// Captured memory that was to go back when the device could not be waited for.
    late: Mutex<Vec<Arc<Account>>>,
    blocks: Mutex<Blocks>,
    tracer: Tracer,
    trace: (trace::PoolId, trace::OwnerId),
    steals: AtomicU64,
    maps: AtomicU64,
    /// What heaps did that are gone.
    past: Mutex<Past>,
    /// Registered with the bank for as long as the pool lives.
    reclaimer: OnceLock<ReclaimGuard>,
}

/// Another heap's memory, or that of one that is gone.
#[derive(Debug)]
pub(crate) struct Neighbour {
    pub(crate) core: Option<Arc<HeapCore>>,
    pub(crate) arena: Arc<Arena>,
}

/// Free memory below this is no plenty, in granules.
const SLACK: u64 = 64;

/// More free bytes than this are more than a heap needs that has leased `given`, with granules of this size.
pub(crate) fn plenty(given: u64, granule: u64) -> u64 {
    given.max(SLACK * granule)
}

impl Neighbour {
    /// Whether it has more than it seems to need.
    pub(crate) fn has_plenty(&self) -> bool {
        let Some(core) = &self.core else { return true };
        let (cached, given) = {
            let state = core.shell.lock();
            (state.cache.bytes() + waiting(&state), state.counts.given())
        };
        cached.saturating_add(self.arena.counts().free_bytes) > core.pool.plenty(given)
    }

    /// Brings together what it has free.
    pub(crate) fn flush(&self) {
        if let Some(core) = &self.core {
            core.flush(0);
        }
    }
}

impl Pool {
    /// A pool over a bank's device memory: granules where the device has virtual memory, plain allocations elsewhere.
    ///
    /// # Errors
    /// [`Error::WrongBank`] over a bank of pinned memory.
    pub fn new(bank: &Bank, options: PoolOptions) -> Result<Pool, Error> {
        if bank.is_pinned() {
            return Err(Error::WrongBank { wanted: "device memory", how: "Bank::new" });
        }
        Pool::over(bank, options, Source::of(bank))
    }

    /// A pool of pinned host memory, over a [bank of it](Bank::pinned).
    ///
    /// # Errors
    /// [`Error::WrongBank`] over a bank of device memory.
    pub fn pinned(bank: &Bank, options: PoolOptions) -> Result<Pool, Error> {
        if !bank.is_pinned() {
            return Err(Error::WrongBank { wanted: "pinned memory", how: "Bank::pinned" });
        }
        Pool::over(bank, options, Source::Pinned)
    }

    fn over(bank: &Bank, options: PoolOptions, source: Source) -> Result<Pool, Error> {
        let tracer = bank.tracer().clone();
        let trace = (trace::PoolId(tracer.number()), tracer.owner(&options.owner));
        let (pool, owner) = trace;
        tracer.declare(Traced::Pool { pool, device: bank.traced(), owner });
        let inner = Arc::new(PoolInner {
            bank: bank.clone(),
            source,
            home: source.home(bank),
            clocks: Clocks::new(&tracer),
            heaps: Mutex::default(),
            arenas: Mutex::default(),
            apart: Mutex::default(),
            late: Mutex::default(),
            blocks: Mutex::default(),
            tracer,
            trace,
            steals: AtomicU64::new(0),
            maps: AtomicU64::new(0),
            past: Mutex::default(),
            reclaimer: OnceLock::new(),
            options,
        });
        let _ = inner.reclaimer.set(bank.add_reclaimer(&inner));
        Ok(Pool { inner })
    }

    pub(crate) fn of(inner: Arc<PoolInner>) -> Pool {
        Pool { inner }
    }

    /// The bank that its memory comes from.
    pub fn bank(&self) -> &Bank {
        &self.inner.bank
    }

    /// The device whose memory it is.
    pub fn device(&self) -> &Device {
        self.inner.device()
    }

    /// The heap of a stream: the same one each time.
    ///
    /// # Errors
    /// [`Error::OtherDevice`], [`Error::TooManyHeaps`].
    pub fn heap(&self, stream: &Arc<Stream>) -> Result<Heap, Error> {
        if !stream.device().is_same(self.device()) {
            return Err(Error::OtherDevice { what: "a stream" });
        }
        let mut heaps = lock(&self.inner.heaps);
        let of_stream = |core: &Arc<HeapCore>| core.stream.as_ref().is_some_and(|own| own.is(stream));
        let known: Vec<Arc<HeapCore>> = heaps.iter().filter_map(Weak::upgrade).collect();
        let core = match known.iter().find(|core| of_stream(core)) {
            Some(core) => Arc::clone(core),
            None => {
                let shell = PoolInner::shell()?;
                let trace = trace::StreamId(self.inner.tracer.number());
                let clock = self.inner.clocks.open(stream, trace);
                let own = HeapStream { stream: Arc::downgrade(stream), end: stream.end(), clock };
                let core = self.inner.new_core(shell, Some(own));
                let name = format!("stream {}", trace.0);
                let device = self.inner.bank.traced();
                self.inner.tracer.declare(Traced::Stream { stream: trace, device, name });
                heaps.push(Arc::downgrade(&core));
                core
            }
        };
        let heap = core.open(Some(stream));
        // The last reference to a heap that goes gives its stream back, without this lock.
        drop(heaps);
        drop((core, known));
        Ok(heap)
    }

    /// A new local heap: no stream uses its leases, only this process's own threads and regions. A thread that allocates much should
    /// have one of its own; clone the handle to share one.
    ///
    /// # Errors
    /// [`Error::TooManyHeaps`].
    pub fn local(&self) -> Result<Heap, Error> {
        let core = self.inner.new_core(PoolInner::shell()?, None);
        lock(&self.inner.heaps).push(Arc::downgrade(&core));
        Ok(core.open(None))
    }

    /// What it has leased and what it holds.
    pub fn stats(&self) -> PoolStats {
        PoolStats::of(&self.inner)
    }

    /// Gives back to the bank what no lease is in, granules that device work may still use with an event behind that work; answers how
    /// much. Where memory comes in whole allocations, as pinned memory does, that work is waited for. Every granule that the pool then holds stands behind at least one byte of a lease, or of a capture.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::Bank`]: some of it was not given back; the next time it is tried again.
    pub fn trim(&self) -> Result<Bytes, Error> {
        let inner = &self.inner;
        inner.flush_all();
        inner.clocks.poll();
        inner.collect();
        let (given, done) = inner.give_idle(u64::MAX);
        let (pool, freed) = (inner.trace.0, Bytes::new(given));
        inner.tracer.emit(|| Traced::Trim { pool, freed });
        done.map(|()| freed)
    }

    /// Waits for all that the pool's streams were given, and makes what it used free for everybody.
    ///
    /// # Errors
    /// [`Error::Device`] where a stream could not be waited for.
    pub fn drain(&self) -> Result<(), Error> {
        let done = self.inner.clocks.finish_all();
        self.inner.collect();
        self.inner.bank.drain();
        done
    }
}

impl PoolInner {
    fn shell() -> Result<&'static Shell, Error> {
        Shell::get().ok_or(Error::TooManyHeaps { most: MOST })
    }

    fn new_core(self: &Arc<PoolInner>, shell: &'static Shell, stream: Option<HeapStream>) -> Arc<HeapCore> {
        let mut arenas = lock(&self.arenas);
        let free = arenas.iter().position(Option::is_none).unwrap_or(arenas.len());
        let number = u32::try_from(free).unwrap_or(u32::MAX);
        let arena = Arc::new(Arena::new(number, stream.as_ref().map(|own| own.clock.id())));
        if free == arenas.len() {
            arenas.push(None);
        }
        arenas[free] = Some(Arc::clone(&arena));
        drop(arenas);
        HeapCore::new(self, shell, arena, stream)
    }

    pub(crate) fn bank(&self) -> &Bank {
        &self.bank
    }

    #[inline]
    pub(crate) fn device(&self) -> &Device {
        self.bank.device()
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.options.owner
    }

    #[inline]
    pub(crate) fn tracer(&self) -> &Tracer {
        &self.tracer
    }

    pub(crate) fn trace(&self) -> (trace::PoolId, trace::OwnerId) {
        self.trace
    }

    pub(crate) fn blocks(&self) -> MutexGuard<'_, Blocks> {
        lock(&self.blocks)
    }

    pub(crate) fn clocks(&self) -> &Clocks {
        &self.clocks
    }

    pub(crate) fn source(&self) -> Source {
        self.source
    }

    pub(crate) fn is_pinned(&self) -> bool {
        self.source == Source::Pinned
    }

    pub(crate) fn home(&self) -> Home {
        self.home
    }

    #[inline]
    pub(crate) fn cache_limit(&self) -> u64 {
        self.options.cache_limit.get()
    }

    pub(crate) fn budget(&self) -> Bytes {
        self.bank.stats().budget
    }

    /// The size of what memory comes and goes by; where that is allocations, of the smallest.
    pub(crate) fn granule(&self) -> Bytes {
        match self.source {
            Source::Granules => self.bank.granule(),
            Source::Plain | Source::Pinned => Source::segment(1),
        }
    }

    pub(crate) fn largest_alignment(&self) -> Bytes {
        self.granule()
    }

    /// More free bytes than this are more than a heap needs that has leased `given`.
    pub(crate) fn plenty(&self, given: u64) -> u64 {
        plenty(given, self.granule().get())
    }

    pub(crate) fn count_steal(&self) {
        self.steals.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_map(&self) {
        self.maps.fetch_add(1, Ordering::Relaxed);
    }

    /// Blocks taken from other heaps, and times that memory was mapped.
    pub(crate) fn counted(&self) -> (u64, u64) {
        (self.steals.load(Ordering::Relaxed), self.maps.load(Ordering::Relaxed))
    }

    pub(crate) fn past(&self) -> Past {
        *lock(&self.past)
    }

    /// Keeps the sums of a heap that goes; nobody finds it any more.
    pub(crate) fn note_gone(&self, core: &HeapCore) {
        let counts = core.shell.lock().counts;
        let others: u64 = self.heaps().iter().map(|other| other.shell.lock().counts.peak()).sum();
        lock(&self.past).note(&counts, others);
    }

    /// Granules for the pool.
    pub(crate) fn take(&self, count: usize, ask: Ask) -> Result<Stock, Error> {
        Ok(match ask {
            Ask::Bank => self.bank.take_now(self.owner(), count)?,
            Ask::Everybody => self.bank.take(self.owner(), count)?,
        })
    }

    /// An allocation for the pool.
    pub(crate) fn allocate(&self, size: Bytes, ask: Ask) -> Result<Memory, Error> {
        self.source.allocate(&self.bank, self.owner(), size, ask)
    }

    /// Asks the pool's owner to give something up; nothing where this thread is doing so already.
    pub(crate) fn ask_owner(&self, size: Bytes) -> Bytes {
        let Some(callback) = &self.options.reclaim else { return Bytes::ZERO };
        let Some(_asking) = Asking::begin() else { return Bytes::ZERO };
        callback(size)
    }

    /// What has completed, as the host knows.
    pub(crate) fn completed(&self) -> impl Fn(&Stamp) -> bool + use<> {
        let view = self.clocks.view(None);
        move |stamp| view.covers(stamp)
    }

    pub(crate) fn heaps(&self) -> Vec<Arc<HeapCore>> {
        let mut heaps = lock(&self.heaps);
        heaps.retain(|core| core.strong_count() > 0);
        heaps.iter().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn arenas(&self) -> Vec<Arc<Arena>> {
        lock(&self.arenas).iter().flatten().cloned().collect()
    }

    fn arena(&self, number: u32) -> Option<Arc<Arena>> {
        lock(&self.arenas).get(number as usize)?.clone()
    }

    /// The memory of all heaps but one.
    pub(crate) fn neighbours(&self, but: &HeapCore) -> Vec<Neighbour> {
        let heaps = self.heaps();
        let arenas = self.arenas().into_iter().filter(|arena| arena.number() != but.arena.number());
        let of_heap = |arena: &Arc<Arena>| heaps.iter().find(|core| Arc::ptr_eq(&core.arena, arena)).cloned();
        arenas.map(|arena| Neighbour { core: of_heap(&arena), arena }).collect()
    }

    /// Gives blocks back to the arenas that they were cut from.
    pub(crate) fn give(&self, mut blocks: Vec<(u32, BlockId, Stamp)>) {
        blocks.sort_by_key(|&(arena, ..)| arena);
        let mut blocks = blocks.into_iter().peekable();
        while let Some(&(number, ..)) = blocks.peek() {
            let of_arena = std::iter::from_fn(|| blocks.next_if(|&(arena, ..)| arena == number));
            let of_arena: Vec<_> = of_arena.map(|(_, block, stamp)| (block, stamp)).collect();
            if let Some(arena) = self.arena(number) {
                arena.free(of_arena);
            }
        }
    }

    pub(crate) fn give_kept(&self, kept: Vec<Kept>) {
        let homes = kept.into_iter().map(|Kept { block, stamp, apart, .. }| {
            if let Some(buffer) = apart {
                self.keep_apart(buffer, stamp.clone());
            }
            block.home(stamp)
        });
        self.give(homes.collect());
    }

    pub(crate) fn too_large(&self, requested: Bytes) -> Error {
        let (device, owner) = (self.device().name().to_owned(), self.owner().clone());
        Error::TooLarge { device, owner, requested, budget: self.budget() }
    }

    /// What the bank's refusal means for a request.
    pub(crate) fn refusal(&self, refused: Error, requested: Bytes) -> Error {
        match refused {
            Error::Bank(granule_bank::Error::TooLarge { .. }) => self.too_large(requested),
            Error::Bank(source) => {
                let stats = PoolStats::of(self);
                let (device, owner) = (self.device().name().to_owned(), self.owner().clone());
                Error::OutOfMemory {
                    device,
                    owner,
                    requested,
                    live: stats.current,
                    reserved: stats.reserved,
                    largest_free: stats.largest_free,
                    source: Box::new(source),
                }
            }
            other => other,
        }
    }
}

thread_local! {
    /// Whether this thread is inside the callback of a pool's owner.
    static ASKING: Cell<bool> = const { Cell::new(false) };
}

/// Marks the thread as one that asks an owner, until dropped: a callback that allocates is not asked for what it asks for.
struct Asking;

impl Asking {
    /// `None` where it asks already.
    fn begin() -> Option<Asking> {
        (!ASKING.replace(true)).then_some(Asking)
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        ASKING.set(false);
    }
}

impl fmt::Debug for PoolInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} on {})", self.options.owner, self.device().name())
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
