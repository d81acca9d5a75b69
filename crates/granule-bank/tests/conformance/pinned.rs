//! Banks over pinned memory.

use std::sync::{Arc, Mutex};

use granule_bank::{Bank, BankOptions, Budget, Error, Offer, Owner, PinnedBlock, Reclaim};
use granule_device::{Bytes, Device, Region};

use crate::support::{Open, granules, options, read, write};

fn pinned(device: &Device, budget: Bytes) -> Bank {
    Bank::pinned(device.clone(), BankOptions::new().budget(budget)).unwrap()
}

pub(crate) fn blocks_are_counted_and_given_back(open: Open<'_>) {
    let device = open(64);
    let bank = pinned(&device, Bytes::kib(100));
    let owner = Owner::new("staging");
    let mut block = bank.pinned_block(&owner, Bytes::new(5001)).unwrap();
    assert_eq!(
        (block.len(), bank.stats().held, device.live().pinned),
        (Bytes::new(5001), Bytes::new(5001), 1)
    );
    let bytes: Vec<u8> = (0..5001).map(|i| (i % 251) as u8).collect();
    write(&device, &bytes, block.slice_mut(..).unwrap());
    assert!(read(&device, block.slice(..).unwrap()) == bytes);
    assert!(block.slice(..5002).is_err() && block.ptr().addr() != 0);
    let refused = bank.pinned_block(&owner, Bytes::kib(96)).unwrap_err();
    assert!(matches!(refused, Error::OutOfMemory { free, .. } if free == Bytes::new(100 * 1024 - 5001)));
    assert!(matches!(bank.pinned_block(&owner, Bytes::kib(101)), Err(Error::TooLarge { .. })));
    assert!(bank.pinned_block(&owner, Bytes::ZERO).is_err());
    drop(block);
    let stats = bank.stats();
    assert_eq!((stats.held, stats.peak, device.live().pinned), (Bytes::ZERO, Bytes::new(5001), 0));
    // Blocks are all that it has, and granules all that another bank has.
    let of_granules = Bank::new(device.clone(), options(&device, 4)).unwrap();
    for refused in [
        bank.take(&owner, 1).map(drop),
        bank.range(&owner, granules(&device, 1)).and_then(|mut range| range.fill(0..1)),
        of_granules.pinned_block(&owner, Bytes::new(1)).map(drop),
    ] {
        let unsupported = matches!(refused, Err(Error::Device(granule_device::Error::Unsupported { .. })));
        assert!(unsupported, "{refused:?}");
    }
    assert!(bank.granule().is_zero() && bank.trim().is_zero());
}

pub(crate) fn a_budget_covers_pinned_and_device_memory(open: Open<'_>) {
    let device = open(64);
    let budget = Budget::new(granules(&device, 4));
    let of_granules = Bank::new(device.clone(), options(&device, 64).share(&budget)).unwrap();
    let pinned = Bank::pinned(device.clone(), options(&device, 64).share(&budget)).unwrap();
    let owner = Owner::new("x");
    drop(of_granules.take(&owner, 4).unwrap());
    // The granules that nobody holds make way for a block.
    let block = pinned.pinned_block(&owner, granules(&device, 2)).unwrap();
    assert_eq!(device.live().granules, 2);
    assert!(of_granules.take(&owner, 3).is_err());
    drop(block);
    of_granules.take(&owner, 4).unwrap();
}

/// Transfer buffers that are not in use.
struct Buffers(Mutex<Vec<PinnedBlock>>);

impl Reclaim for Buffers {
    fn owner(&self) -> Owner {
        Owner::new("buffers")
    }

    fn could_give(&self) -> Vec<Offer> {
        let size = self.0.lock().unwrap().iter().map(|block| block.len().get()).sum();
        vec![Offer::new(Bytes::new(size), 0)]
    }

    fn reclaim(&self, want: Bytes) -> Bytes {
        let mut given = Vec::new();
        let mut size = Bytes::ZERO;
        while size < want
            && let Some(block) = self.0.lock().unwrap().pop()
        {
            size = size.saturating_add(block.len());
            given.push(block);
        }
        size
    }
}

pub(crate) fn pinned_memory_asks_too(open: Open<'_>) {
    let device = open(64);
    let bank = pinned(&device, Bytes::kib(64));
    let owner = Owner::new("buffers");
    let blocks = (0..4).map(|_| bank.pinned_block(&owner, Bytes::kib(16)).unwrap()).collect();
    let buffers = Arc::new(Buffers(Mutex::new(blocks)));
    let _guard = bank.add_reclaimer(&buffers);
    let other = Owner::new("x");
    assert!(bank.pinned_block_now(&other, Bytes::kib(20)).is_err());
    let block = bank.pinned_block(&other, Bytes::kib(20)).unwrap();
    assert_eq!((buffers.0.lock().unwrap().len(), bank.stats().held), (2, Bytes::kib(52)));
    drop(block);
}

pub(crate) fn a_region_is_made_of_a_block(open: Open<'_>) {
    let device = open(64);
    let bank = pinned(&device, Bytes::kib(64));
    let stream = device.stream().unwrap();
    let mut from = Region::new(bank.pinned_block(&Owner::new("a"), Bytes::kib(16)).unwrap()).unwrap();
    let mut to = Region::new(device.alloc(Bytes::kib(16)).unwrap()).unwrap();
    stream.fill(&mut from, .., 7).unwrap();
    stream.copy(&from, .., &mut to, ..).unwrap();
    drop(from);
    // The work on it keeps it, and what is kept is held.
    stream.synchronize().unwrap();
    assert_eq!(read(&device, to.slice(..).unwrap()), vec![7; 16 << 10]);
    drop(stream);
    drop(to);
    assert_eq!(bank.stats().held, Bytes::ZERO);
}
