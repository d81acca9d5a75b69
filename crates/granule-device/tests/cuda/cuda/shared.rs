//! Dynamic shared memory beyond what is granted unasked.

use granule_device::{
    Buffer, Bytes, Device, Error, FaultPlan, Function, Launch, LaunchShape, Module, Region, Stream,
};

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

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn threads_that_ask_for_less_take_nothing_from_others() {
    let device = device();
    let function = fill_kernel(&device);
    let (stream, mut data) = (device.stream().unwrap(), region(&device, 64));
    let (other_stream, mut other_data) = (device.stream().unwrap(), region(&device, 64));
    let launch = |stream: &Stream, data: &mut Region<Buffer>, kib: u64| {
        let launch = Launch::new(&function, LaunchShape::row(1, 32).shared(Bytes::kib(kib)));
        let launch = launch.write_region(data, ..).value(64_u64).value(kib).value(0_u64);
        // SAFETY: the kernel stays inside its 64 bytes.
        unsafe { stream.launch(launch) }.unwrap_or_else(|error| panic!("{kib} KiB: {error}"));
    };
    std::thread::scope(|threads| {
        threads.spawn(|| (49..96).for_each(|kib| launch(&stream, &mut data, kib)));
        threads.spawn(|| (49..80).for_each(|kib| launch(&other_stream, &mut other_data, kib)));
    });
    device.synchronize().unwrap();
}

/// One launch of a kernel that has no rows to work on.
fn launch_with(function: &Function, shared: Bytes) -> Result<(), Error> {
    let device = function.device();
    let stream = device.stream()?;
    let (from, mut to) = (region(device, 4096), region(device, 4096));
    let launch = Launch::new(function, LaunchShape::row(1, 256).shared(shared))
        .read_region(&from, ..)
        .value(0_u64)
        .write_region(&mut to, ..)
        .value(0_u64)
        .value(0_u64)
        .value(0_u64);
    // SAFETY: these are its arguments, and with no rows it touches no memory.
    let told = unsafe { stream.launch(launch) };
    stream.synchronize()?;
    told
}

/// Whether the driver is told how much a launch takes: then there is a call of that name to fail.
fn is_told(device: &Device, shared: Bytes) -> bool {
    let module = Module::load(device, DEQUANTIZE).unwrap();
    (1..100).any(|n| {
        let function = module.function("dequantize_q8_0_f32").unwrap();
        let stream = device.stream().unwrap();
        let data = region(device, 4096);
        let launch = Launch::new(&function, LaunchShape::row(1, 256).shared(shared)).read_region(&data, ..);
        let launch = (0..5).fold(launch, |launch, _| launch.value(0_u64));
        let _fault = device.inject_fault(FaultPlan::nth(n));
        // SAFETY: these are its arguments, and with no rows it touches no memory.
        let launched = unsafe { stream.launch(launch) };
        matches!(launched, Err(Error::Injected { call: "cuFuncSetAttribute", .. }))
    })
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_a_kernel_declares_counts_too() {
    let device = device();
    let load = || Module::load(&device, DEQUANTIZE).unwrap().function("dequantize_q8_0_f32").unwrap();
    let declared = load().attributes().unwrap().shared;
    assert!(declared > Bytes::ZERO && declared < Bytes::kib(48), "{declared}");
    let unasked = Bytes::new(Bytes::kib(48).get() - declared.get());
    for dynamic in [unasked, Bytes::new(unasked.get() + 1), Bytes::kib(48), Bytes::kib(49)] {
        launch_with(&load(), dynamic).unwrap_or_else(|error| panic!("{dynamic}: {error}"));
        assert_eq!(is_told(&device, dynamic), dynamic > unasked, "{dynamic}");
    }
    assert_nothing_left(&device);
}
