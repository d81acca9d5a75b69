//! Ranges and growables over a small host device: bytes, sharing, accounting and faults.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use granule_bank::{Bank, BankOptions, Error, Growth, Owner, grow_together, shrink_together};
use granule_device::{Bytes, Device, FaultPlan, HostOptions, LiveCounts};

const GRANULE: usize = 4096;

fn granules(count: usize) -> Bytes {
    Bytes::from_usize(count * GRANULE)
}

fn device(count: usize) -> Device {
    Device::host_with(HostOptions::new().granule(granules(1)).capacity(granules(count))).unwrap()
}

fn bank(count: usize) -> Bank {
    Bank::new(device(count), BankOptions::new()).unwrap()
}

fn place(index: usize) -> std::ops::Range<usize> {
    index * GRANULE..(index + 1) * GRANULE
}

#[test]
fn sparse_places_come_and_go() {
    let bank = bank(8);
    let mut range = bank.range(&Owner::new("a"), granules(10)).unwrap();
    range.fill(2..4).unwrap();
    range.slice_mut(place(3)).unwrap().as_host_mut().unwrap().fill(3);
    range.fill(0..6).unwrap();
    assert_eq!(bank.stats().held, granules(6));
    assert!(range.slice(place(3)).unwrap().as_host().unwrap().iter().all(|&b| b == 3));
    range.clear(1..3).unwrap();
    assert!(!range.is_mapped(1) && !range.is_mapped(2) && range.is_mapped(3));
    assert_eq!((bank.stats().held, bank.stats().cached), (granules(4), granules(2)));
    range.clear(0..10).unwrap();
    assert_eq!(bank.stats().held, Bytes::ZERO);
    assert!(range.fill(5..11).is_err());
    assert!(matches!(range.fill(0..9), Err(Error::TooLarge { requested, .. }) if requested == granules(9)));
    assert_eq!(bank.trim(), granules(6));
    assert_eq!(bank.device().live().granules, 0);
}

#[test]
fn a_shared_granule_counts_once_and_is_not_written() {
    let bank = bank(4);
    let (a, b) = (Owner::new("a"), Owner::new("b"));
    let mut first = bank.range(&a, granules(1)).unwrap();
    let mut second = bank.range(&b, granules(1)).unwrap();
    first.fill(0..1).unwrap();
    first.slice_mut(..).unwrap().as_host_mut().unwrap().fill(1);
    let shared = first.share(0..1).unwrap();
    second.map_shared(0, &shared).unwrap();
    drop(shared);
    assert!(first.is_shared(0) && second.is_shared(0));
    assert_eq!(first.piece_id(0), second.piece_id(0));
    assert!(first.slice_mut(..).is_err() && second.slice_mut(..).is_err());
    assert_eq!(bank.stats().held, granules(1));

    let base = second.base();
    second.make_private(0).unwrap();
    assert_eq!(second.base(), base);
    second.slice_mut(..).unwrap().as_host_mut().unwrap()[5..].fill(2);
    assert!(first.slice(..).unwrap().as_host().unwrap().iter().all(|&byte| byte == 1));
    assert_eq!(second.slice(..7).unwrap().as_host().unwrap(), &[1, 1, 1, 1, 1, 2, 2]);
    assert_eq!(bank.stats().held, granules(2));
    let current: Vec<_> = bank.stats().owners.iter().map(|owner| owner.current).collect();
    assert_eq!(current, [granules(1), granules(1)]);

    // Nobody shares it any more: private again without a copy.
    assert!(!first.is_shared(0));
    let id = first.piece_id(0);
    first.make_private(0).unwrap();
    assert_eq!(first.piece_id(0), id);
    first.slice_mut(..).unwrap();
    assert!(first.make_private(1).is_err() && first.make_private(usize::MAX).is_err());
}

