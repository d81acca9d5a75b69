//! Every driver call of a scripted run fails once, and from every call on all of them fail.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use granule_bank::{Bank, Error, Growth, Offer, Owner, Range, Reclaim, grow_together, shrink_together};
use granule_device::{Bytes, Device, FaultPlan, LiveCounts};

use crate::support::{Open, fill, granule, granules, is_all, is_host, options, place, stream};

/// Two growables, forked and grown and shrunk together, with the k-th call failing, for every k: an error, and everything as
/// it was; or no fault, and everything done.
pub(crate) fn every_failing_call_changes_nothing(open: Open<'_>) {
    let owner = Owner::new("kv");
    for cache in [0, 8] {
        let mut fired = 0;
        for k in 1.. {
            let device = open(64);
            let (granule, granules) = (granule(&device), |count| granules(&device, count));
            let bank = Bank::new(device.clone(), options(&device, 64).cache(granules(cache))).unwrap();
            let mut pair = [(); 2].map(|()| bank.growable(&owner, granules(8)).unwrap());
            for growable in &mut pair {
                growable.grow_to(Bytes::from_usize(2 * granule + 9)).unwrap();
                // Around the border of the first two granules, which is where what is copied ends.
                fill(&device, growable.slice_mut(granule - 32..granule + 32).unwrap(), 5);
            }
            let forks = [pair[0].alias(granules(9)).unwrap(), pair[1].alias(granules(9)).unwrap()];
            let before = (bank.stats().held, device.live());
            let [a, b] = &mut pair;
            let fault = device.inject_fault(FaultPlan::nth(k));
            let from = Bytes::from_usize(granule + 1);
            let grown = grow_together(&mut [
                Growth::of(a, granules(4)).writable_from(from),
                Growth::of(b, granules(4)).writable_from(from),
            ]);
            let shrunk = grown.and_then(|copied| {
                assert_eq!(copied, Bytes::from_usize(2));
                assert_eq!(bank.stats().held, granules(3 + 3 + 2 * 3));
                shrink_together(&mut [(a, granules(1)), (b, granules(1))])
            });
            let failed = fault.fired();
            drop(fault);
            // A fault in a drop is the device's to settle: the call went well.
            assert!(shrunk.is_ok() || failed, "{shrunk:?}");
            if let Err(error) = shrunk {
                assert!(matches!(error, Error::Device(granule_device::Error::Injected { .. })), "{error}");
                fired += 1;
                if pair[0].len() != granules(4) {
                    let stats = bank.stats();
                    assert_eq!((stats.held, stats.owners[0].current), (before.0, before.0), "k = {k}");
                    bank.trim();
                    assert_eq!(device.live(), before.1, "k = {k}");
                } else {
                    assert_eq!(bank.stats().held, granules(3 + 3 + 2 * 3));
                    assert_eq!(pair[1].len(), granules(4));
                }
            }
            for growable in pair.iter().chain(&forks) {
                let keep = growable.len().get().min(granule as u64 + 1) as usize;
                assert!(is_all(&device, growable.slice(granule - 32..keep).unwrap(), 5));
            }
            drop((pair, forks));
            assert_eq!(bank.stats().held, Bytes::ZERO);
            bank.trim();
            assert_eq!(device.live(), LiveCounts::default());
            if !failed {
                break;
            }
        }
        assert!(fired > 10, "{fired} calls were failed");
    }
}

pub(crate) fn every_failing_call_leaves_the_stock_whole(open: Open<'_>) {
    let device = open(8);
    let bank = Bank::new(device.clone(), options(&device, 8)).unwrap();
    let owner = Owner::new("x");
    for k in 1.. {
        let mut range = bank.range(&owner, granules(&device, 8)).unwrap();
        range.fill(2..3).unwrap();
        range.fill(5..6).unwrap();
        let mut stock = bank.take(&owner, 6).unwrap();
        let fault = device.inject_fault(FaultPlan::nth(k));
        let filled = range.fill_from(0..7, &mut stock);
        let fired = fault.fired();
        drop(fault);
        assert_eq!(filled.is_err(), fired, "k = {k}: {filled:?}");
        let mapped: Vec<usize> = (0..8).filter(|&place| range.is_mapped(place)).collect();
        if fired {
            assert_eq!((stock.len(), mapped), (6, vec![2, 5]), "k = {k}");
            range.fill_from(0..7, &mut stock).unwrap();
        }
        assert_eq!(stock.len(), 1);
        fill(&device, range.slice_mut(place(&device, 6).end - 9..place(&device, 6).end).unwrap(), 3);
        assert!(range.slice_mut(..place(&device, 6).end).is_ok());
        assert_eq!(bank.stats().held, granules(&device, 8));
        if !fired {
            assert!(k > 3, "no call was failed");
            break;
        }
    }
}

/// Gives all it has.
struct Cache(Mutex<Range>);

impl Reclaim for Cache {
    fn owner(&self) -> Owner {
        Owner::new("cache")
    }

