//! Captured work: what can be captured, what cannot, and that it runs each time.

use granule_device::{Access, Bytes, Error};

use crate::support::{
    PTX, assert_nothing_left, bytes, device, fill_kernel, fill_launch, pattern, read, region, write,
};

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_graph_does_its_work_each_time() {
    let device = device();
    let (stream, function) = (device.stream().unwrap(), fill_kernel(&device));
    let mut from = device.alloc(Bytes::new(64)).unwrap();
    let mut to = device.alloc(Bytes::new(64)).unwrap();
    stream.begin_capture().unwrap();
    // SAFETY: both buffers live to the end of the test and are looked at only after the stream was waited for.
    unsafe {
        stream.fill_slice(from.slice_mut(..).unwrap(), 1).unwrap();
        let launch = fill_launch(&function).write(from.slice_mut(..32).unwrap());
        stream.launch(launch.value(32_u64).value(7_u64).value(9_u64)).unwrap();
        stream.copy_slice(from.slice(..).unwrap(), to.slice_mut(..).unwrap()).unwrap();
    }
    let graph = stream.end_capture().unwrap();
    assert_eq!(graph.nodes().unwrap(), 3);
    let executable = graph.instantiate().unwrap();
    assert_eq!(device.live().graphs, 2);
    drop((graph, function));
    let expected = [pattern(32, 7, 9), vec![1; 32]].concat();
    for _ in 0..3 {
        write(&device, &[0; 64], to.slice_mut(..).unwrap());
        // SAFETY: as above.
        unsafe { executable.launch(&stream).unwrap() };
        stream.synchronize().unwrap();
        assert_eq!(read(&device, to.slice(..).unwrap()), expected);
    }
    // SAFETY: as above.
    unsafe { executable.launch(&stream).unwrap() };
    drop(executable);
    let live = device.live();
    assert_eq!((live.graphs, live.modules), (1, 1), "kept until the stream has been waited for");
    stream.synchronize().unwrap();
    drop((from, to, stream));
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_a_capture_cannot_hold_is_refused_and_leaves_it_whole() {
    let device = device();
    let (stream, other) = (device.stream().unwrap(), device.stream().unwrap());
    let (mut a, mut b) = (region(&device, 64), region(&device, 64));
    let mut range = device.reserve(device.granularity()).unwrap();
    let granule = device.create_granule().unwrap();
    let event = other.record().unwrap();
    let spare = device.alloc(Bytes::kib(4)).unwrap();
    let mut out = device.alloc(Bytes::new(8)).unwrap();
    let is_refused = |done: Result<(), Error>, what: &str| {
        assert!(matches!(done, Err(Error::Capturing { .. })), "{what}: {done:?}");
    };
    assert!(matches!(stream.end_capture(), Err(Error::NotCapturing)));
    stream.begin_capture().unwrap();
    is_refused(stream.begin_capture(), "begin");
    is_refused(stream.fill(&mut a, .., 1), "fill");
    is_refused(stream.copy(&a, .., &mut b, ..), "copy");
    is_refused(stream.call(|| ()), "call");
    is_refused(stream.wait(&event), "wait");
    is_refused(stream.record().map(drop), "record");
    is_refused(stream.synchronize(), "synchronize");
    is_refused(stream.alloc(Bytes::kib(4)).map(drop), "stream-ordered");
    is_refused(device.alloc(Bytes::kib(4)).map(drop), "alloc");
    is_refused(device.create_granule().map(drop), "granule");
    is_refused(device.reserve(Bytes::kib(4)).map(drop), "reserve");
    is_refused(range.map(0, std::slice::from_ref(&granule), Access::ReadWrite), "map");
    is_refused(granule_device::Module::load(&device, PTX).map(drop), "module");
    drop(spare);
    assert_eq!(device.live().unsettled, 1, "freeing would spoil the capture");
    // Work of other streams goes on.
    other.fill(&mut b, .., 2).unwrap();
    // SAFETY: the buffer lives to the end of the test.
    unsafe { stream.fill_slice(out.slice_mut(..).unwrap(), 3).unwrap() };
    let graph = stream.end_capture().unwrap();
    assert_eq!(device.live().unsettled, 0);
    assert_eq!(graph.nodes().unwrap(), 1);
    // SAFETY: as above.
    unsafe { graph.instantiate().unwrap().launch(&stream).unwrap() };
    stream.synchronize().unwrap();
    assert_eq!(read(&device, out.slice(..).unwrap()), [3; 8]);
    assert_eq!(bytes(&b), [2; 64]);
    range.map(0, &[granule], Access::ReadWrite).unwrap();
    drop((a, b, out, range, graph, event, stream, other));
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_stream_dropped_in_a_capture_ends_it() {
    let device = device();
    let stream = device.stream().unwrap();
    let mut out = device.alloc(Bytes::new(8)).unwrap();
    write(&device, &[0; 8], out.slice_mut(..).unwrap());
    stream.begin_capture().unwrap();
    // SAFETY: the buffer lives to the end of the test.
    unsafe { stream.fill_slice(out.slice_mut(..).unwrap(), 3).unwrap() };
    drop(stream);
    assert_eq!(read(&device, out.slice(..).unwrap()), [0; 8]);
    drop(out);
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_capture_by_somebody_else_is_seen() {
    use cudarc::driver::sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    let device = device();
    let stream = device.stream().unwrap();
    let theirs = std::sync::Arc::clone(stream.as_cuda().unwrap());
    let mut data = region(&device, 64);
    theirs.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    assert!(matches!(stream.fill(&mut data, .., 1), Err(Error::Capturing { .. })));
    assert!(matches!(device.create_granule(), Err(Error::Capturing { .. })));
    let _ = theirs.end_capture(cudarc::driver::sys::CUgraphInstantiate_flags(0));
    stream.fill(&mut data, .., 1).unwrap();
    assert_eq!(bytes(&data), [1; 64]);
}
