//! Requests that do not fit: who is asked, in which order, how often; and what is waited for.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use granule_bank::{Bank, Budget, Error, Offer, Owner, Reclaim, ReclaimGuard, Stock};
use granule_device::Bytes;

use crate::support::{Open, Work, bank, granule, granules, is_host, options, stream};

/// Holds granules, says what it is told to say about them, and notes whenever it is asked.
struct Hoard {
    name: &'static str,
    granule: Bytes,
    stock: Mutex<Vec<Stock>>,
    cost: u64,
    boast: Option<Bytes>,
    asked: Arc<Mutex<Vec<(&'static str, Bytes)>>>,
}

impl Hoard {
    fn new(bank: &Bank, name: &'static str, count: usize, cost: u64, asked: &Asked) -> Hoard {
        let stock = (0..count).map(|_| bank.take_now(&Owner::new(name), 1).unwrap()).collect();
        let asked = Arc::clone(asked);
        Hoard { name, granule: bank.granule(), stock: Mutex::new(stock), cost, boast: None, asked }
    }

    fn has(&self) -> usize {
        self.stock.lock().unwrap().len()
    }
}

type Asked = Arc<Mutex<Vec<(&'static str, Bytes)>>>;

impl Reclaim for Hoard {
    fn owner(&self) -> Owner {
        Owner::new(self.name)
    }

    fn could_give(&self) -> Vec<Offer> {
        let really = self.granule.saturating_mul(self.has() as u64);
        vec![Offer::new(self.boast.unwrap_or(really), self.cost)]
    }

    fn reclaim(&self, want: Bytes) -> Bytes {
        self.asked.lock().unwrap().push((self.name, want));
        let mut stock = self.stock.lock().unwrap();
        let count = want.pieces_of(self.granule).unwrap().min(stock.len());
        let left = stock.len() - count;
        let given = stock.split_off(left);
        drop(stock);
        drop(given);
        self.boast.unwrap_or(self.granule.saturating_mul(count as u64))
    }
}

pub(crate) fn the_cheapest_is_asked_first(open: Open<'_>) {
    let bank = bank(open, 9);
    let device = bank.device();
    let granules = |count| granules(device, count);
    let asked = Asked::default();
    let hoard = |name, cost| Arc::new(Hoard::new(&bank, name, 3, cost, &asked));
    let (dear, cheap, middle) = (hoard("dear", 900), hoard("cheap", 0), hoard("middle", 20));
    let _guards = [bank.add_reclaimer(&dear), bank.add_reclaimer(&cheap), bank.add_reclaimer(&middle)];
    let owner = Owner::new("x");
    let two = bank.take(&owner, 2).unwrap();
    assert_eq!(std::mem::take(&mut *asked.lock().unwrap()), [("cheap", granules(2))]);
    let three = bank.take(&owner, 3).unwrap();
    let expected = [("cheap", granules(1)), ("middle", granules(2))];
    assert_eq!(std::mem::take(&mut *asked.lock().unwrap()), expected);
    assert_eq!((dear.has(), cheap.has(), middle.has()), (3, 0, 1));
    // Not even everything is enough: all give what they have, and the request is refused.
    let refused = bank.take(&owner, 5).unwrap_err();
    assert!(matches!(refused, Error::OutOfMemory { free, .. } if free == granules(4)), "{refused}");
    assert_eq!((dear.has(), middle.has()), (0, 0));
    let stats = bank.stats();
    let gave: Vec<_> = stats.reclaimers.iter().map(|r| (r.owner.name(), r.gave)).collect();
    assert_eq!(gave, [("dear", granules(3)), ("cheap", granules(3)), ("middle", granules(3))]);
    assert_eq!((stats.reclaimed, stats.refused), (granules(9), 1));
    drop((two, three));
}

pub(crate) fn nobody_is_asked_where_that_is_not_wanted(open: Open<'_>) {
    let bank = bank(open, 3);
    let asked = Asked::default();
    let hoard = Arc::new(Hoard::new(&bank, "hoard", 3, 0, &asked));
    let guard = bank.add_reclaimer(&hoard);
    let owner = Owner::new("x");
    assert!(matches!(bank.take_now(&owner, 1), Err(Error::OutOfMemory { .. })));
    assert!(matches!(bank.charge_now(&owner, Bytes::new(1)), Err(Error::OutOfMemory { .. })));
    assert!(matches!(bank.take(&owner, 4), Err(Error::TooLarge { .. })));
    drop(guard);
    assert!(bank.take(&owner, 1).is_err());
    let _guard = bank.add_reclaimer(&hoard);
    assert_eq!(*asked.lock().unwrap(), []);
    drop(hoard);
    // It is gone, with all that it had: the bank did not keep it.
    let _stock = bank.take(&owner, 3).unwrap();
    assert_eq!(bank.stats().reclaimers, []);
}

pub(crate) fn who_only_promises_is_asked_once_and_refused_for_it(open: Open<'_>) {
    let bank = bank(open, 4);
    let asked = Asked::default();
    let mut liar = Hoard::new(&bank, "liar", 0, 0, &asked);
    liar.boast = Some(Bytes::MAX);
    let (liar, miser) = (Arc::new(liar), Arc::new(Hoard::new(&bank, "miser", 2, 5, &asked)));
    let _guards = [bank.add_reclaimer(&liar), bank.add_reclaimer(&miser)];
    let owner = Owner::new("x");
    let _stock = bank.take(&owner, 4).unwrap();
    let names =
        || std::mem::take(&mut *asked.lock().unwrap()).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    assert_eq!(names(), ["liar", "miser"]);
    assert!(bank.take(&owner, 1).is_err());
    assert_eq!(names(), ["liar"]);
    assert_eq!(bank.stats().reclaimers[0].gave, Bytes::ZERO, "the books know better");
}

/// Uses the bank from inside: takes, charges, looks, registers others, and has its own memory be asked for.
struct Busybody {
    bank: Bank,
    hoard: Hoard,
    guards: Mutex<Vec<ReclaimGuard>>,
    other: Arc<Hoard>,
}

impl Reclaim for Busybody {
    fn owner(&self) -> Owner {
        self.hoard.owner()
    }

    fn could_give(&self) -> Vec<Offer> {
        assert!(self.bank.take(&self.owner(), 1).is_err(), "full, and nobody is asked from in here");
        self.hoard.could_give()
    }

    fn reclaim(&self, want: Bytes) -> Bytes {
        assert!(self.bank.charge(&self.owner(), Bytes::new(1)).is_err());
        self.guards.lock().unwrap().push(self.bank.add_reclaimer(&self.other));
        let given = self.hoard.reclaim(want);
        let stock = self.bank.take(&self.owner(), 1).unwrap();
        self.bank.trim();
        drop(stock);
        assert!(self.bank.stats().held < self.bank.stats().budget && self.bank.snapshot().ranges.is_empty());
        given
    }
}

pub(crate) fn a_reclaimer_may_use_the_bank(open: Open<'_>) {
    let bank = bank(open, 4);
    let asked = Asked::default();
    let other = Arc::new(Hoard::new(&bank, "other", 1, 9, &asked));
    let hoard = Hoard::new(&bank, "busy", 3, 0, &asked);
    let busy = Arc::new(Busybody { bank: bank.clone(), hoard, guards: Mutex::default(), other });
    let guard = bank.add_reclaimer(&busy);
    let owner = Owner::new("x");
    let stock = bank.take(&owner, 2).unwrap();
    assert_eq!(asked.lock().unwrap().iter().map(|(name, _)| *name).collect::<Vec<_>>(), ["busy"]);
    drop((stock, guard));
    busy.guards.lock().unwrap().clear();
}

/// Ends its own registration, and with it its last owner, while it is asked.
struct Leaver {
    bank: Bank,
    guard: Mutex<Option<ReclaimGuard>>,
    stock: Mutex<Option<Stock>>,
    gone: Arc<AtomicBool>,
}

impl Reclaim for Leaver {
    fn owner(&self) -> Owner {
        Owner::new("leaver")
    }

    fn could_give(&self) -> Vec<Offer> {
        vec![Offer::new(self.bank.granule(), 0)]
    }

    fn reclaim(&self, _: Bytes) -> Bytes {
        drop(self.guard.lock().unwrap().take());
        drop(self.stock.lock().unwrap().take());
        self.bank.granule()
    }
}

impl Drop for Leaver {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Release);
    }
}

