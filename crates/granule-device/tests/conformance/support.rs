//! What every conformance test needs: a device with a known size, and bytes in and out of it.

use granule_device::{Bytes, Device, DeviceSlice, DeviceSliceMut, HostOptions, LiveCounts, Memory, Region};

/// Memory that a test may count on, whatever the device.
pub(crate) const ROOM: Bytes = Bytes::mib(64);

/// A host device of a known size, with granules as large as a GPU's are in proportion.
pub(crate) fn host() -> Device {
    Device::host_with(HostOptions::new().granule(Bytes::kib(64)).capacity(ROOM)).unwrap()
}

/// The first CUDA device. Its absence is a failure: a test that needs it does not pass by skipping.
#[cfg(feature = "cuda")]
pub(crate) fn cuda() -> Device {
    Device::cuda(0).unwrap_or_else(|error| panic!("this test needs a CUDA device: {error}"))
}

/// Runs a test on a new device, and checks that it gave everything back.
pub(crate) fn with_device(open: fn() -> Device, test: fn(&dyn Fn() -> Device)) {
    let watched = std::cell::RefCell::new(Vec::new());
    test(&|| {
        let device = open();
        watched.borrow_mut().push(device.clone());
        device
    });
    for device in watched.into_inner() {
        assert_eq!(device.live(), LiveCounts::default(), "left behind on {}", device.name());
    }
}

/// The bytes of device memory.
pub(crate) fn read(device: &Device, slice: DeviceSlice<'_>) -> Vec<u8> {
    let mut bytes = vec![0xEE; slice.len()];
    device.copy(slice, DeviceSliceMut::from(&mut bytes[..])).unwrap();
    bytes
}

/// Puts bytes into device memory.
pub(crate) fn write(device: &Device, bytes: &[u8], target: DeviceSliceMut<'_>) {
    device.copy(DeviceSlice::from(bytes), target).unwrap();
}

/// Bytes that differ from place to place and from seed to seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 24) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// The bytes of a region, after the work that is in the way.
pub(crate) fn bytes<M: Memory>(region: &Region<M>) -> Vec<u8> {
    read(region.device(), region.slice(..).unwrap())
}

/// A region of plain memory.
pub(crate) fn region(device: &Device, len: usize) -> Region<granule_device::Buffer> {
    Region::new(device.alloc(Bytes::from_usize(len)).unwrap()).unwrap()
}

/// A region of pinned memory.
pub(crate) fn pinned(device: &Device, len: usize) -> Region<granule_device::Pinned> {
    Region::new(device.alloc_pinned(Bytes::from_usize(len)).unwrap()).unwrap()
}

/// The size of a granule.
pub(crate) fn granule(device: &Device) -> usize {
    device.granularity().to_usize().unwrap()
}
