//! One bank, many threads: the books come out even.

use granule_bank::{Bank, BankOptions, Error, Growth, Owner, grow_together};
use granule_device::{Bytes, Device, HostOptions, LiveCounts};

const GRANULE: usize = 4096;

fn granules(count: usize) -> Bytes {
    Bytes::from_usize(count * GRANULE)
}

#[test]
fn the_budget_holds_whoever_asks() {
    let device = Device::host_with(HostOptions::new().granule(granules(1)).capacity(granules(64))).unwrap();
    let options = BankOptions::new().budget(granules(24)).cache(granules(4));
    let bank = Bank::new(device.clone(), options).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let bank = bank.clone();
            scope.spawn(move || {
                let owner = Owner::new(format!("thread {thread}"));
                let mut full = 0;
                for step in 0..200usize {
                    let mut growable = bank.growable(&owner, granules(16)).unwrap();
                    for len in 1..=8 {
                        match growable.grow_to(granules(len)) {
                            Ok(()) => {
                                let byte = (thread * 50 + step) as u8;
                                growable.slice_mut(..).unwrap().as_host_mut().unwrap().fill(byte);
                            }
                            Err(Error::OutOfMemory { .. }) => full += 1,
                            Err(other) => panic!("{other}"),
                        }
                    }
                    let fork = growable.alias(growable.len()).unwrap();
                    let (len, from) = (growable.len(), Bytes::new(7).min(growable.len()));
                    let _ = grow_together(&mut [Growth::of(&mut growable, len).writable_from(from)]);
                    drop(growable);
                    let bytes = fork.slice(..).unwrap().as_host().unwrap();
                    assert!(bytes.windows(2).all(|pair| pair[0] == pair[1]));
                    let stats = bank.stats();
                    assert!(stats.held.get() + stats.cached.get() <= stats.budget.get());
                }
                full
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
#[test]
fn forks_part_on_different_threads() {
    let device = Device::host_with(HostOptions::new().granule(granules(1)).capacity(granules(64))).unwrap();
    let bank = Bank::new(device, BankOptions::new()).unwrap();
    for round in 0..100usize {
        let mut parent = bank.growable(&Owner::new("kv"), granules(4)).unwrap();
        parent.grow_to(granules(2)).unwrap();
        parent.slice_mut(..).unwrap().as_host_mut().unwrap().fill(round as u8);
        let forks: Vec<_> = (0..3).map(|_| parent.alias(granules(2)).unwrap()).collect();
        std::thread::scope(|scope| {
            for (index, mut growable) in forks.into_iter().chain([parent]).enumerate() {
                scope.spawn(move || {
                    let from = Bytes::from_usize(GRANULE + 9);
                    grow_together(&mut [Growth::of(&mut growable, granules(3)).writable_from(from)]).unwrap();
                    growable.slice_mut(GRANULE + 9..).unwrap().as_host_mut().unwrap().fill(200 + index as u8);
                    let bytes = growable.slice(..).unwrap().as_host().unwrap();
                    assert!(bytes[..GRANULE + 9].iter().all(|&byte| byte == round as u8));
                    assert!(bytes[GRANULE + 9..].iter().all(|&byte| byte == 200 + index as u8));
                });
            }
        });
        assert_eq!(bank.stats().held, Bytes::ZERO);
    }
}
