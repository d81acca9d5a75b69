//! Functions of this process on a CUDA stream, which may not call the driver, and streams that are somebody else's.

use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use cudarc::driver::CudaContext;
use granule_device::{Bytes, Device, Error, Region, Stream};

use crate::support::{assert_nothing_left, bytes, device, region};

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_function_on_a_stream_cannot_use_the_device() {
    let device = device();
    let stream = Arc::new(device.stream().unwrap());
    let said = Arc::new(Mutex::new(Vec::new()));
    let (inner, own, told) = (device.clone(), Arc::clone(&stream), Arc::clone(&said));
    stream
        .call(move || {
            let mut told = told.lock().unwrap();
            told.push(inner.alloc(Bytes::kib(4)).err());
            told.push(inner.create_granule().err());
            told.push(own.record().err());
            told.push(own.call(|| ()).err());
            told.push(own.synchronize().err());
            told.push(inner.stream().err());
        })
        .unwrap();
    stream.synchronize().unwrap();
    let said = std::mem::take(&mut *said.lock().unwrap());
    assert_eq!(said.len(), 6);
    for error in said {
        assert!(matches!(error, Some(Error::InHostFunction { .. })), "{error:?}");
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_a_function_drops_is_freed_afterwards() {
    let device = device();
    let free = device.memory().unwrap().free;
    let stream = device.stream().unwrap();
    let (buffer, granule) = (device.alloc(Bytes::mib(1)).unwrap(), device.create_granule().unwrap());
    let event = stream.record().unwrap();
    stream.call(move || drop((buffer, granule, event))).unwrap();
    stream.synchronize().unwrap();
    drop(stream);
    assert_nothing_left(&device);
    assert_eq!(device.memory().unwrap().free, free);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_function_on_a_stream_waits_for_nothing() {
    let device = device();
    let (first, second) = (device.stream().unwrap(), device.stream().unwrap());
    let mut data = region(&device, 64);
    first.fill(&mut data, .., 1).unwrap();
    let filled = device.stream().unwrap().record().unwrap();
    let (send, receive) = mpsc::channel();
    let (asked, event) = (data, filled.clone());
    second
        .call(move || {
            let looked = asked.slice(..).map(drop);
            send.send((looked, event.is_done(), asked)).unwrap();
        })
        .unwrap();
    second.synchronize().unwrap();
    let (looked, done, data) = receive.try_recv().unwrap();
    assert!(matches!(looked, Err(Error::InHostFunction { .. })), "{looked:?}");
    assert!(!done, "nobody had asked before");
    filled.synchronize();
    assert!(filled.is_done());
    assert_eq!(bytes(&data), [1; 64]);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_stream_may_be_dropped_by_its_own_work() {
    let device = device();
    let stream = Arc::new(device.stream().unwrap());
    let own = Arc::clone(&stream);
    let (send, receive) = mpsc::channel();
    let (open, gate) = mpsc::channel::<()>();
    let mut data = region(&device, 64);
    stream.fill(&mut data, .., 1).unwrap();
    drop(data);
    stream
        .call(move || {
            gate.recv().unwrap();
            drop(own);
            send.send(()).unwrap();
        })
        .unwrap();
    // The function holds the last handle when it goes on.
    drop(stream);
    open.send(()).unwrap();
    CudaContext::new(0).unwrap().synchronize().unwrap();
    receive.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_stream_of_an_engines_own_is_used_and_left_alone() {
    let context = CudaContext::new(0).unwrap();
    let theirs = context.new_stream().unwrap();
    let device = Device::from_cuda(Arc::clone(&context)).unwrap();
    assert!(Arc::ptr_eq(device.as_cuda().unwrap(), &context));
    let stream = Stream::from_cuda(&device, Arc::clone(&theirs)).unwrap();
    assert!(Arc::ptr_eq(stream.as_cuda().unwrap(), &theirs));
    let (mut from, mut to) = (region(&device, 1000), region(&device, 1000));
    stream.fill(&mut from, .., 4).unwrap();
    stream.copy(&from, .., &mut to, ..).unwrap();
    drop(from);
    drop(stream);
    assert_eq!(device.live().buffers, 1);
    assert_eq!(bytes(&to), [4; 1000]);
    drop(to);
    assert_nothing_left(&device);
    drop(device);
    theirs.synchronize().unwrap();
    assert_eq!(Arc::strong_count(&theirs), 1);
    drop(theirs);
    assert_eq!(Arc::strong_count(&context), 1);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn pinned_memory_is_not_looked_at_under_a_copy() {
    let device = device();
    let stream = device.stream().unwrap();
    let mut pinned = Region::new(device.alloc_pinned(Bytes::kib(64)).unwrap()).unwrap();
    let mut plain = region(&device, 1 << 16);
    for round in 0..20_u8 {
        // Writing waits for the copy that still reads.
        pinned.slice_mut(..).unwrap().as_host_mut().unwrap().fill(round);
        stream.copy(&pinned, .., &mut plain, ..).unwrap();
        if round % 3 == 0 {
            assert_eq!(bytes(&plain), vec![round; 1 << 16]);
        }
    }
    assert_eq!(bytes(&plain), vec![19; 1 << 16]);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn many_threads_use_one_device() {
    let device = device();
    let shared = Arc::new(device.stream().unwrap());
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let (device, shared) = (&device, Arc::clone(&shared));
            scope.spawn(move || {
                let own = device.stream().unwrap();
                for round in 0..25_u8 {
                    let (mut from, mut to) = (region(device, 500), region(device, 500));
                    shared.fill(&mut from, .., thread * 32 + round).unwrap();
                    let filled = shared.record().unwrap();
                    own.wait(&filled).unwrap();
                    own.copy(&from, .., &mut to, ..).unwrap();
                    drop(from);
                    if round % 5 == 0 {
                        shared.synchronize().unwrap();
                    }
                    assert_eq!(bytes(&to), vec![thread * 32 + round; 500]);
                }
            });
        }
    });
    drop(shared);
    assert_nothing_left(&device);
}
