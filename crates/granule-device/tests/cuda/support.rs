//! The device under test, and bytes in and out of it.

use granule_device::{
    Buffer, Bytes, Device, DeviceSlice, DeviceSliceMut, Function, Launch, LaunchShape, LiveCounts, Memory,
    Module, Region,
};

/// A kernel that fills bytes with a pattern of 16: `fill_bytes(to, bytes, low, high)`.
pub(crate) const PTX: &str = include_str!("../../../../kernels/ptx/fill.ptx");

/// The first CUDA device.
pub(crate) fn device() -> Device {
    Device::cuda(0).unwrap_or_else(|error| panic!("this test needs a CUDA device: {error}"))
}

/// What is left at the end of a test.
pub(crate) fn assert_nothing_left(device: &Device) {
    assert_eq!(device.live(), LiveCounts::default());
}

pub(crate) fn region(device: &Device, len: usize) -> Region<Buffer> {
    Region::new(device.alloc(Bytes::from_usize(len)).unwrap()).unwrap()
}

pub(crate) fn read(device: &Device, slice: DeviceSlice<'_>) -> Vec<u8> {
    let mut bytes = vec![0xEE; slice.len()];
    device.copy(slice, DeviceSliceMut::from(&mut bytes[..])).unwrap();
    bytes
}

pub(crate) fn write(device: &Device, bytes: &[u8], target: DeviceSliceMut<'_>) {
    device.copy(DeviceSlice::from(bytes), target).unwrap();
}

pub(crate) fn bytes<M: Memory>(region: &Region<M>) -> Vec<u8> {
    read(region.device(), region.slice(..).unwrap())
}

pub(crate) fn fill_kernel(device: &Device) -> Function {
    Module::load(device, PTX).unwrap().function("fill_bytes").unwrap()
}

/// One launch of [`fill_kernel`] without its first two arguments.
pub(crate) fn fill_launch(function: &Function) -> Launch<'_> {
    Launch::new(function, LaunchShape::row(1, 256))
}

/// What the kernel makes of `len` bytes, byte by byte.
pub(crate) fn pattern(len: usize, low: u64, high: u64) -> Vec<u8> {
    let pattern: Vec<u8> = [low.to_le_bytes(), high.to_le_bytes()].concat();
    (0..len).map(|i| pattern[i % 16]).collect()
}