#[test]
fn a_shared_granule_outlives_the_range_it_came_from() {
    let bank = bank(4);
    let mut first = bank.range(&Owner::new("a"), granules(2)).unwrap();
    first.fill(0..2).unwrap();
    first.slice_mut(place(1)).unwrap().as_host_mut().unwrap().fill(9);
    let shared = first.share(1..2).unwrap();
    drop(first);
    assert_eq!(bank.stats().held, granules(1));
    let mut second = bank.range(&Owner::new("b"), granules(1)).unwrap();
    second.map_shared(0, &shared).unwrap();
    assert!(second.slice(..).unwrap().as_host().unwrap().iter().all(|&byte| byte == 9));
    let other = self::bank(1);
    let mut foreign = other.range(&Owner::new("c"), granules(1)).unwrap();
    assert!(matches!(foreign.map_shared(0, &shared), Err(Error::OtherBank { .. })));
    drop((shared, second));
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

#[test]
fn out_of_memory_names_who_holds_most() {
    let bank = Bank::new(device(100), BankOptions::new().budget(granules(4))).unwrap();
    let _charge = bank.charge(&Owner::new("weights"), Bytes::from_usize(2 * GRANULE + 1)).unwrap();
    let mut range = bank.range(&Owner::new("kv"), granules(9)).unwrap();
    range.fill(0..1).unwrap();
    match range.fill(1..2) {
        Err(Error::OutOfMemory { device, owner, requested, held, free, budget, largest_owner }) => {
            assert_eq!((device.as_str(), owner.name()), ("host", "kv"));
            assert_eq!((requested, budget), (granules(1), granules(4)));
            assert_eq!((held, free), (Bytes::from_usize(3 * GRANULE + 1), Bytes::from_usize(GRANULE - 1)));
            assert_eq!(largest_owner, Some((Owner::new("weights"), Bytes::from_usize(2 * GRANULE + 1))));
        }
        other => panic!("{other:?}"),
    }
    assert!(matches!(bank.charge(&Owner::new("x"), granules(5)), Err(Error::TooLarge { .. })));
}

#[test]
fn the_device_may_be_full_before_the_budget_is() {
    let device = device(3);
    let bank = Bank::new(device.clone(), BankOptions::new().budget(granules(9))).unwrap();
    let _other = device.alloc(granules(1)).unwrap();
    let mut range = bank.range(&Owner::new("kv"), granules(9)).unwrap();
    let refused = range.fill(0..3).unwrap_err();
    assert!(matches!(refused, Error::OutOfMemory { free: Bytes::ZERO, .. }), "{refused}");
    assert_eq!(bank.stats().held, Bytes::ZERO);
    range.fill(0..2).unwrap();
}

#[test]
fn cached_granules_make_way() {
    let bank = Bank::new(
        device(8),
        BankOptions::new().budget(granules(4)).cache(granules(3)).cache_low(granules(3)),
    )
    .unwrap();
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
}

#[test]
fn growing_keeps_base_and_bytes() {
    let bank = bank(64);
    let mut growable = bank.growable(&Owner::new("kv"), granules(64)).unwrap();
    let base = growable.base();
    let mut model: Vec<u8> = Vec::new();
    for step in 1..200usize {
        let len = step * 997;
        growable.grow_to(Bytes::from_usize(len)).unwrap();
        let bytes = (model.len()..len).map(|i| (i * 31 % 251) as u8).collect::<Vec<_>>();
        growable.slice_mut(model.len()..).unwrap().as_host_mut().unwrap().copy_from_slice(&bytes);
        model.extend(bytes);
        assert_eq!(growable.base(), base);
        assert_eq!(growable.slice(..).unwrap().as_host().unwrap(), &model);
        assert_eq!(bank.stats().held, growable.mapped());
        assert_eq!(growable.mapped(), granules(len.div_ceil(GRANULE)));
    }
    growable.grow_to(Bytes::new(1)).unwrap();
    assert_eq!(growable.len(), Bytes::from_usize(model.len()), "growing never shrinks");
    assert!(growable.slice(..model.len() + 1).is_err() && growable.slice_mut(..model.len() + 1).is_err());
    growable.shrink_to(Bytes::from_usize(5000)).unwrap();
    assert_eq!(growable.slice(..).unwrap().as_host().unwrap(), &model[..5000]);
    assert_eq!(bank.stats().held, granules(2));
    assert!(matches!(growable.grow_to(granules(65)), Err(Error::Reserved { .. })));
}

#[test]
fn an_alias_copies_only_where_it_is_written() {
    let bank = bank(16);
    let mut parent = bank.growable(&Owner::new("kv"), granules(8)).unwrap();
    let len = 3 * GRANULE + 100;
    parent.grow_to(Bytes::from_usize(len)).unwrap();
    parent.slice_mut(..).unwrap().as_host_mut().unwrap().fill(1);
    let mut child = parent.alias(Bytes::from_usize(len)).unwrap();
    assert_eq!(bank.stats().held, granules(4));
    assert!(parent.slice_mut(..1).is_err() && child.slice_mut(..1).is_err());
    let grown = Bytes::from_usize(len + 10);
    let copied =
        grow_together(&mut [Growth::of(&mut child, grown).writable_from(Bytes::from_usize(len))]).unwrap();
    assert_eq!(copied, Bytes::from_usize(100));
    child.slice_mut(len..).unwrap().as_host_mut().unwrap().fill(2);
    assert_eq!(bank.stats().held, granules(5));
    assert!(child.slice(..len).unwrap().as_host().unwrap().iter().all(|&byte| byte == 1));
    // The last one that has the granule writes it without a copy.
    let copied =
        grow_together(&mut [Growth::of(&mut parent, grown).writable_from(Bytes::from_usize(len))]).unwrap();
    assert_eq!(copied, Bytes::ZERO);
    parent.slice_mut(len..).unwrap().as_host_mut().unwrap().fill(3);
    assert_eq!(bank.stats().held, granules(5));
    assert!(child.slice(len..).unwrap().as_host().unwrap().iter().all(|&byte| byte == 2));
    drop(parent);
    assert_eq!(bank.stats().held, granules(4));
    assert!(child.slice(..len).unwrap().as_host().unwrap().iter().all(|&byte| byte == 1));
}

/// Two growables, forked and grown and shrunk together, with the k-th call failing, for every k: an error, and everything as
/// it was; or no fault, and everything done.
#[test]
fn every_failing_call_changes_nothing() {
    let owner = Owner::new("kv");
    for cache in [Bytes::ZERO, granules(8)] {
        let mut fired = 0;
        for k in 1.. {
            let device = device(64);
            let bank = Bank::new(device.clone(), BankOptions::new().cache(cache)).unwrap();
            let mut pair = [(); 2].map(|()| bank.growable(&owner, granules(8)).unwrap());
            for growable in &mut pair {
                growable.grow_to(Bytes::from_usize(2 * GRANULE + 9)).unwrap();
                growable.slice_mut(..).unwrap().as_host_mut().unwrap().fill(5);
            }
            let forks = [pair[0].alias(granules(9)).unwrap(), pair[1].alias(granules(9)).unwrap()];
            let before = (bank.stats().held, device.live());
            let [a, b] = &mut pair;
            let fault = device.inject_fault(FaultPlan::nth(k));
            let from = Bytes::from_usize(GRANULE + 1);
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
                    assert_eq!(
                        (bank.stats().held, bank.stats().owners[0].current),
                        (before.0, before.0),
                        "k = {k}"
                    );
                    bank.trim();
                    assert_eq!(device.live(), before.1, "k = {k}");
                } else {
                    assert_eq!(bank.stats().held, granules(3 + 3 + 2 * 3));
                    assert_eq!(pair[1].len(), granules(4));
                }
            }
            for growable in pair.iter().chain(&forks) {
                let keep = growable.len().get().min(GRANULE as u64 + 1) as usize;
                assert!(growable.slice(..keep).unwrap().as_host().unwrap().iter().all(|&byte| byte == 5));
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
