//! Granules that nobody holds: kept, let go between two marks, made ahead.

use std::time::{Duration, Instant};

use granule_bank::{Bank, BankStats, Owner};
use granule_device::{Bytes, FaultPlan};

use crate::support::{Open, granules, options};

/// Waits until the statistics say so, and answers them.
fn until(bank: &Bank, what: &str, holds: impl Fn(&BankStats) -> bool) -> BankStats {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let stats = bank.stats();
        if holds(&stats) {
            return stats;
        }
        assert!(Instant::now() < deadline, "{what}: {stats:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn cached_granules_make_way(open: Open<'_>) {
    let device = open(8);
    let granules = |count| granules(&device, count);
    let options = options(&device, 4).cache(granules(3)).cache_low(granules(3));
    let bank = Bank::new(device.clone(), options).unwrap();
    let owner = Owner::new("a");
    let mut range = bank.range(&owner, granules(4)).unwrap();
    range.fill(0..4).unwrap();
    range.clear(0..4).unwrap();
    assert_eq!(bank.stats().cached, granules(3));
    let calls = bank.device().calls_made();
    let stock = bank.take(&owner, 2).unwrap();
    assert_eq!((stock.len(), bank.device().calls_made()), (2, calls), "reused without a device call");
    let _charge = bank.charge(&owner, granules(2)).unwrap();
    assert_eq!(bank.stats().cached, Bytes::ZERO);
    assert_eq!(bank.device().live().granules, 2);
    let stats = bank.stats();
    assert_eq!((stats.cache_hits, stats.cache_misses, stats.hit_rate()), (2, 4, Some(2.0 / 6.0)));
    assert_eq!(stats.driver_calls, device.calls_made());
}

pub(crate) fn above_the_high_mark_it_goes_back_to_the_low_one(open: Open<'_>) {
    let device = open(16);
    let granules = |count| granules(&device, count);
    let options = options(&device, 16).cache(granules(5)).cache_low(granules(2));
    let bank = Bank::new(device.clone(), options).unwrap();
    let owner = Owner::new("a");
    let mut stocks: Vec<_> = (0..8).map(|_| bank.take(&owner, 1).unwrap()).collect();
    let kept = |count: usize| {
        assert_eq!(bank.stats().cached, granules(count));
        assert_eq!(device.live().granules, count + (bank.stats().held.get() / granules(1).get()) as usize);
    };
    stocks.truncate(3);
    kept(5);
    stocks.truncate(2);
    kept(2);
    stocks.truncate(0);
    kept(4);
    assert_eq!(bank.stats().prepared, 0, "nothing is made ahead unless asked for");
}

pub(crate) fn granules_are_made_ahead(open: Open<'_>) {
    let device = open(16);
    let granules = |count| granules(&device, count);
    let options = options(&device, 6).cache(granules(4)).cache_low(granules(3)).prepare();
    let bank = Bank::new(device.clone(), options).unwrap();
    let owner = Owner::new("a");
    until(&bank, "made ahead", |stats| stats.cached == granules(3));
    let stock = bank.take(&owner, 2).unwrap();
    assert_eq!(bank.stats().cache_misses, 0);
    until(&bank, "made again", |stats| stats.cached == granules(3));
    let more = bank.take(&owner, 2).unwrap();
    // The budget has room for two more only.
    let stats = until(&bank, "as far as the budget goes", |stats| stats.cached == granules(2));
    assert_eq!((stats.held, stats.prepared, stats.cache_hits), (granules(4), 6, 4));
    let charge = bank.charge(&owner, granules(2)).unwrap();
    assert_eq!(bank.stats().cached, Bytes::ZERO);
    drop(charge);
    until(&bank, "made again where a charge was", |stats| stats.cached == granules(2));
    drop((stock, more));
    drop(bank);
    assert_eq!(device.live().granules, 0);
}

pub(crate) fn what_cannot_be_made_ahead_is_counted(open: Open<'_>) {
    let device = open(16);
    let low = granules(&device, 2);
    let options = options(&device, 8).cache(low).cache_low(low).prepare();
    let bank = {
        let _fault = device.inject_fault(FaultPlan::from_nth(1));
        let bank = Bank::new(device.clone(), options).unwrap();
        let stats = until(&bank, "a failure", |stats| stats.prepare_errors > 0);
        assert_eq!(stats.prepared, 0);
        bank
    };
    // It is tried again when there is a reason to, and nobody else has heard of it.
    drop(bank.take(&Owner::new("a"), 1).unwrap());
    let stats = until(&bank, "made after all", |stats| stats.cached == low);
    assert!((1..3).contains(&stats.prepare_errors), "{stats:?}");
}

/// Whatever the preparer is at, a request that fits the budget is served.
pub(crate) fn what_is_made_ahead_stands_in_nobodys_way(open: Open<'_>) {
    let (device, other) = (open(6), open(6));
    let granules = |count| granules(&device, count);
    let budget = granule_bank::Budget::new(granules(4));
    let bank = |device: &granule_device::Device| {
        let options = options(device, 6).cache(granules(3)).cache_low(granules(3)).share(&budget).prepare();
        Bank::new(device.clone(), options).unwrap()
    };
    let banks = [bank(&device), bank(&other)];
    let owner = Owner::new("a");
    for round in 0..200usize {
        let count = 1 + round % 4;
        let stock = banks[round % 2].take_now(&owner, count).unwrap();
        let charge = banks[(round + 1) % 2].charge_now(&owner, granules(4 - count)).unwrap();
        assert!(banks[0].take_now(&owner, 1).is_err());
        drop((stock, charge));
        let stats = budget.stats();
        assert!(stats.held.is_zero() && stats.cached <= stats.limit, "{stats:?}");
    }
}

pub(crate) fn room_is_noticed_wherever_it_comes_from(open: Open<'_>) {
    let (device, other) = (open(8), open(8));
    let granules = |count| granules(&device, count);
    let budget = granule_bank::Budget::new(granules(4));
    let (low, owner) = (granules(2), Owner::new("a"));
    let plain = Bank::new(other.clone(), options(&other, 8).cache(granules(4)).share(&budget)).unwrap();
    let four = plain.take(&owner, 4).unwrap();
    let options = options(&device, 8).cache(low).cache_low(low).share(&budget).prepare();
    let bank = Bank::new(device.clone(), options).unwrap();
    drop(four);
    assert_eq!(
        (plain.stats().cached, bank.stats().cached),
        (granules(4), Bytes::ZERO),
        "kept by the other one"
    );
    plain.trim();
    until(&bank, "trimmed by another", |stats| stats.cached == low);
    let charge = plain.charge(&owner, granules(4)).unwrap();
    assert_eq!(bank.stats().cached, Bytes::ZERO);
    drop(charge);
    until(&bank, "discharged by another", |stats| stats.cached == low);
    // A request that was urgent, and kept it from making any.
    let three = bank.take(&owner, 3).unwrap();
    until(&bank, "one more", |stats| stats.cached == granules(1));
    drop(three);
}
