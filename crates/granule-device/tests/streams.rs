//! Streams, events and regions of the host device: order, waiting, lifetimes and faults.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use granule_device::{
    Buffer, Bytes, Device, Error, FaultPlan, HostOptions, LiveCounts, MappedFile, Memory, Region,
};
use proptest::prelude::*;

fn device() -> Device {
    Device::host_with(HostOptions::new().capacity(Bytes::mib(64))).unwrap()
}

fn region(device: &Device, len: u64) -> Region<Buffer> {
    Region::new(device.alloc(Bytes::new(len)).unwrap()).unwrap()
}

fn bytes<M: Memory>(region: &Region<M>) -> Vec<u8> {
    region.slice(..).unwrap().as_host().unwrap().to_vec()
}

#[test]
fn one_stream_keeps_its_order() {
    let device = device();
    let stream = device.stream().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    for i in 0..200 {
        let seen = Arc::clone(&seen);
        stream.call(move || seen.lock().unwrap().push(i)).unwrap();
    }
    stream.synchronize().unwrap();
    assert!(seen.lock().unwrap().iter().copied().eq(0..200));
}

#[test]
fn looking_waits_for_what_is_in_the_way() {
    let device = device();
    let stream = device.stream().unwrap();
    let (open, gate) = mpsc::channel::<()>();
    stream.call(move || gate.recv().unwrap()).unwrap();
    let (mut a, mut b) = (region(&device, 100), region(&device, 50));
    stream.fill(&mut a, .., 3).unwrap();
    stream.fill(&mut a, 10..20, 4).unwrap();
    stream.copy(&a, 5..55, &mut b, ..).unwrap();
    let event = stream.record().unwrap();
    assert!(!event.is_done());
    std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        open.send(()).unwrap();
    });
    let expected: Vec<u8> = (5..55).map(|i| if (10..20).contains(&i) { 4 } else { 3 }).collect();
    assert_eq!(bytes(&b), expected);
    b.slice_mut(..1).unwrap().as_host_mut().unwrap()[0] = 9;
    event.synchronize();
    assert!(event.is_done());
    assert_eq!(b.into_inner().unwrap().slice(..2).unwrap().as_host().unwrap(), &[9, 3]);
}

#[test]
fn a_wait_orders_two_streams() {
    let device = device();
    let (first, second) = (device.stream().unwrap(), device.stream().unwrap());
    for _ in 0..50 {
        let flag = Arc::new(AtomicBool::new(false));
        let (set, get) = (Arc::clone(&flag), flag);
        let late = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&late);
        first
            .call(move || {
                std::thread::sleep(Duration::from_micros(200));
                set.store(true, Ordering::Release);
            })
            .unwrap();
        let event = first.record().unwrap();
        second.wait(&event).unwrap();
        second.call(move || seen.store(get.load(Ordering::Acquire), Ordering::Release)).unwrap();
        second.synchronize().unwrap();
        assert!(late.load(Ordering::Acquire) && event.is_done());
    }
}

#[test]
fn memory_outlives_its_handle_until_the_work_has_run() {
    let device = device();
    let stream = device.stream().unwrap();
    let (open, gate) = mpsc::channel::<()>();
    let (mut from, mut to) = (region(&device, 64), region(&device, 64));
    stream.fill(&mut from, .., 8).unwrap();
    stream.call(move || gate.recv().unwrap()).unwrap();
    stream.copy(&from, .., &mut to, ..).unwrap();
    drop(from);
    assert_eq!(device.live().buffers, 2);
    open.send(()).unwrap();
    assert_eq!(bytes(&to), [8; 64]);
    stream.synchronize().unwrap();
    assert_eq!(device.live().buffers, 1);
}