pub(crate) fn a_reclaimer_may_go_while_it_is_asked(open: Open<'_>) {
    let bank = bank(open, 2);
    let gone = Arc::new(AtomicBool::new(false));
    let stock = bank.take(&Owner::new("leaver"), 1).unwrap();
    let leaver = Arc::new(Leaver {
        bank: bank.clone(),
        guard: Mutex::default(),
        stock: Mutex::new(Some(stock)),
        gone: Arc::clone(&gone),
    });
    *leaver.guard.lock().unwrap() = Some(bank.add_reclaimer(&leaver));
    let _stock = bank.take(&Owner::new("x"), 2).unwrap();
    assert_eq!(bank.stats().reclaimers, []);
    drop(leaver);
    assert!(gone.load(Ordering::Acquire));
}

pub(crate) fn charges_ask_too(open: Open<'_>) {
    let bank = bank(open, 4);
    let device = bank.device();
    let asked = Asked::default();
    let hoard = Arc::new(Hoard::new(&bank, "hoard", 4, 0, &asked));
    let _guard = bank.add_reclaimer(&hoard);
    let size = Bytes::from_usize(granule(device) + 1);
    let _charge = bank.charge(&Owner::new("weights"), size).unwrap();
    assert_eq!(*asked.lock().unwrap(), [("hoard", size)]);
    assert_eq!(hoard.has(), 2);
}

