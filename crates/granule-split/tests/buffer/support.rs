//! The devices of ranks, each looked at once more when the test is over, and a buffer's twin.

use std::cell::RefCell;
use std::ops::Range;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, DeviceSlice, DeviceSliceMut, HostOptions, LiveCounts};
use granule_split::{BufferPlan, Split};

/// The device of a rank, with room enough. Ranks may share one.
pub(crate) type Open<'a> = &'a dyn Fn(usize) -> Device;

/// Each rank has a host device of its own.
pub(crate) fn host(_rank: usize) -> Device {
    let options = HostOptions::new().granule(Bytes::kib(4)).capacity(Bytes::mib(4));
    Device::host_with(options).unwrap()
}

/// The first CUDA device, the second where there is one, a host device, and so on. A missing driver is a failure: a test that needs one
/// does not pass by skipping.
#[cfg(feature = "cuda")]
pub(crate) fn cuda(rank: usize) -> Device {
    let open = |index| Device::cuda(index);
    match rank % 3 {
        0 => open(0).unwrap_or_else(|error| panic!("this test needs a CUDA device: {error}")),
        1 => open(1).or_else(|_| open(0)).unwrap(),
        _ => host(rank),
    }
}

/// Runs a test, and checks that it gave everything back.
pub(crate) fn with_device(open: fn(usize) -> Device, test: fn(Open<'_>)) {
    let watched = RefCell::new(Vec::new());
    test(&|rank| {
        let device = open(rank);
        watched.borrow_mut().push(device.clone());
        device
    });
    for device in watched.into_inner() {
        assert_eq!(device.live(), LiveCounts::default(), "left behind on {}", device.name());
    }
}

/// A bank over the device of each rank, which keeps what it was given back.
pub(crate) fn banks(open: Open<'_>, ranks: usize) -> Vec<Bank> {
    (0..ranks).map(|rank| Bank::new(open(rank), BankOptions::new()).unwrap()).collect()
}

/// The bytes of device memory.
pub(crate) fn read(device: &Device, slice: DeviceSlice<'_>) -> Vec<u8> {
    let mut bytes = vec![0xee; slice.len()];
    device.copy(slice, DeviceSliceMut::from(&mut bytes[..])).unwrap();
    bytes
}

/// Puts bytes into device memory.
pub(crate) fn write(device: &Device, bytes: &[u8], to: DeviceSliceMut<'_>) {
    device.copy(DeviceSlice::from(bytes), to).unwrap();
}

/// Bytes that repeat at no power of two.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let byte = |i: usize| {
        ((i as u64 + 1).wrapping_mul(seed | 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 | 1
    };
    (0..len).map(byte).collect()
}

/// What a rank's memory is to hold, put together block by block: the part of the tensor that the split says, with zeros around it.
pub(crate) fn twin(
    plan: &BufferPlan,
    rank: usize,
    part: &Range<usize>,
    align: usize,
    multiple: usize,
    whole: &[u8],
) -> Vec<u8> {
    let tensor = plan.tensor();
    let (len, bytes) = (tensor.dtype().block_len(), tensor.dtype().block_bytes());
    let mut out = Vec::new();
    let mut rows = 0;
    for row in 0..tensor.rows() {
        if tensor.split() == Split::Column && !part.contains(&row) {
            continue;
        }
        for block in 0..tensor.cols() / len {
            if tensor.split() == Split::Row && !part.contains(&(block * len)) {
                continue;
            }
            out.extend_from_slice(&whole[(row * (tensor.cols() / len) + block) * bytes..][..bytes]);
        }
        while out.len() % align != 0 {
            out.push(0);
        }
        rows += 1;
    }
    let stride = out.len() / rows;
    while rows % multiple != 0 {
        out.extend(vec![0; stride]);
        rows += 1;
    }
    assert_eq!(out.len(), plan.bytes(rank).unwrap(), "the plan's bytes");
    out
}