    fn could_give(&self) -> Vec<Offer> {
        let range = self.0.lock().unwrap();
        let mapped = (0..range.places()).filter(|&place| range.is_mapped(place)).count();
        vec![Offer::new(range.bank().granule().saturating_mul(mapped as u64), 1)]
    }

    fn reclaim(&self, want: Bytes) -> Bytes {
        let mut range = self.0.lock().unwrap();
        let places = range.places();
        range.clear(0..places).map_or(Bytes::ZERO, |()| want)
    }
}

/// Everything at once: a reclaimer, retired memory, a shared granule, a charge. Answers what was done at the end.
fn script(device: &Device) -> Result<usize, Error> {
    let size = |count| granules(device, count);
    let options = options(device, 6).cache(size(2)).reserve(size(1)).patience(Duration::from_secs(1));
    let bank = Bank::new(device.clone(), options)?;
    let mut held = bank.range(&Owner::new("cache"), size(3))?;
    held.fill(0..3)?;
    let cache = Arc::new(Cache(Mutex::new(held)));
    let _guard = bank.add_reclaimer(&cache);
    let mut growable = bank.growable(&Owner::new("kv"), size(4))?;
    growable.grow_to(size(2))?;
    let stream = device.stream()?;
    stream.call(|| ())?;
    growable.shrink_after(size(1), &stream.record()?)?;
    let mut fork = growable.alias(size(1))?;
    grow_together(&mut [Growth::of(&mut fork, size(3)).writable_from(Bytes::new(1))])?;
    let charge = bank.charge(&Owner::new("weights"), size(2))?;
    let mut stock = bank.take(&Owner::new("kv"), 1).or_else(|error| match error {
        Error::OutOfMemory { .. } => bank.take(&Owner::new("kv"), 0),
        other => Err(other),
    })?;
    cache.0.lock().unwrap().fill_from(0..stock.len(), &mut stock)?;
    bank.drain();
    let held = bank.stats().held;
    drop(charge);
    Ok((held.get() / size(1).get()) as usize)
}

fn walk(open: Open<'_>, plan: fn(u64) -> FaultPlan) {
    let device = open(16);
    // The first stream of all starts a thread, where it takes one.
    let _stream = is_host(&device).then(|| stream(&device));
    let before = device.live();
    let expected = script(&device).unwrap();
    for k in 1.. {
        let fault = device.inject_fault(plan(k));
        let done = script(&device);
        let fired = fault.fired();
        drop(fault);
        match done {
            Ok(held) => assert!(fired || held == expected, "k = {k}"),
            Err(error) => assert!(fired, "k = {k}: {error}"),
        }
        assert_eq!(device.live(), before, "k = {k}");
        assert_eq!(script(&device).unwrap(), expected, "the run after k = {k}");
        if !fired {
            assert!(k > 20, "{k} faults");
            break;
        }
    }
}

pub(crate) fn every_failing_call_under_pressure_leaves_nothing(open: Open<'_>) {
    walk(open, FaultPlan::nth);
}

pub(crate) fn every_lasting_failure_leaves_nothing(open: Open<'_>) {
    walk(open, FaultPlan::from_nth);
}

/// The calls that change access are the slow ones: a run of places is one of them, however long it is.
pub(crate) fn one_call_for_each_granule_and_one_for_the_run(open: Open<'_>) {
    let device = open(32);
    let bank = Bank::new(device.clone(), options(&device, 32)).unwrap();
    let mut range = bank.range(&Owner::new("x"), granules(&device, 24)).unwrap();
    let mut stock = bank.take(&Owner::new("x"), 24).unwrap();
    let mut counted = |what: &mut dyn FnMut(&mut Range)| {
        let before = device.calls_made();
        what(&mut range);
        device.calls_made() - before
    };
    // What a call costs besides, to have the right context current for example, is the same for one place as for many. The
    // host maps neighbours of its file in one go.
    let map = u64::from(!is_host(&device));
    let one = counted(&mut |range| range.fill_from(0..1, &mut stock).unwrap());
    assert_eq!(counted(&mut |range| range.fill_from(1..12, &mut stock).unwrap()), one + 10 * map);
    let two_runs = counted(&mut |range| range.fill_from(13..16, &mut stock).unwrap())
        + counted(&mut |range| range.fill_from(17..20, &mut stock).unwrap());
    assert_eq!(two_runs, 2 * one + 4 * map);
    let share = counted(&mut |range| drop(range.share(0..1).unwrap()));
    assert_eq!(counted(&mut |range| drop(range.share(1..10).unwrap())), share);
    assert!(share <= one);
    let clear = counted(&mut |range| range.clear(0..1).unwrap());
    assert_eq!(counted(&mut |range| range.clear(1..12).unwrap()), clear);
    assert_eq!(counted(&mut |range| range.clear(12..20).unwrap()), 2 * clear);
    assert_eq!(counted(&mut |range| drop(range.bank().snapshot())), 0);
}