pub(crate) fn retired_memory_is_waited_for(open: Open<'_>) {
    let device = open(4);
    let options = options(&device, 4).patience(Duration::from_secs(20));
    let bank = Bank::new(device.clone(), options).unwrap();
    let stream = stream(&device);
    let owner = Owner::new("x");
    let mut growable = bank.growable(&owner, granules(&device, 4)).unwrap();
    growable.grow_to(granules(&device, 4)).unwrap();
    growable.shrink_to(granules(&device, 2)).unwrap();
    let asked = Asked::default();
    let dear = Arc::new(Hoard::new(&bank, "dear", 1, Offer::WAITING + 1, &asked));
    let cheap = Arc::new(Hoard::new(&bank, "cheap", 1, Offer::WAITING - 1, &asked));
    let _guards = [bank.add_reclaimer(&dear), bank.add_reclaimer(&cheap)];
    let work = Work::begin(&stream);
    growable.shrink_after(granules(&device, 1), &work.event).unwrap();
    let names = || asked.lock().unwrap().iter().map(|(name, _)| *name).collect::<Vec<_>>();
    // What is cheaper than waiting comes first, what is dearer is spared.
    let one = bank.take(&owner, 1).unwrap();
    if is_host(&device) {
        assert_eq!((names(), work.event.is_done()), (vec!["cheap"], false));
    }
    work.end_soon();
    let two = bank.take(&owner, 1).unwrap();
    assert!(dear.has() == 1 && !names().contains(&"dear"));
    assert_eq!((bank.stats().refused, bank.stats().held), (0, granules(&device, 4)));
    drop((one, two, growable, dear, cheap));
    bank.trim();

    // Not for ever: work that does not end makes it a refusal. Only the host's can be kept from ending here.
    if is_host(&device) {
        let bank = Bank::new(device.clone(), crate::support::options(&device, 4)).unwrap();
        let mut growable = bank.growable(&owner, granules(&device, 4)).unwrap();
        growable.grow_to(granules(&device, 4)).unwrap();
        let work = Work::begin(&stream);
        growable.shrink_to(granules(&device, 3)).unwrap();
        growable.shrink_after(Bytes::ZERO, &work.event).unwrap();
        let began = Instant::now();
        assert!(matches!(bank.take_now(&owner, 2), Err(Error::OutOfMemory { .. })));
        assert!(matches!(bank.take(&owner, 2), Err(Error::OutOfMemory { .. })));
        assert!(began.elapsed() < Duration::from_secs(10));
        let one = bank.take(&owner, 1).unwrap();
        drop(one);
        work.end();
        bank.drain();
        bank.take(&owner, 4).unwrap();
    }
}

pub(crate) fn a_full_device_asks_too(open: Open<'_>) {
    let device = open(4);
    let bank = Bank::new(device.clone(), options(&device, 1 << 20)).unwrap();
    let free = device.memory().unwrap().free.get() / device.granularity().get();
    let _others = device.alloc(granules(&device, free as usize - 3)).unwrap();
    let asked = Asked::default();
    let hoard = Arc::new(Hoard::new(&bank, "hoard", 3, 0, &asked));
    let _guard = bank.add_reclaimer(&hoard);
    let stock = bank.take(&Owner::new("x"), 2).unwrap();
    assert_eq!((stock.len(), hoard.has()), (2, 1));
    let (peak, hits) = (bank.stats().peak, bank.stats().cache_hits);
    let refused = bank.take(&Owner::new("x"), 2);
    assert!(matches!(refused, Err(Error::OutOfMemory { .. })), "{refused:?}");
    let stats = bank.stats();
    assert_eq!((stats.peak, stats.cache_hits), (peak, hits), "what was refused was never held");
    // What the bank keeps itself is not asked for.
    assert_eq!((hoard.has(), stats.cached), (0, granules(&device, 1)));
    drop(stock);
    let hoard = Arc::new(Hoard::new(&bank, "careful", 1, 0, &asked));
    let _guard = bank.add_reclaimer(&hoard);
    asked.lock().unwrap().clear();
    let _stock = bank.take(&Owner::new("x"), 3).unwrap();
    assert_eq!(*asked.lock().unwrap(), [("careful", granules(&device, 1))]);
}

