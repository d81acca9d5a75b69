//! Memory lent to cudarc: its calls take our views where they take its own slices.

use cudarc::driver::DevicePtr;
use granule_device::{DeviceSlice, Error};

use crate::support::{assert_nothing_left, bytes, device, region, write};

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn cudarc_copies_in_and_out_of_a_region() {
    let device = device();
    let stream = device.stream().unwrap();
    let theirs = std::sync::Arc::clone(stream.as_cuda().unwrap());
    let mut data = region(&device, 4000);
    stream.fill(&mut data, .., 0).unwrap();
    let values: Vec<u32> = (0..900).map(|i| i * i).collect();
    {
        let mut view = stream.lend_mut::<u32, _>(&mut data, 400..).unwrap();
        assert_eq!(view.len(), 900);
        theirs.memcpy_htod(&values, &mut view).unwrap();
    }
    let view = stream.lend::<u32, _>(&data, 396..).unwrap();
    let back = theirs.clone_dtoh(&view).unwrap();
    assert_eq!((back[0], &back[1..]), (0, &values[..]));
    drop(view);
    let mut expected = vec![0; 400];
    expected.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    assert_eq!(bytes(&data), expected);
    drop((data, theirs, stream));
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_lent_region_lives_until_the_stream_has_passed() {
    let device = device();
    let (stream, other) = (device.stream().unwrap(), device.stream().unwrap());
    let theirs = std::sync::Arc::clone(stream.as_cuda().unwrap());
    let (mut from, mut to) = (region(&device, 1 << 16), region(&device, 1 << 16));
    stream.fill(&mut from, .., 9).unwrap();
    {
        let source = stream.lend::<u8, _>(&from, ..).unwrap();
        let mut target = stream.lend_mut::<u8, _>(&mut to, ..).unwrap();
        theirs.memcpy_dtod(&source, &mut target).unwrap();
    }
    drop(from);
    // Looking waits for what cudarc was given, which our stream never saw.
    assert_eq!(bytes(&to), vec![9; 1 << 16]);
    // A stream that the region was not lent on waits for the one that it was, and each use is waited for.
    let elsewhere = std::sync::Arc::clone(other.as_cuda().unwrap());
    for round in 0..10 {
        stream.fill(&mut to, .., round).unwrap();
        let view = stream.lend::<u8, _>(&to, ..).unwrap();
        assert_eq!(elsewhere.clone_dtoh(&view).unwrap(), vec![round; 1 << 16]);
        drop(view);
        stream.fill(&mut to, .., 100).unwrap();
        let mut view = stream.lend_mut::<u8, _>(&mut to, ..).unwrap();
        elsewhere.memcpy_htod(&[round; 1 << 16], &mut view).unwrap();
        drop(view);
        assert_eq!(bytes(&to), vec![round; 1 << 16]);
    }
    stream.synchronize().unwrap();
    drop(to);
    assert_eq!(device.live().buffers, 0);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn slices_are_lent_as_whole_aligned_elements() {
    let device = device();
    let stream = device.stream().unwrap();
    let theirs = stream.as_cuda().unwrap();
    let mut buffer = device.alloc(granule_device::Bytes::new(64)).unwrap();
    write(&device, &[1; 64], buffer.slice_mut(..).unwrap());
    let lent = |slice: DeviceSlice<'_>| {
        // SAFETY: the view is given to no work.
        let view = unsafe { slice.for_cudarc::<u32>(theirs) };
        view.map(|view| {
            assert_eq!(view.device_ptr(theirs).0, slice.ptr().addr());
            view.len()
        })
    };
    assert_eq!(lent(buffer.slice(..).unwrap()).unwrap(), 16);
    assert_eq!(lent(buffer.slice(60..).unwrap()).unwrap(), 1);
    assert!(matches!(lent(buffer.slice(..3).unwrap()), Err(Error::Launch { .. })));
    assert!(matches!(lent(buffer.slice(2..6).unwrap()), Err(Error::Launch { .. })));
    assert!(matches!(lent(DeviceSlice::from(&[0; 4][..])), Err(Error::Launch { .. })));
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_lent_slice_orders_other_streams_and_holds_nothing() {
    let device = device();
    let (stream, other) = (device.stream().unwrap(), device.stream().unwrap());
    let theirs = std::sync::Arc::clone(stream.as_cuda().unwrap());
    let elsewhere = std::sync::Arc::clone(other.as_cuda().unwrap());
    let mut buffer = device.alloc(granule_device::Bytes::kib(64)).unwrap();
    for round in 0..10_u8 {
        // SAFETY: the buffer outlives the streams' work, which is waited for below.
        let mut view = unsafe { stream.lend_slice_mut::<u8>(buffer.slice_mut(..).unwrap()).unwrap() };
        theirs.memset_zeros(&mut view).unwrap();
        theirs.memcpy_htod(&[round; 1 << 16], &mut view).unwrap();
        drop(view);
        // SAFETY: as above.
        let view = unsafe { stream.lend_slice::<u8>(buffer.slice(..).unwrap()).unwrap() };
        assert_eq!(elsewhere.clone_dtoh(&view).unwrap(), vec![round; 1 << 16]);
    }
    // SAFETY: nothing is given to a stream with it.
    let odd = unsafe { stream.lend_slice::<u32>(buffer.slice(..6).unwrap()) };
    assert!(matches!(odd, Err(Error::Launch { .. })));
    stream.synchronize().unwrap();
    drop((buffer, theirs, elsewhere, stream, other));
    assert_nothing_left(&device);
}
