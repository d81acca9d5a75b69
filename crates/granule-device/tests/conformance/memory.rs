//! Memory in one piece: copies in all directions, running out, giving back.

use granule_device::{Bytes, Device, DeviceSlice, DeviceSliceMut, Error, LeaseMode};

use crate::support::{pattern, read, write};

pub(crate) fn copies_go_every_way(open: &dyn Fn() -> Device) {
    let device = open();
    let len = 100_000;
    let data = pattern(1, len);
    let size = Bytes::from_usize(len);
    let (mut a, mut b) = (device.alloc(size).unwrap(), device.alloc(size).unwrap());
    let mut pinned = device.alloc_pinned(size).unwrap();
    // Process -> device -> device -> pinned -> process.
    write(&device, &data, a.slice_mut(..).unwrap());
    device.copy(a.slice(..).unwrap(), b.slice_mut(..).unwrap()).unwrap();
    device.copy(b.slice(..).unwrap(), pinned.slice_mut(..).unwrap()).unwrap();
    assert_eq!(read(&device, pinned.slice(..).unwrap()), data);
    // Pinned -> device -> process, other bytes.
    let other = pattern(2, len);
    write(&device, &other, pinned.slice_mut(..).unwrap());
    device.copy(pinned.slice(..).unwrap(), a.slice_mut(..).unwrap()).unwrap();
    assert_eq!(read(&device, a.slice(..).unwrap()), other);
    assert_eq!(read(&device, b.slice(..).unwrap()), data, "a copy leaves the others alone");
    // Process -> process.
    let mut target = vec![0; len];
    device.copy(DeviceSlice::from(&data[..]), DeviceSliceMut::from(&mut target[..])).unwrap();
    assert_eq!(target, data);
}

pub(crate) fn odd_offsets_and_lengths(open: &dyn Fn() -> Device) {
    let device = open();
    let mut expected = vec![0x11; 5000];
    let mut buffer = device.alloc(Bytes::new(5000)).unwrap();
    write(&device, &expected, buffer.slice_mut(..).unwrap());
    for (seed, (start, len)) in
        [(0, 1), (1, 1), (4999, 1), (3, 4093), (17, 255), (4090, 10)].into_iter().enumerate()
    {
        let part = pattern(seed as u64, len);
        write(&device, &part, buffer.slice_mut(start..start + len).unwrap());
        expected[start..start + len].copy_from_slice(&part);
    }
    assert_eq!(read(&device, buffer.slice(..).unwrap()), expected);
    assert_eq!(read(&device, buffer.slice(7..8).unwrap()), expected[7..8]);
}

pub(crate) fn zero_bytes_are_a_copy_too(open: &dyn Fn() -> Device) {
    let device = open();
    let mut buffer = device.alloc(Bytes::new(64)).unwrap();
    write(&device, &[5; 64], buffer.slice_mut(..).unwrap());
    write(&device, &[], buffer.slice_mut(64..).unwrap());
    assert!(read(&device, buffer.slice(10..10).unwrap()).is_empty());
    assert_eq!(read(&device, buffer.slice(..).unwrap()), [5; 64]);
    for refused in [device.alloc(Bytes::ZERO).map(drop), device.alloc_pinned(Bytes::ZERO).map(drop)] {
        assert!(matches!(refused, Err(Error::ZeroSize { .. })), "{refused:?}");
    }
}

pub(crate) fn lengths_and_ranges_are_checked(open: &dyn Fn() -> Device) {
    let device = open();
    let mut buffer = device.alloc(Bytes::new(64)).unwrap();
    let other = device.alloc(Bytes::new(64)).unwrap();
    assert!(matches!(buffer.slice(..65), Err(Error::OutOfRange { .. })));
    assert!(matches!(buffer.slice(65..), Err(Error::OutOfRange { .. })));
    let copy = device.copy(other.slice(..63).unwrap(), buffer.slice_mut(..).unwrap());
    assert!(matches!(copy, Err(Error::LengthMismatch { source_len: 63, target_len: 64 })));
}

