//! Streams, events and regions: order, waiting, lifetimes.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use granule_device::{Access, Bytes, Device, Error};

use crate::support::{bytes, pattern, pinned, read, region, write};

pub(crate) fn one_stream_keeps_its_order(open: &dyn Fn() -> Device) {
    let device = open();
    let stream = device.stream().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    for i in 0..200 {
        let seen = Arc::clone(&seen);
        stream.call(move || seen.lock().unwrap().push(i)).unwrap();
    }
    stream.synchronize().unwrap();
    assert!(seen.lock().unwrap().iter().copied().eq(0..200));
}

pub(crate) fn looking_waits_for_what_is_in_the_way(open: &dyn Fn() -> Device) {
    let device = open();
    let stream = device.stream().unwrap();
    let (mut a, mut b) = (region(&device, 100), region(&device, 50));
    stream.fill(&mut a, .., 3).unwrap();
    stream.fill(&mut a, 10..20, 4).unwrap();
    stream.copy(&a, 5..55, &mut b, ..).unwrap();
    let event = stream.record().unwrap();
    let expected: Vec<u8> = (5..55).map(|i| if (10..20).contains(&i) { 4 } else { 3 }).collect();
    assert_eq!(bytes(&b), expected);
    write(&device, &[9], b.slice_mut(..1).unwrap());
    event.synchronize();
    assert!(event.is_done());
    assert_eq!(read(&device, b.into_inner().unwrap().slice(..2).unwrap()), [9, 3]);
}

pub(crate) fn a_wait_orders_two_streams(open: &dyn Fn() -> Device) {
    let device = open();
    let (first, second) = (device.stream().unwrap(), device.stream().unwrap());
    let len = 4096;
    let (mut a, mut b, mut c) = (region(&device, len), region(&device, len), region(&device, len));
    for round in 0..20 {
        first.fill(&mut a, .., round).unwrap();
        first.copy(&a, .., &mut b, ..).unwrap();
        second.wait(&first.record().unwrap()).unwrap();
        second.copy(&b, .., &mut c, ..).unwrap();
        // The next round's writes wait for this round's reads.
        first.wait(&second.record().unwrap()).unwrap();
        assert_eq!(bytes(&c), vec![round; len], "round {round}");
    }
}

pub(crate) fn an_event_means_one_point(open: &dyn Fn() -> Device) {
    let device = open();
    let stream = device.stream().unwrap();
    let early = stream.record().unwrap();
    early.synchronize();
    let mut a = region(&device, 1 << 20);
    for value in 0..8 {
        stream.fill(&mut a, .., value).unwrap();
    }
    let late = stream.record().unwrap();
    assert!(early.is_done(), "what comes later does not take it back");
    late.synchronize();
    assert!(late.clone().is_done());
    drop(stream);
    assert!(late.is_done(), "an event outlives its stream");
    assert_eq!(bytes(&a), vec![7; 1 << 20]);
}

pub(crate) fn memory_outlives_its_handle_until_the_work_has_run(open: &dyn Fn() -> Device) {
    let device = open();
    let stream = device.stream().unwrap();
    let (mut from, mut to) = (region(&device, 64), region(&device, 64));
    stream.fill(&mut from, .., 8).unwrap();
    stream.copy(&from, .., &mut to, ..).unwrap();
    drop(from);
    let others: Vec<_> = (0..4).map(|_| region(&device, 64)).collect();
    assert_eq!(bytes(&to), [8; 64]);
    drop(others);
    stream.synchronize().unwrap();
    assert_eq!(device.live().buffers, 1);
}

