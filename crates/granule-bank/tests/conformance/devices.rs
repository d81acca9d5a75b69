//! What a suite's tests are given: devices with room for so many granules, each looked at once more when the test is over.
//!
//! The bank's suite and that of sequences, whose tests all say how much room they need, include this one file.

use std::cell::RefCell;

use granule_device::{Bytes, Device, DeviceKind, HostOptions, LiveCounts};

/// Opens a device with room for so many granules, on the host exactly so many.
pub(crate) type Open<'a> = &'a dyn Fn(usize) -> Device;

pub(crate) fn host(count: usize) -> Device {
    const GRANULE: Bytes = Bytes::kib(4);
    let options = HostOptions::new().granule(GRANULE).capacity(GRANULE.saturating_mul(count as u64));
    Device::host_with(options).unwrap()
}

/// The first CUDA device. Its absence is a failure: a test that needs it does not pass by skipping.
#[cfg(feature = "cuda")]
pub(crate) fn cuda(count: usize) -> Device {
    let device = Device::cuda(0).unwrap_or_else(|error| panic!("this test needs a CUDA device: {error}"));
    let needed = device.granularity().saturating_mul(count as u64);
    assert!(device.memory().unwrap().free >= needed, "too little free memory for this test");
    device
}

/// Runs a test, and checks that it gave everything back.
pub(crate) fn with_device(open: fn(usize) -> Device, test: fn(Open<'_>)) {
    let watched = RefCell::new(Vec::new());
    test(&|count| {
        let device = open(count);
        watched.borrow_mut().push(device.clone());
        device
    });
    for device in watched.into_inner() {
        assert_eq!(device.live(), LiveCounts::default(), "left behind on {}", device.name());
    }
}

pub(crate) fn is_host(device: &Device) -> bool {
    device.kind() == DeviceKind::Host
}