pub(crate) fn full_and_never_fits_are_kept_apart(open: &dyn Fn() -> Device) {
    let device = open();
    let memory = device.memory().unwrap();
    let never = memory.total.checked_add(Bytes::mib(2)).unwrap();
    let refused = device.alloc(never);
    assert!(matches!(refused, Err(Error::TooLarge { requested, .. }) if requested >= never), "{refused:?}");
    // Most in one piece, so that filling the rest does not take thousands of calls on a large device.
    let spare = device.granularity().saturating_mul(8);
    let most = memory.free.saturating_sub(spare);
    let large = device.alloc(most).unwrap();
    let mut granules = Vec::new();
    let refused = loop {
        match device.create_granule() {
            Ok(granule) => granules.push(granule),
            Err(error) => break error,
        }
        assert!(granules.len() < 10_000, "memory has an end");
    };
    assert!(matches!(&refused, Error::OutOfMemory { .. }), "{refused}");
    drop(large);
    granules.push(device.create_granule().unwrap());
}

pub(crate) fn what_is_given_back_can_be_had_again(open: &dyn Fn() -> Device) {
    let device = open();
    let size = device.granularity().saturating_mul(4);
    let warm = device.alloc(size).unwrap();
    drop(warm);
    let before = device.memory().unwrap().free;
    for round in 0..50 {
        let buffer = device.alloc(size).unwrap();
        let granules = [(); 4].map(|()| device.create_granule().unwrap());
        assert!(device.memory().unwrap().free < before, "round {round}");
        drop((buffer, granules));
    }
    assert_eq!(device.memory().unwrap().free, before);
}

pub(crate) fn pinned_memory_is_the_hosts_too(open: &dyn Fn() -> Device) {
    let device = open();
    let mut pinned = device.alloc_pinned(Bytes::kib(8)).unwrap();
    let mut buffer = device.alloc(Bytes::kib(8)).unwrap();
    let data = pattern(3, 8192);
    pinned.slice_mut(..).unwrap().as_host_mut().unwrap().copy_from_slice(&data);
    device.copy(pinned.slice(..).unwrap(), buffer.slice_mut(..).unwrap()).unwrap();
    pinned.slice_mut(..).unwrap().as_host_mut().unwrap().fill(0);
    device.copy(buffer.slice(..).unwrap(), pinned.slice_mut(..).unwrap()).unwrap();
    assert_eq!(pinned.slice(..).unwrap().as_host().unwrap(), data);
}

/// Pieces of one allocation in every mode: each holds what was written to it and nothing of its neighbours.
pub(crate) fn leases_are_pieces_of_their_own(open: &dyn Fn() -> Device) {
    let device = open();
    assert_eq!(device.lease_mode(), LeaseMode::Quiet);
    for (mode, cut) in [(LeaseMode::Quiet, true), (LeaseMode::Announced, true), (LeaseMode::Apart, false)] {
        device.set_lease_mode(mode);
        let mut slab = device.alloc(Bytes::kib(4)).unwrap();
        let base = slab.ptr().addr();
        let before = device.live().buffers;
        let (left, right) = slab.slice_mut(..).unwrap().split_at(1024).unwrap();
        let mut leases = [device.lease(left).unwrap(), device.lease(right).unwrap()];
        assert_eq!(leases.each_ref().map(|lease| lease.len()), [1024, 3072]);
        let inside = |lease: &granule_device::Lease| (base..base + 4096).contains(&lease.ptr().addr());
        assert!(leases.iter().all(|lease| inside(lease) == cut), "{mode:?}");
        for (seed, lease) in leases.iter_mut().enumerate() {
            write(&device, &pattern(seed as u64, lease.len()), lease.slice_mut());
        }
        for (seed, lease) in leases.iter().enumerate() {
            assert_eq!(read(&device, lease.slice()), pattern(seed as u64, lease.len()), "{mode:?}");
        }
        assert_eq!(device.live().buffers - before, if cut { 0 } else { 2 }, "{mode:?}");
        drop(leases);
        assert_eq!((device.live().buffers, device.live().suballocations), (before, 0), "{mode:?}");
        assert!(device.lease(slab.slice_mut(7..7).unwrap()).unwrap().is_empty(), "{mode:?}");
    }
}
