//! Reservations and granules: mapping, aliasing, access, retiring, giving back.

use std::ops::Range;

use granule_device::{Access, Bytes, Device, Error, FaultPlan, Granule, Reservation};

use crate::support::{granule, pattern, read, write};

fn place(device: &Device, index: usize) -> Range<usize> {
    index * granule(device)..(index + 1) * granule(device)
}

fn reserve(device: &Device, places: usize) -> Reservation {
    device.reserve(Bytes::from_usize(places * granule(device))).unwrap()
}

fn one(granule: &Granule) -> &[Granule] {
    std::slice::from_ref(granule)
}

/// The first bytes of a place: enough to tell it from another.
fn head(device: &Device, range: &Reservation, index: usize) -> Vec<u8> {
    let start = place(device, index).start;
    read(device, range.slice(start..start + 64).unwrap())
}

pub(crate) fn a_place_holds_what_was_written(open: &dyn Fn() -> Device) {
    let device = open();
    let size = granule(&device);
    let mut range = device.reserve(Bytes::from_usize(3 * size - 5)).unwrap();
    assert_eq!(range.places(), 3);
    assert_eq!(range.base().addr() % size as u64, 0);
    assert!(matches!(range.slice(..1), Err(Error::NotMapped { place: 0 })));
    range.map(1, one(&device.create_granule().unwrap()), Access::ReadWrite).unwrap();
    let data = pattern(1, size);
    write(&device, &data, range.slice_mut(place(&device, 1)).unwrap());
    assert_eq!(read(&device, range.slice(place(&device, 1)).unwrap()), data);
    assert!(matches!(range.slice(size - 1..size + 1), Err(Error::NotMapped { place: 0 })));
    assert!(matches!(range.slice(..3 * size + 1), Err(Error::OutOfRange { .. })));
}

pub(crate) fn the_base_stays_while_memory_comes_and_goes(open: &dyn Fn() -> Device) {
    let device = open();
    let mut range = reserve(&device, 6);
    let base = range.base();
    let mut here = Vec::new();
    for index in 0..6 {
        here.push(device.create_granule().unwrap());
        range.map(index, one(&here[index]), Access::ReadWrite).unwrap();
        write(
            &device,
            &[index as u8 + 1; 64],
            range.slice_mut(place(&device, index).start..place(&device, index).start + 64).unwrap(),
        );
    }
    // The granules change places; what they hold goes with them, the addresses stay.
    let taken = range.unmap(0..6).unwrap();
    for (index, granule) in taken.iter().rev().enumerate() {
        range.map(index, one(granule), Access::ReadWrite).unwrap();
    }
    assert_eq!(range.base(), base);
    for index in 0..6 {
        assert_eq!(head(&device, &range, index), [6 - index as u8; 64]);
    }
    range.unmap(2..4).unwrap();
    assert!(matches!(range.slice(place(&device, 2)), Err(Error::NotMapped { place: 2 })));
    assert_eq!(head(&device, &range, 4), [2; 64]);
}

pub(crate) fn one_writes_or_many_read(open: &dyn Fn() -> Device) {
    let device = open();
    let (mut a, mut b) = (reserve(&device, 2), reserve(&device, 2));
    let granule = device.create_granule().unwrap();
    a.map(0, one(&granule), Access::ReadWrite).unwrap();
    write(&device, &[7; 64], a.slice_mut(..64).unwrap());
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let refused = b.map(1, one(&granule), access);
        assert!(matches!(refused, Err(Error::Aliased { place: 1 })));
    }
    a.set_access(0..1, Access::ReadOnly).unwrap();
    b.map(1, one(&granule), Access::ReadOnly).unwrap();
    assert_eq!(granule.mappings(), 2);
    assert_eq!(head(&device, &b, 1), [7; 64]);
    assert!(matches!(b.slice_mut(place(&device, 1)), Err(Error::ReadOnly { .. })));
    assert!(matches!(a.set_access(0..1, Access::ReadWrite), Err(Error::Aliased { place: 0 })));
    drop(b);
    a.set_access(0..1, Access::ReadWrite).unwrap();
    write(&device, &[8; 64], a.slice_mut(..64).unwrap());
    assert_eq!(head(&device, &a, 0), [8; 64]);
    assert_eq!(granule.mappings(), 1);
}

