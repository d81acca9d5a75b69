//! Ranks on CUDA devices: as many GPUs as there are, in turn. Without a driver these tests fail.

mod covering;
mod numeric;

use granule_device::{Device, LiveCounts, cuda_devices};

/// A device for each rank; several have the same one where there are fewer.
fn gpus(n: usize) -> Vec<Device> {
    let there_are = cuda_devices().unwrap().len();
    (0..n).map(|rank| Device::cuda(rank % there_are).unwrap()).collect()
}

/// Nothing is held of any GPU.
#[track_caller]
fn nothing_is_left() {
    for gpu in gpus(cuda_devices().unwrap().len()) {
        assert_eq!(gpu.live(), LiveCounts::default(), "{}", gpu.name());
    }
}