#[test]
fn dropping_a_stream_runs_what_is_left() {
    let device = device();
    let count = Arc::new(AtomicUsize::new(0));
    let stream = device.stream().unwrap();
    for _ in 0..20 {
        let count = Arc::clone(&count);
        stream
            .call(move || {
                std::thread::sleep(Duration::from_micros(100));
                count.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap();
    }
    drop(stream);
    assert_eq!(count.load(Ordering::Relaxed), 20);
    assert_eq!(device.live(), LiveCounts::default());
}

#[test]
fn a_stream_may_be_dropped_by_its_own_work() {
    let device = device();
    let stream = Arc::new(device.stream().unwrap());
    let (own, last) = (Arc::clone(&stream), stream);
    let (send, receive) = mpsc::channel();
    last.call(move || {
        while Arc::strong_count(&own) > 1 {
            std::thread::yield_now();
        }
        drop(own);
        send.send(()).unwrap();
    })
    .unwrap();
    drop(last);
    receive.recv_timeout(Duration::from_secs(10)).unwrap();
}

#[test]
fn a_panic_comes_out_once_and_the_stream_goes_on() {
    let device = device();
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

#[test]
fn wrong_asks_are_refused() {
    let (device, other) = (device(), device());
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

#[test]
fn a_mapped_file_is_read_and_never_written() {
    let device = device();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"granule").unwrap();
    let registered = device.register(Arc::new(MappedFile::open(file.path()).unwrap())).unwrap();
    assert_eq!(device.live().registered, 1);
    let mut region = Region::new(registered).unwrap();
    let stream = device.stream().unwrap();
    assert!(matches!(stream.fill(&mut region, .., 0), Err(Error::ReadOnly { .. })));
    let mut pinned = Region::new(device.alloc_pinned(Bytes::new(7)).unwrap()).unwrap();
    stream.copy(&region, .., &mut pinned, ..).unwrap();
    assert_eq!(bytes(&pinned), b"granule");
    let empty = Arc::new(MappedFile::open(tempfile::NamedTempFile::new().unwrap().path()).unwrap());
    assert!(matches!(device.register(empty), Err(Error::ZeroSize { .. })));
}

#[test]
fn every_failing_call_leaves_nothing() {
    for k in 1.. {
        let device = device();
        let guard = device.inject_fault(FaultPlan::nth(k));
        let run = || -> Result<(), Error> {
            let stream = device.stream()?;
            let mut a = Region::new(device.alloc(Bytes::new(10))?)?;
            let mut b = Region::new(device.alloc_pinned(Bytes::new(10))?)?;
            stream.fill(&mut a, .., 1)?;
            stream.copy(&a, .., &mut b, ..)?;
            let event = stream.record()?;
            let other = device.stream()?;
            other.wait(&event)?;
            other.call(|| ())?;
            device.synchronize()?;
            assert_eq!(bytes(&b), [1; 10]);
            Ok(())
        };
        let done = run();
        let fired = guard.fired();
        assert!(done.is_ok() || fired, "{done:?}");
        drop(guard);
        assert_eq!(device.live(), LiveCounts::default(), "k = {k}");
        let memory = device.memory().unwrap();
        assert_eq!(memory.free, memory.total);
        if !fired {
            assert!(k > 12, "{k}");
            break;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Random fills and copies over three streams, each waiting for the last that was given: as done one after the other.
    #[test]
    fn chained_streams_are_like_one(ops in proptest::collection::vec(
        (0..3usize, 0..3usize, 1..3usize, 0..40usize, 0..40usize, 0..24usize, any::<u8>(), any::<bool>()), 1..60,
    )) {
        let device = device();
        let streams = [0; 3].map(|_| device.stream().unwrap());
        let mut regions = [0; 3].map(|_| region(&device, 64));
        let mut model = [[0u8; 64]; 3];
        let mut last = None;
        for (stream, source, step, from, to, len, value, copy) in ops {
            let stream = &streams[stream];
            if let Some(event) = &last {
                stream.wait(event).unwrap();
            }
            let target = (source + step) % 3;
            if copy {
                let [a, b] = regions.get_disjoint_mut([source, target]).unwrap();
                stream.copy(a, from..from + len, b, to..to + len).unwrap();
                let bytes = model[source][from..from + len].to_vec();
                model[target][to..to + len].copy_from_slice(&bytes);
            } else {
                stream.fill(&mut regions[target], to..to + len, value).unwrap();
                model[target][to..to + len].fill(value);
            }
            last = Some(stream.record().unwrap());
        }
        for (region, model) in regions.iter().zip(&model) {
            prop_assert_eq!(bytes(region), model.to_vec());
        }
    }
}