pub(crate) fn the_same_granule_twice_in_one_call(open: &dyn Fn() -> Device) {
    let device = open();
    let mut range = reserve(&device, 2);
    let granule = device.create_granule().unwrap();
    let mut other = reserve(&device, 1);
    other.map(0, one(&granule), Access::ReadWrite).unwrap();
    write(&device, &[9; 64], other.slice_mut(..64).unwrap());
    other.unmap(0..1).unwrap();
    let twice = [granule.clone(), granule];
    assert!(matches!(range.map(0, &twice, Access::ReadWrite), Err(Error::Aliased { place: 1 })));
    assert_eq!(twice[0].mappings(), 0);
    range.map(0, &twice, Access::ReadOnly).unwrap();
    assert_eq!(twice[0].mappings(), 2);
    assert_eq!(head(&device, &range, 0), head(&device, &range, 1));
    assert_eq!(head(&device, &range, 1), [9; 64]);
    assert!(matches!(range.set_access(0..2, Access::ReadWrite), Err(Error::Aliased { .. })));
    assert_eq!(twice[0].mappings(), 2);
}

/// What a fork does when it writes: a private copy at the same address, and the other readers see nothing of it.
pub(crate) fn a_copy_takes_the_place_of_a_shared_granule(open: &dyn Fn() -> Device) {
    let device = open();
    let (mut a, mut b, mut side) = (reserve(&device, 1), reserve(&device, 1), reserve(&device, 1));
    let (shared, private) = (device.create_granule().unwrap(), device.create_granule().unwrap());
    side.map(0, one(&shared), Access::ReadWrite).unwrap();
    let data = pattern(4, granule(&device));
    write(&device, &data, side.slice_mut(..).unwrap());
    side.unmap(0..1).unwrap();
    a.map(0, one(&shared), Access::ReadOnly).unwrap();
    b.map(0, one(&shared), Access::ReadOnly).unwrap();
    side.map(0, one(&private), Access::ReadWrite).unwrap();
    device.copy(b.slice(..).unwrap(), side.slice_mut(..).unwrap()).unwrap();
    side.unmap(0..1).unwrap();
    let base = b.base();
    let before = b.replace(0, &private, Access::ReadWrite).unwrap();
    assert!(before.is_same(&shared));
    assert_eq!(b.base(), base);
    assert_eq!(read(&device, b.slice(..).unwrap()), data);
    write(&device, &[0; 64], b.slice_mut(..64).unwrap());
    assert_eq!(read(&device, a.slice(..).unwrap()), data);
    assert!(matches!(b.replace(0, &shared, Access::ReadWrite), Err(Error::Aliased { .. })));
    assert_eq!(head(&device, &b, 0), [0; 64]);
}

pub(crate) fn wrong_places_and_sizes_are_refused(open: &dyn Fn() -> Device) {
    let (device, other) = (open(), open());
    assert!(matches!(device.reserve(Bytes::ZERO), Err(Error::ZeroSize { .. })));
    assert!(matches!(device.reserve(Bytes::MAX), Err(Error::TooLarge { .. })));
    assert!(device.reserve(Bytes::new(1 << 62)).is_err());
    let mut range = device.reserve(Bytes::new(1)).unwrap();
    let granule = device.create_granule().unwrap();
    let foreign = other.create_granule().unwrap();
    assert!(matches!(range.map(1, one(&granule), Access::ReadWrite), Err(Error::NoSuchPlace { .. })));
    assert!(matches!(
        range.map(usize::MAX, one(&granule), Access::ReadWrite),
        Err(Error::NoSuchPlace { .. })
    ));
    assert!(matches!(range.map(0, one(&foreign), Access::ReadWrite), Err(Error::OtherDevice { .. })));
    assert!(matches!(range.unmap(0..1), Err(Error::NotMapped { place: 0 })));
    range.map(0, one(&granule), Access::ReadWrite).unwrap();
    assert!(matches!(range.map(0, one(&granule), Access::ReadWrite), Err(Error::AlreadyMapped { place: 0 })));
}

