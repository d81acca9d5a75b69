//! Memory of every kind: who can address it, what it holds, what a device says of itself.

use std::sync::Arc;

use granule_device::{
    Access, Bytes, CudaOptions, Device, DeviceKind, Error, MappedFile, Region, cuda_devices,
};

use crate::support::{assert_nothing_left, bytes, device, read, region, write};

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_device_is_what_the_list_says() {
    let devices = cuda_devices().unwrap();
    for info in &devices {
        let device = Device::cuda(info.ordinal).unwrap();
        assert_eq!(device.kind(), DeviceKind::Cuda);
        assert_eq!(device.cuda_info().unwrap(), *info);
        let (major, minor) = (info.driver_version / 1000, info.driver_version % 1000 / 10);
        assert!(info.driver_version >= 12040 && info.driver == format!("{major}.{minor}"), "{info:?}");
        assert_eq!(device.name(), format!("cuda:{}", info.ordinal));
        assert_eq!(info.granularity, Some(device.granularity()));
        let memory = device.memory().unwrap();
        // The driver keeps some of it for itself in one of the two figures.
        assert!(memory.free <= memory.total && memory.total <= info.total && memory.total > Bytes::mib(16));
        let features = device.features().unwrap();
        assert_eq!((features.managed, features.stream_ordered), (info.managed, info.stream_ordered));
        assert!(info.peers[info.ordinal] && info.peers.len() == devices.len());
        assert!(info.compute_capability.major >= 7, "{}", info.compute_capability);
        assert!(info.uuid.starts_with("GPU-") && info.uuid.len() == 40, "{}", info.uuid);
    }
    let beyond = devices.len();
    match Device::cuda(beyond) {
        Err(Error::NoSuchDevice { ordinal, count }) => assert_eq!((ordinal, count), (beyond, beyond)),
        other => panic!("{other:?}"),
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn the_host_sees_all_but_device_memory() {
    let device = device();
    let mut plain = device.alloc(Bytes::kib(4)).unwrap();
    assert!(plain.slice(..).unwrap().as_host().is_none());
    assert!(plain.slice_mut(..).unwrap().as_host_mut().is_none());
    let mut pinned = device.alloc_pinned(Bytes::kib(4)).unwrap();
    assert_eq!(pinned.slice(..).unwrap().as_host().unwrap(), &[0; 4096]);
    assert_eq!(pinned.slice(..).unwrap().kind(), DeviceKind::Cuda);
    pinned.slice_mut(..).unwrap().as_host_mut().unwrap().fill(5);
    device.copy(pinned.slice(..).unwrap(), plain.slice_mut(..).unwrap()).unwrap();
    assert_eq!(read(&device, plain.slice(4000..).unwrap()), [5; 96]);
    // A host device does not follow a GPU's addresses.
    let host = Device::host().unwrap();
    let mut here = [0; 8];
    let refused = host.copy(plain.slice(..8).unwrap(), (&mut here[..]).into());
    assert!(matches!(refused, Err(Error::OtherDevice { .. })), "{refused:?}");
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn managed_memory_is_used_by_both() {
    let device = device();
    if !device.features().unwrap().managed {
        assert!(matches!(device.alloc_managed(Bytes::kib(64)), Err(Error::Unsupported { .. })));
        return;
    }
    let stream = device.stream().unwrap();
    let mut managed = Region::new(device.alloc_managed(Bytes::kib(64)).unwrap()).unwrap();
    assert_eq!(managed.slice(..).unwrap().as_host().unwrap(), &[0; 1 << 16]);
    assert_eq!(device.live().managed, 1);
    stream.fill(&mut managed, 100..200, 7).unwrap();
    managed.slice_mut(150..).unwrap().as_host_mut().unwrap()[0] = 8;
    let mut plain = region(&device, 300);
    stream.copy(&managed, ..300, &mut plain, ..).unwrap();
    let expected: Vec<u8> =
        (0..300).map(|i| if i == 150 { 8 } else { u8::from((100..200).contains(&i)) * 7 }).collect();
    assert_eq!(bytes(&plain), expected);
    drop((managed, plain, stream));
    assert_nothing_left(&device);
}

/// A driver may refuse a file's pages, and says so in words then.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_registered_file_is_read_by_the_device_or_refused_by_name() {
    let device = device();
    let file = tempfile::NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..10_000_u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(file.path(), &content).unwrap();
    match device.register(Arc::new(MappedFile::open(file.path()).unwrap())) {
        Ok(registered) => {
            assert_eq!(registered.slice().as_host().unwrap(), content);
            let (stream, mut plain) = (device.stream().unwrap(), region(&device, content.len()));
            let registered = Region::new(registered).unwrap();
            stream.copy(&registered, .., &mut plain, ..).unwrap();
            drop(registered);
            assert_eq!(bytes(&plain), content);
        }
        Err(error @ Error::CannotRegister { .. }) => {
            assert!(error.to_string().contains(&file.path().display().to_string()), "{error}");
        }
        Err(other) => panic!("{other:?}"),
    }
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_granule_of_host_memory_is_mapped_like_any() {
    let device = device();
    let size = device.granularity().to_usize().unwrap();
    let granule = match device.create_granule_on_host() {
        Err(error @ Error::Unsupported { .. }) => {
            assert!(!device.features().unwrap().host_granules, "{error}");
            return;
        }
        granule => granule.unwrap(),
    };
    assert!(device.features().unwrap().host_granules);
    let mut range = device.reserve(Bytes::from_usize(2 * size)).unwrap();
    range.map(0, &[granule, device.create_granule().unwrap()], Access::ReadWrite).unwrap();
    write(&device, &[3; 64], range.slice_mut(size - 32..size + 32).unwrap());
    range.set_access(0..2, Access::ReadOnly).unwrap();
    assert_eq!(read(&device, range.slice(size - 33..size + 32).unwrap())[1..], [3; 64]);
    drop(range);
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn memory_made_by_a_stream_is_there_for_others_too() {
    let device = device();
    if !device.features().unwrap().stream_ordered {
        let stream = device.stream().unwrap();
        assert!(matches!(stream.alloc(Bytes::kib(64)), Err(Error::Unsupported { .. })));
        return;
    }
    let (first, second) = (device.stream().unwrap(), device.stream().unwrap());
    let mut made = first.alloc(Bytes::kib(64)).unwrap();
    second.fill(&mut made, .., 6).unwrap();
    let filled = second.record().unwrap();
    first.wait(&filled).unwrap();
    let mut copy = first.alloc(Bytes::new(100)).unwrap();
    first.copy(&made, ..100, &mut copy, ..).unwrap();
    drop(made);
    assert_eq!(bytes(&copy), [6; 100]);
    drop((copy, first, second));
    assert_nothing_left(&device);
    let stream = device.stream().unwrap();
    assert!(matches!(stream.alloc(Bytes::ZERO), Err(Error::ZeroSize { .. })));
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn granules_may_be_larger_than_the_least() {
    let least = device().granularity();
    let double = Bytes::new(least.get() * 2);
    let device = Device::cuda_with(CudaOptions::new(0).granule(double)).unwrap();
    let mut range = device.reserve(least).unwrap();
    assert_eq!((range.places(), range.len()), (1, double));
    range.map(0, &[device.create_granule().unwrap()], Access::ReadWrite).unwrap();
    let last = double.to_usize().unwrap() - 4;
    write(&device, &[9; 4], range.slice_mut(last..).unwrap());
    assert_eq!(read(&device, range.slice(last..).unwrap()), [9; 4]);
    let odd = CudaOptions::new(0).granule(Bytes::new(least.get() * 3));
    assert!(matches!(Device::cuda_with(odd), Err(Error::GranuleSize { .. })));
    drop(range);
    assert_nothing_left(&device);
}
