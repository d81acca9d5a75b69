//! Reclaimers: owners that can give memory back when somebody else has need of it, and how they are asked.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use granule_device::Bytes;

use crate::bank::{Bank, Inner};
use crate::ledger::pressure::{Next, Pressure, Source};
use crate::trace::Event;
use crate::{Error, Owner, ReclaimerStats};

/// What an owner could give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// How much.
    pub bytes: Bytes,
    /// What it costs the owner: the microseconds of work that it takes to have one MiB of it again, 0 where nothing is lost.
    /// The cheapest is asked for first.
    pub cost: u64,
}

impl Offer {
    /// What waiting for device work counts as, for memory that was retired: some kernels' time. Cheaper offers are taken up
    /// before anything is waited for, dearer ones after.
    pub const WAITING: u64 = 1000;

    /// So much, at this cost.
    pub const fn new(bytes: Bytes, cost: u64) -> Offer {
        Offer { bytes, cost }
    }
}

/// An owner that can give memory back under pressure: a cache that can forget, a pool with idle granules. Where banks share a
/// [`Budget`](crate::Budget) and that is what has run out, the reclaimers of all of them are asked.
///
/// It is asked on the thread of whoever needs memory, with no lock of the bank held, and may use the bank; from inside,
/// though, nobody else is asked, so that no two owners can wait for each other. It must not wait for a lock that its owner
/// holds while asking the bank for memory: try the lock, and answer zero where it is taken.
pub trait Reclaim: Send + Sync {
    /// Whose memory it is, for reports.
    fn owner(&self) -> Owner;

    /// What it could give back now, in parts of different cost; what costs least is given first. Giving back nothing after
    /// all is no error: then the request goes on without.
    fn could_give(&self) -> Vec<Offer>;

    /// Gives back at least `want` if it can, less if it cannot; answers how much. Memory that device work may still use is
    /// given back with an event ([`Range::clear_after`](crate::Range::clear_after)), which the request then waits for. The bank
    /// trusts its own books and not the answer.
    fn reclaim(&self, want: Bytes) -> Bytes;
}

/// How long the first pause between two looks at device work is, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_micros(20), Duration::from_millis(1));

/// Keeps a [`Reclaim`] registered with a bank; dropping it ends that. One that is being asked at that moment ends its answer.
#[must_use = "the reclaimer is asked for as long as this lives"]
#[derive(Debug)]
pub struct ReclaimGuard {
    bank: Weak<Inner>,
    id: u64,
}

impl Drop for ReclaimGuard {
    fn drop(&mut self) {
        if let Some(bank) = self.bank.upgrade() {
            bank.reclaimers.entries().retain(|entry| entry.id != self.id);
        }
    }
}

/// Who can be asked.
#[derive(Debug, Default)]
pub(crate) struct Reclaimers {
    entries: Mutex<Vec<Entry>>,
}

struct Entry {
    id: u64,
    /// Not kept: what reclaims mostly holds the bank.
    reclaimer: Weak<dyn Reclaim>,
    asked: u64,
    gave: Bytes,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entry({})", self.id)
    }
}

impl Reclaimers {
    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, reclaimer: Weak<dyn Reclaim>) -> u64 {
        // One count for all banks: one of several may be asked.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut entries = self.entries();
        entries.retain(|entry| entry.reclaimer.strong_count() > 0);
        entries.push(Entry { id, reclaimer, asked: 0, gave: Bytes::ZERO });
        id
    }

    fn all(&self) -> Vec<(u64, Arc<dyn Reclaim>)> {
        let alive = |entry: &Entry| Some((entry.id, entry.reclaimer.upgrade()?));
        self.entries().iter().filter_map(alive).collect()
    }

    /// What came of asking each of them so far.
    pub(crate) fn stats(&self) -> Vec<ReclaimerStats> {
        let alive = |entry: &Entry| Some((entry.reclaimer.upgrade()?, entry.asked, entry.gave));
        let all: Vec<_> = self.entries().iter().filter_map(alive).collect();
        let named = |(reclaimer, asked, gave): (Arc<dyn Reclaim>, u64, Bytes)| ReclaimerStats {
            owner: reclaimer.owner(),
            asked,
            gave,
        };
        all.into_iter().map(named).collect()
    }

    /// Notes what came of asking one.
    fn note(&self, id: u64, gave: Bytes) {
        if let Some(entry) = self.entries().iter_mut().find(|entry| entry.id == id) {
            entry.asked += 1;
            entry.gave = entry.gave.saturating_add(gave);
        }
    }

    fn get(&self, id: u64) -> Option<Arc<dyn Reclaim>> {
        self.entries().iter().find(|entry| entry.id == id)?.reclaimer.upgrade()
    }
}

