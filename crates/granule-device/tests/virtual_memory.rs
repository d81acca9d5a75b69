//! Virtual memory of the host device beyond the conformance suite: zeros, exact accounts, sizes of granules, huge pages.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use granule_device::{Access, Bytes, Device, Error, HostOptions, Reservation};

const GRANULE: usize = 4096 * 4;

fn device(granules: u64) -> Device {
    let granule = Bytes::from_usize(GRANULE);
    Device::host_with(HostOptions::new().granule(granule).capacity(granule.saturating_mul(granules))).unwrap()
}

fn place(index: usize) -> std::ops::Range<usize> {
    index * GRANULE..(index + 1) * GRANULE
}

#[test]
fn several_hosts_are_told_apart() {
    let named = |options: HostOptions| Device::host_with(options.capacity(Bytes::mib(4))).unwrap();
    assert_eq!(named(HostOptions::new()).name(), "host");
    let second = named(HostOptions::new().number(1));
    assert_eq!(second.name(), "host:1");
    let refused = [second.alloc(Bytes::mib(8)).unwrap_err(), {
        let held = second.alloc(Bytes::mib(3)).unwrap();
        let refused = second.alloc(Bytes::mib(3)).unwrap_err();
        drop(held);
        refused
    }];
    assert!(matches!(&refused[0], Error::TooLarge { device, .. } if device == "host:1"), "{refused:?}");
    assert!(matches!(&refused[1], Error::OutOfMemory { device, .. } if device == "host:1"), "{refused:?}");
}

#[test]
fn a_place_holds_what_was_written() {
    let device = device(4);
    let mut range = device.reserve(Bytes::from_usize(3 * GRANULE - 5)).unwrap();
    assert_eq!(range.places(), 3);
    assert_eq!(range.base().addr() % GRANULE as u64, 0);
    assert!(matches!(range.slice(..1), Err(Error::NotMapped { place: 0 })));
    let granule = device.create_granule().unwrap();
    range.map(1, &[granule], Access::ReadWrite).unwrap();
    let mut bytes = range.slice_mut(place(1)).unwrap();
    assert!(bytes.as_host().unwrap().iter().all(|&byte| byte == 0));
    bytes.as_host_mut().unwrap().fill(9);
    assert!(range.slice(place(1)).unwrap().as_host().unwrap().iter().all(|&byte| byte == 9));
    assert!(matches!(range.slice(GRANULE - 1..GRANULE + 1), Err(Error::NotMapped { place: 0 })));
    assert!(matches!(range.slice(..3 * GRANULE + 1), Err(Error::OutOfRange { .. })));
}

#[test]
fn full_and_never_fits_are_kept_apart() {
    let device = device(2);
    let one = device.create_granule().unwrap();
    let _two = device.create_granule().unwrap();
    assert!(matches!(device.create_granule(), Err(Error::OutOfMemory { free: Bytes::ZERO, .. })));
    let three = Bytes::from_usize(3 * GRANULE);
    assert!(matches!(device.alloc(three), Err(Error::TooLarge { requested, .. }) if requested == three));
    drop(one);
    assert_eq!(device.memory().unwrap().free, Bytes::from_usize(GRANULE));
    device.create_granule().unwrap();
}

#[test]
fn wrong_places_and_sizes_are_refused() {
    let device = device(4);
    assert!(matches!(device.reserve(Bytes::ZERO), Err(Error::ZeroSize { .. })));
    assert!(matches!(device.reserve(Bytes::MAX), Err(Error::TooLarge { .. })));
    assert!(matches!(device.reserve(Bytes::new(1 << 62)), Err(Error::Os { .. })));
    let mut range = device.reserve(Bytes::new(1)).unwrap();
    let granule = device.create_granule().unwrap();
    let other = self::device(1).create_granule().unwrap();
    let map = |range: &mut Reservation, at, granule: &granule_device::Granule| {
        range.map(at, std::slice::from_ref(granule), Access::ReadWrite)
    };
    assert!(matches!(map(&mut range, 1, &granule), Err(Error::NoSuchPlace { .. })));
    assert!(matches!(map(&mut range, usize::MAX, &granule), Err(Error::NoSuchPlace { .. })));
    assert!(matches!(map(&mut range, 0, &other), Err(Error::OtherDevice { .. })));
    assert!(matches!(range.unmap(0..1), Err(Error::NotMapped { place: 0 })));
    map(&mut range, 0, &granule).unwrap();
    assert!(matches!(map(&mut range, 0, &granule), Err(Error::AlreadyMapped { place: 0 })));
    for size in [0, 3, 1000, 4096 * 3] {
        let options = HostOptions::new().granule(Bytes::new(size));
        assert!(matches!(Device::host_with(options), Err(Error::GranuleSize { .. })), "{size}");
    }
}

/// Granules of this size are moved into huge pages when they are made, where the system can.
#[test]
fn making_a_huge_granule_changes_no_byte_of_others() {
    const SIZE: usize = 2 << 20;
    let size = Bytes::from_usize(SIZE);
    let options = HostOptions::new().granule(size).capacity(size.saturating_mul(3));
    let device = Device::host_with(options).unwrap();
    let mut range = device.reserve(size.saturating_mul(3)).unwrap();
    let mut readers = device.reserve(size.saturating_mul(2)).unwrap();
    let place = |index: usize| index * SIZE..(index + 1) * SIZE;
    // Every eight bytes say where they are, and in whose granule.
    let words = |owner: u64| (owner << 32..).flat_map(u64::to_le_bytes).take(SIZE).collect::<Vec<u8>>();
    let holds = |range: &Reservation, index: usize, expected: &[u8]| {
        assert!(range.slice(place(index)).unwrap().as_host().unwrap() == expected, "place {index}");
    };
    let fill = |range: &mut Reservation, index: usize, owner: u64| {
        let granule = device.create_granule().unwrap();
        range.map(index, std::slice::from_ref(&granule), Access::ReadWrite).unwrap();
        holds(range, index, &[0; SIZE]);
        range.slice_mut(place(index)).unwrap().as_host_mut().unwrap().copy_from_slice(&words(owner));
        granule
    };
    let first = fill(&mut range, 0, 1);
    fill(&mut range, 1, 2);
    range.set_access(0..1, Access::ReadOnly).unwrap();
    readers.map(0, &[first.clone(), first], Access::ReadOnly).unwrap();
    // Beside granules that are mapped, once where one was that is gone.
    fill(&mut range, 2, 3);
    drop(range.unmap(1..2).unwrap());
    fill(&mut range, 1, 4);
    let all = [words(1), words(4), words(3)].concat();
    assert!(range.slice(..).unwrap().as_host().unwrap() == all);
    holds(&readers, 0, &words(1));
    holds(&readers, 1, &words(1));
    // The last who reads may write; the others' bytes are still theirs.
    drop(readers);
    range.set_access(0..1, Access::ReadWrite).unwrap();
    range.slice_mut(place(0)).unwrap().as_host_mut().unwrap().copy_from_slice(&words(5));
    assert!(range.slice(..).unwrap().as_host().unwrap() == [words(5), words(4), words(3)].concat());
}