pub(crate) fn dropping_a_stream_runs_what_is_left(open: &dyn Fn() -> Device) {
    let device = open();
    let count = Arc::new(AtomicUsize::new(0));
    let stream = device.stream().unwrap();
    let mut a = region(&device, 10);
    for _ in 0..20 {
        let count = Arc::clone(&count);
        stream
            .call(move || {
                count.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
    }
    stream.fill(&mut a, .., 5).unwrap();
    drop(stream);
    assert_eq!(count.load(Ordering::Relaxed), 20);
    assert_eq!(bytes(&a), [5; 10]);
}

pub(crate) fn a_panic_comes_out_once_and_the_stream_goes_on(open: &dyn Fn() -> Device) {
    let device = open();
    let stream = device.stream().unwrap();
    let ran = Arc::new(AtomicBool::new(false));
    let set = Arc::clone(&ran);
    stream.call(|| panic!("one of {}", 2)).unwrap();
    stream.call(move || set.store(true, Ordering::Release)).unwrap();
    match device.synchronize() {
        Err(Error::HostFunction { message }) => assert_eq!(message, "one of 2"),
        other => panic!("{other:?}"),
    }
    assert!(ran.load(Ordering::Acquire));
    stream.synchronize().unwrap();
}

pub(crate) fn wrong_asks_are_refused(open: &dyn Fn() -> Device) {
    let (device, other) = (open(), open());
    let stream = device.stream().unwrap();
    let (a, mut b, mut foreign) = (region(&device, 10), region(&device, 10), region(&other, 10));
    assert!(matches!(stream.copy(&a, ..5, &mut b, ..6), Err(Error::LengthMismatch { .. })));
    assert!(matches!(stream.copy(&a, ..11, &mut b, ..), Err(Error::OutOfRange { .. })));
    assert!(matches!(stream.fill(&mut b, 11.., 0), Err(Error::OutOfRange { .. })));
    assert!(matches!(stream.fill(&mut foreign, .., 0), Err(Error::OtherDevice { .. })));
    assert!(matches!(stream.copy(&a, .., &mut foreign, ..), Err(Error::OtherDevice { .. })));
    let event = other.stream().unwrap().record().unwrap();
    assert!(matches!(stream.wait(&event), Err(Error::OtherDevice { .. })));
}

/// What loading weights does: the host fills one of two pinned buffers while the other is on its way.
pub(crate) fn a_ring_of_pinned_buffers(open: &dyn Fn() -> Device) {
    let device = open();
    let stream = device.stream().unwrap();
    let (piece, pieces) = (3000, 16);
    let data = pattern(6, piece * pieces);
    let mut ring = [pinned(&device, piece), pinned(&device, piece)];
    let mut target = region(&device, piece * pieces);
    for (index, bytes) in data.chunks(piece).enumerate() {
        let slot = &mut ring[index % 2];
        // Asking for the slot to write waits until the copy out of it has run.
        slot.slice_mut(..).unwrap().as_host_mut().unwrap().copy_from_slice(bytes);
        stream.copy(slot, .., &mut target, index * piece..(index + 1) * piece).unwrap();
    }
    drop(ring);
    assert_eq!(bytes(&target), data);
}

/// A granule goes from one use to another: it is unmapped once the event after its last reader is done.
pub(crate) fn memory_is_unmapped_after_its_last_reader(open: &dyn Fn() -> Device) {
    let device = open();
    let size = device.granularity();
    let len = size.to_usize().unwrap();
    let mut range = device.reserve(size.saturating_mul(2)).unwrap();
    let granules = [(); 2].map(|()| device.create_granule().unwrap());
    range.map(0, &granules, Access::ReadWrite).unwrap();
    let data = pattern(7, 2 * len);
    write(&device, &data, range.slice_mut(..).unwrap());
    let stream = device.stream().unwrap();
    let mut busy = region(&device, 1 << 16);
    stream.fill(&mut busy, .., 1).unwrap();
    let mut retired = range.retire(1..2).unwrap();
    stream.record().unwrap().synchronize();
    let back = retired.finish().unwrap();
    range.map(1, &back, Access::ReadWrite).unwrap();
    assert_eq!(read(&device, range.slice(..).unwrap()), data);
    assert_eq!(range.len(), Bytes::from_usize(2 * len));
}
