//! One bank, many threads: the books come out even, and nobody waits for ever.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use granule_bank::{Bank, Budget, Error, Growth, Level, Offer, Owner, Range, Reclaim, grow_together};
use granule_device::{Bytes, LiveCounts};

use crate::support::{Open, Work, bank, fill, granule, granules, is_all, is_host, options, read, stream};

pub(crate) fn the_budget_holds_whoever_asks(open: Open<'_>) {
    let device = open(64);
    let options = options(&device, 24).cache(granules(&device, 4));
    let bank = Bank::new(device.clone(), options).unwrap();
    let steps = if is_host(&device) { 200 } else { 2 };
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (bank, device, start) = (bank.clone(), &device, &start);
            scope.spawn(move || {
                let owner = Owner::new(format!("thread {thread}"));
                drop(bank.take(&owner, 6).unwrap());
                start.wait();
                for step in 0..steps {
                    let mut growable = bank.growable(&owner, granules(device, 16)).unwrap();
                    for len in 1..=8 {
                        match growable.grow_to(granules(device, len)) {
                            Ok(()) => {
                                let byte = (thread * 50 + step) as u8;
                                fill(device, growable.slice_mut(..).unwrap(), byte);
                            }
                            Err(Error::OutOfMemory { .. }) => {}
                            Err(other) => panic!("{other}"),
                        }
                    }
                    let fork = growable.alias(growable.len()).unwrap();
                    let (len, from) = (growable.len(), Bytes::new(7).min(growable.len()));
                    let _ = grow_together(&mut [Growth::of(&mut growable, len).writable_from(from)]);
                    drop(growable);
                    let bytes = read(device, fork.slice(..).unwrap());
                    assert!(bytes.windows(2).all(|pair| pair[0] == pair[1]));
                    let stats = bank.stats();
                    assert!(stats.held.get() + stats.cached.get() <= stats.budget.get());
                }
            });
        }
    });
    let stats = bank.stats();
    assert_eq!((stats.held, stats.owners.len()), (Bytes::ZERO, 4));
    assert!(stats.owners.iter().all(|owner| owner.current == Bytes::ZERO && owner.peak > Bytes::ZERO));
    drop(bank);
    assert_eq!(device.live(), LiveCounts::default());
}

/// Forks of one parent, written from several threads at once: each its own copy, whoever comes last keeps the original.
pub(crate) fn forks_part_on_different_threads(open: Open<'_>) {
    let bank = bank(open, 64);
    let device = bank.device();
    for round in 0..if is_host(device) { 100usize } else { 2 } {
        let mut parent = bank.growable(&Owner::new("kv"), granules(device, 4)).unwrap();
        parent.grow_to(granules(device, 2)).unwrap();
        fill(device, parent.slice_mut(..).unwrap(), round as u8);
        let forks: Vec<_> = (0..3).map(|_| parent.alias(granules(device, 2)).unwrap()).collect();
        let border = granule(device) + 9;
        std::thread::scope(|scope| {
            for (index, mut growable) in forks.into_iter().chain([parent]).enumerate() {
                scope.spawn(move || {
                    let from = Bytes::from_usize(border);
                    let growth = Growth::of(&mut growable, granules(device, 3)).writable_from(from);
                    grow_together(&mut [growth]).unwrap();
                    fill(device, growable.slice_mut(border..).unwrap(), 200 + index as u8);
                    assert!(is_all(device, growable.slice(..border).unwrap(), round as u8));
                    assert!(is_all(device, growable.slice(border..).unwrap(), 200 + index as u8));
                });
            }
        });
        assert_eq!(bank.stats().held, Bytes::ZERO);
    }
}

/// An owner that holds its own lock while it asks the bank for memory, as engines do, and gives when it is asked itself.
struct Tenant {
    owner: Owner,
    range: Mutex<Range>,
    given: AtomicUsize,
}

impl Reclaim for Tenant {
    fn owner(&self) -> Owner {
        self.owner.clone()
    }

    fn could_give(&self) -> Vec<Offer> {
        let Ok(range) = self.range.try_lock() else { return Vec::new() };
        let mapped = (0..range.places()).filter(|&place| range.is_mapped(place)).count();
        vec![Offer::new(range.bank().granule().saturating_mul(mapped as u64), 10)]
    }

    fn reclaim(&self, want: Bytes) -> Bytes {
        let Ok(mut range) = self.range.try_lock() else { return Bytes::ZERO };
        let granule = range.bank().granule();
        let mapped: Vec<usize> = (0..range.places()).filter(|&place| range.is_mapped(place)).collect();
        let count = want.pieces_of(granule).unwrap_or(usize::MAX).min(mapped.len());
        for &place in &mapped[..count] {
            range.clear(place..place + 1).unwrap();
        }
        // It uses the bank from in here too.
        drop(range.bank().take(&self.owner, 1));
        self.given.fetch_add(count, Ordering::Relaxed);
        granule.saturating_mul(count as u64)
    }
}

