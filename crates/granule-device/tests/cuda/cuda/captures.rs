//! Captures beside everything else: what is held stays held, no thread and no other handle spoils one, none spoils the device.

use std::sync::{Arc, mpsc};
use std::time::Duration;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode_enum as Mode};
use granule_device::{Bytes, Device, Error, Region};

use crate::support::{assert_nothing_left, bytes, device, region};

/// What a thread answers within a time in which nothing that works is still waiting.
fn in_time<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || send.send(ask()));
    receive.recv_timeout(Duration::from_secs(20)).unwrap()
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_lent_view_keeps_its_stream_from_being_captured() {
    let device = device();
    let stream = device.stream().unwrap();
    let theirs = Arc::clone(stream.as_cuda().unwrap());
    let mut from = region(&device, 1 << 16);
    stream.fill(&mut from, .., 7).unwrap();
    let mut pinned = Region::new(device.alloc_pinned(Bytes::kib(64)).unwrap()).unwrap();
    {
        let source = stream.lend::<u8, _>(&from, ..).unwrap();
        let mut target = stream.lend_mut::<u8, _>(&mut pinned, ..).unwrap();
        theirs.memcpy_dtod(&source, &mut target).unwrap();
        drop(source);
        let begun = stream.begin_capture();
        assert!(matches!(begun, Err(Error::Capturing { .. })), "{begun:?}");
    }
    stream.begin_capture().unwrap();
    // The copy was given before, and is waited for.
    assert_eq!(pinned.slice(..).unwrap().as_host().unwrap(), vec![7; 1 << 16]);
    assert_eq!(stream.end_capture().unwrap().nodes().unwrap(), 0);
    drop((from, pinned, stream));
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_cannot_be_waited_for_is_not_let_go() {
    let device = device();
    let stream = device.stream().unwrap();
    let theirs = Arc::clone(stream.as_cuda().unwrap());
    let mut from = region(&device, 1 << 16);
    stream.fill(&mut from, .., 7).unwrap();
    let mut pinned = Region::new(device.alloc_pinned(Bytes::kib(64)).unwrap()).unwrap();
    {
        let source = stream.lend::<u8, _>(&from, ..).unwrap();
        let mut target = stream.lend_mut::<u8, _>(&mut pinned, ..).unwrap();
        theirs.memcpy_dtod(&source, &mut target).unwrap();
        theirs.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_RELAXED).unwrap();
    }
    let looked = pinned.slice(..).map(|slice| slice.as_host().map(<[u8]>::len));
    assert!(matches!(looked, Err(Error::Capturing { .. })), "{looked:?}");
    let _ = theirs.end_capture(CUgraphInstantiate_flags(0));
    assert_eq!(pinned.slice(..).unwrap().as_host().unwrap(), vec![7; 1 << 16]);
    drop((from, pinned, stream));
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_dropped_stream_lets_go_beside_a_capture() {
    let device = device();
    let (first, second) = (device.stream().unwrap(), device.stream().unwrap());
    let mut data = region(&device, 1 << 16);
    first.fill(&mut data, .., 7).unwrap();
    first.fill(&mut data, .., 8).unwrap();
    second.begin_capture().unwrap();
    drop(first);
    let data = in_time(move || data.slice(..).map(drop).map(|()| data)).unwrap();
    second.end_capture().unwrap();
    assert_eq!(bytes(&data), [8; 1 << 16]);
    drop((data, second));
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_stream_that_its_own_kind_dropped_is_waited_for() {
    let device = device();
    let [first, second, third] = std::array::from_fn(|_| device.stream().unwrap());
    let mut data = region(&device, 1 << 16);
    first.fill(&mut data, .., 7).unwrap();
    third.begin_capture().unwrap();
    // Where the driver may not be called.
    second.call(move || drop(first)).unwrap();
    second.synchronize().unwrap();
    let data = in_time(move || data.slice(..).map(drop).map(|()| data)).unwrap();
    third.end_capture().unwrap();
    assert_eq!(bytes(&data), [7; 1 << 16]);
    drop((data, second, third));
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_capture_ends_on_any_thread() {
    let device = device();
    let stream = device.stream().unwrap();
    stream.begin_capture().unwrap();
    let stream = in_time(move || stream.end_capture().map(|_| stream)).unwrap();
    stream.begin_capture().unwrap();
    in_time(move || drop(stream));
    // The device goes on.
    drop(device.alloc(Bytes::kib(4)).unwrap());
    let (stream, other) = (device.stream().unwrap(), device.stream().unwrap());
    stream.begin_capture().unwrap();
    other.call(move || drop(stream)).unwrap();
    other.synchronize().unwrap();
    drop(device.alloc(Bytes::kib(4)).unwrap());
    drop(other);
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_capture_is_known_to_every_device_of_its_context() {
    let (one, other) = (device(), device());
    let stream = one.stream().unwrap();
    let spare = other.alloc(Bytes::mib(4)).unwrap();
    let granule = other.create_granule().unwrap();
    stream.begin_capture().unwrap();
    assert!(matches!(other.alloc(Bytes::kib(4)), Err(Error::Capturing { .. })));
    assert!(matches!(other.create_granule(), Err(Error::Capturing { .. })));
    drop((spare, granule));
    assert_eq!(other.live().unsettled, 2);
    stream.end_capture().unwrap();
    assert_nothing_left(&other);
    drop(stream);
    assert_nothing_left(&one);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn an_engines_capture_is_not_disturbed() {
    let context = CudaContext::new(0).unwrap();
    let device = Device::from_cuda(Arc::clone(&context)).unwrap();
    let engines = context.new_stream().unwrap();
    let stream = device.stream().unwrap();
    let free = device.memory().unwrap().free;
    let (spare, granule) = (device.alloc(Bytes::mib(4)).unwrap(), device.create_granule().unwrap());
    let mut pinned = Region::new(device.alloc_pinned(Bytes::kib(4)).unwrap()).unwrap();
    for mode in [Mode::CU_STREAM_CAPTURE_MODE_GLOBAL, Mode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL] {
        stream.fill(&mut pinned, .., 6).unwrap();
        let event = stream.record().unwrap();
        engines.begin_capture(mode).unwrap();
        // Frees, questions and waits of ours, on the thread that captures.
        let _ = event.is_done();
        drop((stream.record().unwrap(), device.stream().unwrap()));
        assert_eq!(pinned.slice(..).unwrap().as_host().unwrap(), [6; 4096]);
        event.synchronize();
        stream.synchronize().unwrap();
        engines.end_capture(CUgraphInstantiate_flags(0)).unwrap();
    }
    engines.begin_capture(Mode::CU_STREAM_CAPTURE_MODE_GLOBAL).unwrap();
    drop((spare, granule));
    engines.end_capture(CUgraphInstantiate_flags(0)).unwrap();
    drop((pinned, stream));
    assert_nothing_left(&device);
    assert!(device.memory().unwrap().free >= free, "what was freed during the capture came back");
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_answered_ok_is_in_no_capture() {
    let device = device();
    let (stream, mut came_first) = (device.stream().unwrap(), 0);
    for round in 0..3000_u32 {
        let mut data = Region::new(device.alloc_pinned(Bytes::new(64)).unwrap()).unwrap();
        let start = std::sync::Barrier::new(2);
        let given = std::thread::scope(|scope| {
            let giver = scope.spawn(|| {
                start.wait();
                stream.fill(&mut data, .., 7).is_ok()
            });
            start.wait();
            (0..round % 60).for_each(|_| std::hint::spin_loop());
            stream.begin_capture().unwrap();
            giver.join().unwrap()
        });
        let graph = stream.end_capture().unwrap();
        assert_eq!(graph.nodes().unwrap(), 0, "round {round}");
        if given {
            assert_eq!(data.slice(..).unwrap().as_host().unwrap(), [7; 64], "round {round}");
        }
        came_first += u32::from(given);
    }
    assert!(came_first > 0, "the fill never came first");
    drop(stream);
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn graphs_go_with_the_events_behind_them() {
    let device = device();
    let stream = device.stream().unwrap();
    let mut out = device.alloc(Bytes::kib(4)).unwrap();
    for round in 0..50 {
        stream.begin_capture().unwrap();
        // SAFETY: the buffer lives to the end of the test and is not looked at.
        unsafe { stream.fill_slice(out.slice_mut(..).unwrap(), 1).unwrap() };
        let executable = stream.end_capture().unwrap().instantiate().unwrap();
        // SAFETY: as above.
        unsafe { executable.launch(&stream).unwrap() };
        drop(executable);
        stream.record().unwrap().synchronize();
        let live = device.live().graphs;
        assert!(live <= 2, "round {round}: {live}");
    }
    stream.synchronize().unwrap();
    drop((out, stream));
    assert_nothing_left(&device);
}