thread_local! {
    /// Whether this thread is inside a reclaimer.
    static ASKING: Cell<bool> = const { Cell::new(false) };
}

/// Marks the thread as one that asks, until dropped.
struct Asking;

impl Asking {
    /// `None` where it asks already.
    fn begin() -> Option<Asking> {
        (!ASKING.replace(true)).then(|| Asking)
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        ASKING.set(false);
    }
}

impl Bank {
    /// Registers an owner that can give memory back; it is asked while the answer and itself live. The bank does not keep it.
    ///
    /// ```
    /// # use granule_bank::*; use granule_device::*; use std::sync::{Arc, Mutex};
    /// /// Something that can be had again: it lets go of its memory when somebody else needs it.
    /// struct Cached(Mutex<Growable>);
    /// impl Reclaim for Cached {
    ///     fn owner(&self) -> Owner {
    ///         Owner::new("prefix cache")
    ///     }
    ///     fn could_give(&self) -> Vec<Offer> {
    ///         self.0.try_lock().map(|cached| Offer::new(cached.mapped(), 300)).into_iter().collect()
    ///     }
    ///     fn reclaim(&self, want: Bytes) -> Bytes {
    ///         let Ok(mut cached) = self.0.try_lock() else { return Bytes::ZERO };
    ///         let before = cached.mapped();
    ///         let _ = cached.shrink_to(before.saturating_sub(want));
    ///         before.saturating_sub(cached.mapped())
    ///     }
    /// }
    /// # let device = Device::host_with(HostOptions::new().granule(Bytes::kib(16)).capacity(Bytes::mib(1)))?;
    /// let bank = Bank::new(device, BankOptions::new().budget(Bytes::kib(64)))?;
    /// let mut cached = bank.growable(&Owner::new("prefix cache"), Bytes::kib(64))?;
    /// cached.grow_to(Bytes::kib(64))?;
    /// let cached = Arc::new(Cached(Mutex::new(cached)));
    /// let _registered = bank.add_reclaimer(&cached);
    /// let stock = bank.take(&Owner::new("kv"), 3)?; // the budget was spent
    /// assert_eq!(bank.stats().held, Bytes::kib(64));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn add_reclaimer<R: Reclaim + 'static>(&self, reclaimer: &Arc<R>) -> ReclaimGuard {
        let reclaimer: Weak<R> = Arc::downgrade(reclaimer);
        let id = self.inner().reclaimers.add(reclaimer);
        ReclaimGuard { bank: Arc::downgrade(self.inner()), id }
    }

    /// Tries, and where memory is short asks whoever could give some and tries again, until it is there or nobody has any.
    pub(crate) fn under_pressure<T>(
        &self,
        owner: &Owner,
        attempt: impl Fn() -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mut refused = match attempt() {
            Err(error @ Error::OutOfMemory { .. }) => error,
            done => return done,
        };
        let Some(_asking) = Asking::begin() else { return Err(refused) };
        let deadline = Instant::now().checked_add(self.inner().patience);
        let mut circle = Circle::around(self, &refused, deadline);
        let mut pressure = Pressure::new();
        loop {
            match pressure.next(missing(&refused)) {
                Next::Refuse => {
                    self.note_refusal(owner, &refused);
                    return Err(refused);
                }
                Next::Offers => {
                    circle = Circle::around(self, &refused, deadline);
                    pressure.offered(circle.offers());
                    continue;
                }
                Next::Ask(source, want) => {
                    let gained = circle.ask(source, want);
                    pressure.answered(source, gained);
                    if let Source::Reclaimer(_) = source {
                        self.inner().reclaimed.fetch_add(gained.get(), Ordering::Relaxed);
                    }
                }
            }
            refused = match attempt() {
                Err(error @ Error::OutOfMemory { .. }) => error,
                done => return done,
            };
        }
    }

    fn note_refusal(&self, owner: &Owner, refused: &Error) {
        let inner = self.inner();
        inner.refused.fetch_add(1, Ordering::Relaxed);
        if let Error::OutOfMemory { requested, .. } = *refused {
            let tracer = &inner.tracer;
            tracer.emit(|| Event::Refused { device: inner.traced, owner: tracer.owner(owner), requested });
        }
    }
}