pub(crate) fn pressure_from_all_sides(open: Open<'_>) {
    let device = open(16);
    let bank = Bank::new(device.clone(), options(&device, 6).cache(granules(&device, 2))).unwrap();
    let streams = [(); 4].map(|()| stream(&device));
    let new = |index: usize| {
        let owner = Owner::new(format!("tenant {index}"));
        let range = Mutex::new(bank.range(&owner, granules(&device, 8)).unwrap());
        Arc::new(Tenant { owner, range, given: AtomicUsize::new(0) })
    };
    let tenants = [0, 1, 2, 3].map(new);
    let guards = [0, 1, 2, 3].map(|index| bank.add_reclaimer(&tenants[index]));
    let steps = if is_host(&device) { 150 } else { 20 };
    std::thread::scope(|scope| {
        for (index, tenant) in tenants.iter().enumerate() {
            let (stream, bank) = (&streams[index], &bank);
            scope.spawn(move || {
                for step in 0..steps {
                    let mut range = tenant.range.lock().unwrap();
                    let (from, count) = ((step + index) % 4, 1 + step % 4);
                    // While everybody asks everybody, some are refused; nobody is let down without a reason.
                    match range.fill(from..from + count) {
                        Ok(()) => assert!((from..from + count).all(|place| range.is_mapped(place))),
                        Err(Error::OutOfMemory { .. }) => {}
                        Err(Error::Device(granule_device::Error::Retiring { .. })) => {}
                        Err(other) => panic!("{other}"),
                    }
                    if step % 5 == index {
                        let work = Work::begin(stream);
                        let event = work.event.clone();
                        let places = range.places();
                        range.clear_after(0..places, &event).unwrap();
                        drop(range);
                        work.end();
                    }
                    let stats = bank.stats();
                    assert!(stats.held.get() + stats.cached.get() <= stats.budget.get());
                    assert_eq!(bank.snapshot().ranges.len(), 4);
                }
            });
        }
    });
    streams.iter().for_each(|stream| stream.synchronize().unwrap());
    bank.drain();
    // Alone, each can have all of it.
    for tenant in &tenants {
        let mut range = tenant.range.lock().unwrap();
        range.clear(0..8).unwrap();
        range.fill(0..6).unwrap();
    }
    assert!(tenants.iter().map(|tenant| tenant.given.load(Ordering::Relaxed)).sum::<usize>() >= 18);
    drop(guards);
    drop(tenants);
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

pub(crate) fn a_preparer_a_watch_and_a_crowd(open: Open<'_>) {
    let device = open(32);
    let budget = Budget::new(granules(&device, 8));
    let bank = || {
        let low = granules(&device, 2);
        let options =
            options(&device, 6).cache(low.saturating_mul(2)).cache_low(low).share(&budget).prepare();
        Bank::new(device.clone(), options).unwrap()
    };
    let banks = [bank(), bank()];
    let heard: Arc<Mutex<Vec<Level>>> = Arc::default();
    let tell = Arc::clone(&heard);
    let watched = banks[0].clone();
    let watch = banks[0].watch(granules(&device, 3), move |level| {
        let _ = watched.free();
        tell.lock().unwrap().push(level);
    });
    let watch = watch.unwrap();
    let steps = if is_host(&device) { 400 } else { 30 };
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (banks, budget) = (&banks, &budget);
            scope.spawn(move || {
                let owner = Owner::new(format!("thread {thread}"));
                for step in 0..steps {
                    let bank = &banks[(thread + step) % 2];
                    let stock = bank.take(&owner, 1 + step % 3);
                    let charge = bank.charge_now(&owner, Bytes::from_usize(1 + step % 900));
                    let stats = budget.stats();
                    assert!(stats.held.get() + stats.cached.get() <= stats.limit.get(), "{stats:?}");
                    drop((stock, charge));
                    if step % 16 == 0 {
                        bank.trim();
                    }
                }
            });
        }
    });
    assert_eq!(budget.stats().held, Bytes::ZERO);
    // It is told on a thread of its own, which may have some way to go.
    let deadline = Instant::now() + Duration::from_secs(20);
    while heard.lock().unwrap().last() == Some(&Level::Low) {
        assert!(Instant::now() < deadline, "low for ever");
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(watch);
    let mut heard = heard;
    // The callback has the bank until its thread has ended.
    while Arc::get_mut(&mut heard).is_none() {
        assert!(Instant::now() < deadline, "the callback is kept");
        std::thread::sleep(Duration::from_millis(1));
    }
    let heard: Vec<Level> = std::mem::take(&mut *heard.lock().unwrap());
    let in_turn = heard.iter().enumerate().all(|(index, &level)| (level == Level::Low) == (index % 2 == 0));
    assert!(in_turn && heard.last() != Some(&Level::Low), "{heard:?}");
    drop(banks);
    assert_eq!(budget.stats().cached, Bytes::ZERO);
    assert_eq!(device.live(), LiveCounts::default());
}
