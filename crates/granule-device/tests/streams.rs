//! Streams of the host device beyond the conformance suite: what shows only where work can be held up at a gate.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::{Arc, mpsc};
use std::time::Duration;

use granule_device::{Buffer, Bytes, Device, Error, HostOptions, MappedFile, Memory, Region};

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