pub(crate) fn a_full_device_has_what_its_banks_keep(open: Open<'_>) {
    let device = open(4);
    let budget = Budget::new(Bytes::MAX);
    let bank = || Bank::new(device.clone(), options(&device, 1 << 20).share(&budget)).unwrap();
    let (idle, busy) = (bank(), bank());
    let free = device.memory().unwrap().free.get() / device.granularity().get();
    let _others = device.alloc(granules(&device, free as usize - 3)).unwrap();
    let owner = Owner::new("x");
    drop(idle.take(&owner, 3).unwrap());
    let two = busy.take_now(&owner, 2).unwrap();
    assert_eq!((two.len(), idle.stats().cached), (2, granules(&device, 1)));
    assert!(busy.take_now(&owner, 2).is_err());
    let one = busy.take_now(&owner, 1).unwrap();
    drop((one, two));
}

pub(crate) fn banks_of_one_budget_ask_each_others_owners(open: Open<'_>) {
    let (left, right) = (open(8), open(8));
    let granules = |count| granules(&left, count);
    let budget = Budget::new(granules(6));
    let banks = [&left, &right].map(|device| {
        let options = options(device, 5).patience(Duration::from_secs(20)).share(&budget);
        Bank::new(device.clone(), options).unwrap()
    });
    let asked = Asked::default();
    let here = Arc::new(Hoard::new(&banks[0], "here", 2, 9, &asked));
    let there = Arc::new(Hoard::new(&banks[1], "there", 3, 0, &asked));
    let _guards = [banks[1].add_reclaimer(&there), banks[0].add_reclaimer(&here)];
    let owner = Owner::new("x");
    let names =
        || std::mem::take(&mut *asked.lock().unwrap()).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
    // Two held here and three there, of six.
    let three = banks[0].take(&owner, 3).unwrap();
    assert_eq!((names(), there.has(), banks[0].free()), (vec!["there"], 1, Bytes::ZERO));
    // The bank's own budget of five is full as well: what its own owners give is room in both.
    let one = banks[0].take(&owner, 1).unwrap();
    assert_eq!((names(), there.has(), here.has()), (vec!["here"], 1, 1));
    drop((three, one));

    // Waiting for work of the other bank's memory helps too.
    let stream = stream(&right);
    let mut range = banks[1].range(&owner, granules(4)).unwrap();
    range.fill(0..4).unwrap();
    let work = Work::begin(&stream);
    range.clear_after(0..4, &work.event).unwrap();
    work.end_soon();
    drop((there, here));
    let charge = banks[0].charge(&owner, granules(4)).unwrap();
    assert_eq!((names(), budget.stats().held), (vec![], granules(4)));
    drop((charge, range));
}

/// Gives its memory back after work that is under way.
struct Retirer {
    range: Mutex<granule_bank::Range>,
    work: Mutex<Option<Work>>,
    asked: AtomicUsize,
}

impl Reclaim for Retirer {
    fn owner(&self) -> Owner {
        Owner::new("retirer")
    }

    fn could_give(&self) -> Vec<Offer> {
        let range = self.range.try_lock().unwrap();
        let mapped = (0..range.places()).filter(|&place| range.is_mapped(place)).count();
        vec![Offer::new(range.bank().granule().saturating_mul(mapped as u64), 50)]
    }

    fn reclaim(&self, want: Bytes) -> Bytes {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let Some(work) = self.work.lock().unwrap().take() else { return Bytes::ZERO };
        let mut range = self.range.try_lock().unwrap();
        let places = range.places();
        range.clear_after(0..places, &work.event).unwrap();
        work.end_soon();
        want
    }
}

pub(crate) fn what_is_given_back_after_work_is_waited_for(open: Open<'_>) {
    let device = open(4);
    let options = options(&device, 4).patience(Duration::from_secs(20));
    let bank = Bank::new(device.clone(), options).unwrap();
    let mut range = bank.range(&Owner::new("retirer"), granules(&device, 4)).unwrap();
    range.fill(0..4).unwrap();
    let stream = stream(&device);
    let retirer = Arc::new(Retirer {
        range: Mutex::new(range),
        work: Mutex::new(Some(Work::begin(&stream))),
        asked: AtomicUsize::new(0),
    });
    let guard = bank.add_reclaimer(&retirer);
    let stock = bank.take(&Owner::new("x"), 3).unwrap();
    assert_eq!((stock.len(), retirer.asked.load(Ordering::Relaxed)), (3, 1));
    drop((stock, guard, retirer));
    drop(stream);
}
