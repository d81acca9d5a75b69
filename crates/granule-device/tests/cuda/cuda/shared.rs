//! Dynamic shared memory beyond what is granted unasked.

use granule_device::{Bytes, Device, Launch, LaunchShape, Module, Region};

use crate::support::{assert_nothing_left, device, fill_kernel, pattern, read, region};

const DEQUANTIZE: &str = include_str!("../../../../../kernels/ptx/dequantize.ptx");

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn two_handles_of_a_kernel_share_what_it_may_take() {
    let device = device();
    let (stream, first) = (device.stream().unwrap(), fill_kernel(&device));
    let second = first.module().function("fill_bytes").unwrap();
    let mut data = region(&device, 64);
    for (function, kib) in [(&first, 96), (&second, 64), (&first, 96), (&second, 96), (&first, 1)] {
        let launch = Launch::new(function, LaunchShape::row(1, 256).shared(Bytes::kib(kib)))
            .write_region(&mut data, ..)
            .value(64_u64)
            .value(kib)
            .value(0_u64);
        // SAFETY: the kernel stays inside its 64 bytes.
        unsafe { stream.launch(launch) }.unwrap_or_else(|error| panic!("{kib} KiB: {error}"));
        assert_eq!(read(&device, data.slice(..).unwrap()), pattern(64, kib, 0));
    }
    drop((first, second, data, stream));
    assert_nothing_left(&device);
}

/// One launch of a kernel that has no rows to work on.
fn launch_with(device: &Device, shared: Bytes) -> Result<(), granule_device::Error> {
    let stream = device.stream()?;
    let function = Module::load(device, DEQUANTIZE)?.function("dequantize_q8_0_f32")?;
    let (from, mut to) =
        (Region::new(device.alloc(Bytes::kib(4))?)?, Region::new(device.alloc(Bytes::kib(4))?)?);
    let launch = Launch::new(&function, LaunchShape::row(1, 256).shared(shared))
        .read_region(&from, ..)
        .value(0_u64)
        .write_region(&mut to, ..)
        .value(0_u64)
        .value(0_u64)
        .value(0_u64);
    // SAFETY: these are its arguments, and with no rows it touches no memory.
    unsafe { stream.launch(launch)? };
    stream.synchronize()
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_a_kernel_declares_counts_too() {
    let device = device();
    let function = Module::load(&device, DEQUANTIZE).unwrap().function("dequantize_q8_0_f32").unwrap();
    let declared = function.attributes().unwrap().shared;
    assert!(declared > Bytes::ZERO && declared < Bytes::kib(48), "{declared}");
    for dynamic in [Bytes::kib(48).get() - declared.get(), Bytes::kib(48).get(), Bytes::kib(49).get()] {
        launch_with(&device, Bytes::new(dynamic)).unwrap_or_else(|error| panic!("{dynamic}: {error}"));
    }
}