pub(crate) fn retired_places_stay_mapped_until_finished(open: &dyn Fn() -> Device) {
    let device = open();
    let mut range = reserve(&device, 3);
    let granules = [(); 2].map(|()| device.create_granule().unwrap());
    range.map(0, &granules, Access::ReadWrite).unwrap();
    let mut retired = range.retire(1..2).unwrap();
    assert!(matches!(range.retire(0..2), Err(Error::NotMapped { place: 1 })));
    assert!(matches!(range.slice(place(&device, 1)), Err(Error::NotMapped { place: 1 })));
    assert!(matches!(range.map(1, &granules[1..], Access::ReadOnly), Err(Error::Retiring { place: 1 })));
    let mut other = reserve(&device, 1);
    assert!(
        matches!(other.map(0, &granules[1..], Access::ReadOnly), Err(Error::Aliased { .. })),
        "still in use"
    );

    let fault = device.inject_fault(FaultPlan::nth(1));
    assert!(matches!(retired.finish(), Err(Error::Injected { .. })));
    drop(fault);
    assert_eq!((retired.len(), device.live().mappings), (1, 1));
    assert!(retired.finish().unwrap()[0].is_same(&granules[1]));
    other.map(0, &granules[1..], Access::ReadOnly).unwrap();
    drop((other, retired));
    range.map(1, &granules[1..], Access::ReadWrite).unwrap();

    // Where a drop is refused, the place is cleared before it is used again.
    let retired = range.retire(0..1).unwrap();
    let refused = device.inject_fault(FaultPlan::nth(1));
    drop(retired);
    assert!(refused.fired());
    drop(refused);
    range.map(0, &granules[..1], Access::ReadWrite).unwrap();

    let retired = range.retire(0..2).unwrap();
    drop((range, granules));
    assert_eq!((device.live().reservations, device.live().granules), (1, 2));
    drop(retired);
}

pub(crate) fn a_granule_outlives_its_handle_while_mapped(open: &dyn Fn() -> Device) {
    let device = open();
    let mut range = reserve(&device, 1);
    range.map(0, one(&device.create_granule().unwrap()), Access::ReadWrite).unwrap();
    write(&device, &[3; 64], range.slice_mut(..64).unwrap());
    let granules: Vec<_> = (0..8).map(|_| device.create_granule().unwrap()).collect();
    assert_eq!(head(&device, &range, 0), [3; 64]);
    assert_eq!(device.live().granules, 9);
    drop((granules, range));
    assert_eq!(device.live().granules, 0);
}

pub(crate) fn a_run_of_many_places_is_one_piece(open: &dyn Fn() -> Device) {
    let device = open();
    let size = granule(&device);
    let places = 12;
    let mut range = reserve(&device, places);
    let mut granules: Vec<_> = (0..places).map(|_| device.create_granule().unwrap()).collect();
    granules.reverse();
    range.map(0, &granules, Access::ReadWrite).unwrap();
    let data = pattern(5, places * size);
    write(&device, &data, range.slice_mut(..).unwrap());
    assert_eq!(
        read(&device, range.slice(size / 2..places * size - 3).unwrap()),
        data[size / 2..places * size - 3]
    );
    range.set_access(3..9, Access::ReadOnly).unwrap();
    assert!(matches!(range.slice_mut(..), Err(Error::ReadOnly { .. })));
    assert_eq!(read(&device, range.slice(..).unwrap()), data);
    range.set_access(0..places, Access::ReadWrite).unwrap();
    let mut buffer = device.alloc(range.len()).unwrap();
    device.copy(range.slice(..).unwrap(), buffer.slice_mut(..).unwrap()).unwrap();
    range.unmap(0..places).unwrap();
    assert_eq!(read(&device, buffer.slice(..).unwrap()), data);
}
