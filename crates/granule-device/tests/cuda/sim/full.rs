//! Devices that are full, or lack something: each configuration in a process of its own.

use std::process::Command;

use granule_device::{Access, Bytes, CudaOptions, Device, Error, FaultPlan};

use crate::support::{assert_nothing_left, device, read};

fn full() -> (Device, Vec<granule_device::Granule>) {
    let device = device();
    let mut granules = Vec::new();
    loop {
        match device.create_granule() {
            Ok(granule) => granules.push(granule),
            Err(Error::OutOfMemory { .. }) => return (device, granules),
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn a_full_device_can_be_opened_and_learns_the_rest_later() {
    let (first, granules) = full();
    let second = Device::from_cuda(first.as_cuda().unwrap().clone()).unwrap();
    match second.features() {
        Err(Error::OutOfMemory { device, requested, .. }) => {
            assert_eq!((device.as_str(), requested), ("cuda:0", second.granularity()));
        }
        other => panic!("{other:?}"),
    }
    drop(granules);
    // One granule, made while there was room; then none is left to try anything on.
    let one = second.create_granule().unwrap();
    let mut rest = Vec::new();
    while let Ok(granule) = first.create_granule() {
        rest.push(granule);
    }
    let mut range = second.reserve(second.granularity()).unwrap();
    range.map(0, std::slice::from_ref(&one), Access::ReadWrite).unwrap();
    second.copy((&[5; 16][..]).into(), range.slice_mut(..16).unwrap()).unwrap();
    range.set_access(0..1, Access::ReadOnly).unwrap();
    let mut alias = second.reserve(second.granularity()).unwrap();
    alias.map(0, &[one], Access::ReadOnly).unwrap();
    assert_eq!(read(&second, alias.slice(..16).unwrap()), [5; 16]);
    drop(rest);
    let expected = first.features().unwrap();
    assert!(expected.read_only);
    assert_eq!(second.features().unwrap(), expected);
    drop((range, alias));
    assert_nothing_left(&second);
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn a_granule_larger_than_the_device_is_refused_in_words() {
    match Device::cuda_with(CudaOptions::new(0).granule(Bytes::new(1 << 40))) {
        Err(Error::TooLarge { device, requested, .. }) => {
            assert_eq!((device.as_str(), requested), ("cuda:0", Bytes::new(1 << 40)));
        }
        other => panic!("{other:?}"),
    }
    for size in [0, 1, 3 << 20, 3 << 30, u64::MAX] {
        let refused = Device::cuda_with(CudaOptions::new(0).granule(Bytes::new(size)));
        assert!(matches!(refused, Err(Error::GranuleSize { .. })), "{size}: {refused:?}");
    }
}

/// Runs one of the tests below that are no tests of their own, on a driver of this configuration.
fn on(configuration: &str, child: &str) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args([&format!("sim::full::{child}"), "--exact", "--ignored", "--nocapture"])
        .env("GRANULE_SIM", configuration)
        .env("GRANULE_CONFIGURATION", configuration)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Whether the configuration is the one that the test beside it wants; by itself there is nothing to look at.
fn is_child() -> bool {
    std::env::var_os("GRANULE_CONFIGURATION").is_some()
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn a_device_without_virtual_memory_says_what_it_lacks() {
    on("virtual-memory=off,strict=1", "no_virtual_memory");
}

#[test]
#[ignore = "the other half of the test beside it"]
fn no_virtual_memory() {
    if !is_child() {
        return;
    }
    let device = device();
    let features = device.features().unwrap();
    assert!(!features.virtual_memory && !features.read_only && device.granularity().is_zero());
    for len in [Bytes::new(1), Bytes::mib(4), Bytes::new(u64::MAX)] {
        let refused = device.reserve(len);
        assert!(matches!(refused, Err(Error::Unsupported { .. })), "{refused:?}");
    }
    assert!(matches!(device.create_granule(), Err(Error::Unsupported { .. })));
    assert!(matches!(device.create_granule_on_host(), Err(Error::Unsupported { .. })));
    device.alloc(Bytes::mib(1)).unwrap();
    for (granule, fits) in [(Bytes::mib(3), false), (Bytes::new(0), false), (Bytes::mib(2), true)] {
        match Device::cuda_with(CudaOptions::new(0).granule(granule)) {
            Ok(_) => assert!(fits, "{granule}"),
            Err(error) => assert!(!fits && matches!(error, Error::GranuleSize { .. }), "{error}"),
        }
    }
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn what_a_context_takes_is_measured() {
    on("context=23MiB,memory=64MiB,strict=1", "contexts_that_take_room");
}

#[test]
#[ignore = "the other half of the test beside it"]
fn contexts_that_take_room() {
    if !is_child() {
        return;
    }
    let host = Device::host().unwrap().context_bytes();
    assert!(matches!(host, Err(Error::Unsupported { .. })), "{host:?}");
    let device = device();
    let free = || device.memory().unwrap().free;
    assert_eq!(free(), Bytes::mib(64 - 23));
    // Room for no other one: the driver's word, with the figures.
    let most = device.alloc(Bytes::mib(32)).unwrap();
    match device.context_bytes() {
        Err(Error::OutOfMemory { device, free, .. }) => {
            assert_eq!((device.as_str(), free), ("cuda:0", Bytes::mib(64 - 23 - 32)));
        }
        other => panic!("{other:?}"),
    }
    drop(most);
    let stream = device.stream().unwrap();
    stream.begin_capture().unwrap();
    let refused = device.context_bytes();
    assert!(matches!(refused, Err(Error::Capturing { .. })), "{refused:?}");
    drop(stream.end_capture().unwrap());
    drop(stream);
    let mut failed = 0;
    for n in 1.. {
        let fault = device.inject_fault(FaultPlan::nth(n));
        let measured = device.context_bytes();
        let fired = fault.fired();
        drop(fault);
        assert_eq!(free(), Bytes::mib(64 - 23), "call {n}");
        device.alloc(Bytes::kib(4)).unwrap();
        match measured {
            Err(Error::Injected { .. }) => failed += 1,
            Ok(bytes) => {
                assert_eq!(bytes, Bytes::mib(23));
                assert!(!fired);
                break;
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!(failed >= 4, "{failed}");
    let calls = device.calls_made();
    assert_eq!(device.context_bytes().unwrap(), Bytes::mib(23));
    assert_eq!(device.calls_made(), calls, "measured once");
    // The other device's is its own.
    assert_eq!(Device::cuda(1).unwrap().context_bytes().unwrap(), Bytes::mib(23));
    assert_nothing_left(&device);
}