/// The banks whose memory would help a request: the bank that was asked, first, and those that share its budget where that
/// is what has run out.
struct Circle {
    banks: Vec<Bank>,
    /// Until when it may be waited for device work; none: for ever.
    deadline: Option<Instant>,
}

impl Circle {
    fn around(bank: &Bank, refused: &Error, deadline: Option<Instant>) -> Circle {
        let mut banks = vec![bank.clone()];
        let Error::OutOfMemory { requested, .. } = *refused else { return Circle { banks, deadline } };
        let inner = bank.inner();
        let (own, shared) = inner.free_of_both();
        let lacks = |free: Bytes| requested.saturating_sub(free);
        // What the bank's own owners give is room in both.
        if lacks(shared) > lacks(own) {
            let others = inner.budget.members();
            let others = others.iter().filter_map(|other| other.bank());
            banks.extend(others.filter(|other| !Arc::ptr_eq(other.inner(), inner)));
        }
        Circle { banks, deadline }
    }

    /// What everybody could give. Waiting comes last, so that owners whose offer costs as much come before it.
    fn offers(&self) -> Vec<(Source, Offer)> {
        let mut offers = Vec::new();
        for (id, reclaimer) in self.banks.iter().flat_map(|bank| bank.inner().reclaimers.all()) {
            offers.extend(reclaimer.could_give().into_iter().map(|offer| (Source::Reclaimer(id), offer)));
        }
        let retiring = if self.is_over() { Bytes::ZERO } else { self.retiring() };
        offers.push((Source::Work, Offer::new(retiring, Offer::WAITING)));
        offers
    }

    /// Has one source give what it can; answers what came of it.
    fn ask(&self, source: Source, want: Bytes) -> Bytes {
        let before = self.given_back();
        let gained = || self.given_back().saturating_sub(before);
        match source {
            Source::Work => self.wait(),
            Source::Reclaimer(id) => {
                let found = self.banks.iter().find_map(|bank| Some((bank, bank.inner().reclaimers.get(id)?)));
                let Some((bank, reclaimer)) = found else { return Bytes::ZERO };
                reclaimer.reclaim(want);
                self.poll();
                bank.inner().reclaimers.note(id, gained());
            }
        }
        gained()
    }

    /// Waits until some retired memory has been given back, the system refuses to unmap some, or the time is over.
    fn wait(&self) {
        let before = self.retiring();
        let mut pause = PAUSES.0;
        loop {
            let refused = self.poll();
            if refused || self.retiring() < before || self.is_over() {
                return;
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Takes back what has waited long enough; answers whether the system refused to unmap some of it.
    fn poll(&self) -> bool {
        self.banks.iter().fold(false, |refused, bank| bank.retiring().poll() | refused)
    }

    fn is_over(&self) -> bool {
        self.deadline.is_some_and(|deadline| Instant::now() >= deadline)
    }

    fn retiring(&self) -> Bytes {
        self.sum(|bank| bank.granule().saturating_mul(bank.retiring().places() as u64))
    }

    /// All that was ever given back, or put off until device work is done: it only grows.
    fn given_back(&self) -> Bytes {
        self.sum(|bank| {
            let put_off = bank.granule().saturating_mul(bank.retiring().pushed());
            bank.inner().returned().saturating_add(put_off)
        })
    }

    fn sum(&self, of: impl Fn(&Bank) -> Bytes) -> Bytes {
        self.banks.iter().map(of).fold(Bytes::ZERO, Bytes::saturating_add)
    }
}

/// What a refused request lacks.
fn missing(refused: &Error) -> Bytes {
    match refused {
        Error::OutOfMemory { requested, free, .. } => requested.saturating_sub(*free).max(Bytes::new(1)),
        _ => Bytes::ZERO,
    }
}
