//! Kernels: modules, launches on slices and regions, and what is refused.

use granule_device::{Access, Bytes, Device, DeviceSlice, Error, Launch, LaunchShape, Module, Region};

use crate::support::{
    PTX, assert_nothing_left, bytes, device, fill_kernel, fill_launch, pattern, read, region, write,
};

const LOW: u64 = 0x0706_0504_0302_0100;
const HIGH: u64 = 0x0F0E_0D0C_0B0A_0908;

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_kernel_writes_what_it_is_given() {
    let device = device();
    let (stream, function) = (device.stream().unwrap(), fill_kernel(&device));
    let mut data = region(&device, 1000);
    stream.fill(&mut data, .., 0xAA).unwrap();
    let launch = fill_launch(&function).write_region(&mut data, 10..).value(500_u64).value(LOW).value(HIGH);
    // SAFETY: the kernel takes a pointer, a count and a pattern, and 990 bytes are there.
    unsafe { stream.launch(launch).unwrap() };
    let mut expected = vec![0xAA; 1000];
    expected[10..510].copy_from_slice(&pattern(500, LOW, HIGH));
    assert_eq!(bytes(&data), expected);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_kernel_runs_on_mapped_places() {
    let device = device();
    let size = device.granularity().to_usize().unwrap();
    let (stream, function) = (device.stream().unwrap(), fill_kernel(&device));
    let mut range = device.reserve(Bytes::from_usize(2 * size)).unwrap();
    let granules = [device.create_granule().unwrap(), device.create_granule().unwrap()];
    range.map(0, &granules, Access::ReadWrite).unwrap();
    write(&device, &[1; 300], range.slice_mut(size - 150..size + 150).unwrap());
    let launch = fill_launch(&function)
        .write(range.slice_mut(size - 100..size + 100).unwrap())
        .value(200_u64)
        .value(LOW)
        .value(HIGH);
    // SAFETY: the kernel stays inside its 200 bytes, and the stream is waited for before anybody else looks.
    unsafe { stream.launch(launch).unwrap() };
    stream.synchronize().unwrap();
    let mut expected = vec![1; 300];
    expected[50..250].copy_from_slice(&pattern(200, LOW, HIGH));
    assert_eq!(read(&device, range.slice(size - 150..size + 150).unwrap()), expected);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn memory_and_module_outlive_their_handles_until_the_kernel_has_run() {
    let device = device();
    let (stream, function) = (device.stream().unwrap(), fill_kernel(&device));
    let mut data = region(&device, 256);
    let launch = fill_launch(&function).write_region(&mut data, ..).value(256_u64).value(LOW).value(HIGH);
    // SAFETY: as above.
    unsafe { stream.launch(launch).unwrap() };
    drop((data, function));
    let live = device.live();
    assert_eq!((live.modules, live.buffers), (1, 1));
    stream.synchronize().unwrap();
    let live = device.live();
    assert_eq!((live.modules, live.buffers), (0, 0));
    drop(stream);
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_kernel_says_what_it_takes() {
    let function = fill_kernel(&device());
    assert_eq!((function.name(), function.device().name()), ("fill_bytes", "cuda:0"));
    let attributes = function.attributes().unwrap();
    assert!(attributes.max_threads >= 256 && attributes.max_threads <= 1024, "{attributes:?}");
    assert!(attributes.registers >= 8 && attributes.registers <= 255, "{attributes:?}");
    assert_eq!(attributes.local, Bytes::ZERO, "a kernel that spills: {attributes:?}");
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn wrong_modules_and_launches_are_refused() {
    let device = device();
    let stream = device.stream().unwrap();
    match Module::load(&device, "this is no PTX") {
        Err(error @ Error::Module { .. }) => assert!(error.to_string().contains("cuda:0"), "{error}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(Module::load(&device, "a\0b"), Err(Error::Module { .. })));
    let module = Module::load(&device, PTX).unwrap();
    match module.function("no_such_kernel") {
        Err(Error::NoSuchKernel { name }) => assert_eq!(name, "no_such_kernel"),
        other => panic!("{other:?}"),
    }
    let function = module.function("fill_bytes").unwrap();
    let host = Device::host().unwrap();
    assert!(matches!(Module::load(&host, PTX), Err(Error::Unsupported { .. })));
    let mut data = region(&device, 64);
    let mut elsewhere = Region::new(host.alloc(Bytes::new(64)).unwrap()).unwrap();
    let launch = |launch: Launch<'_>| {
        // SAFETY: each is refused before the driver sees it.
        unsafe { stream.launch(launch.value(1_u64).value(LOW).value(HIGH)) }
    };
    let pageable = [0_u8; 64];
    let refused = launch(fill_launch(&function).read(DeviceSlice::from(&pageable[..])));
    assert!(matches!(refused, Err(Error::Launch { .. })), "{refused:?}");
    let refused = launch(fill_launch(&function).write_region(&mut data, 65..));
    assert!(matches!(refused, Err(Error::OutOfRange { .. })), "{refused:?}");
    let refused = launch(fill_launch(&function).write_region(&mut elsewhere, ..));
    assert!(matches!(refused, Err(Error::OtherDevice { .. })), "{refused:?}");
    let refused = launch(Launch::new(&function, LaunchShape::row(0, 256)).write_region(&mut data, ..));
    assert!(matches!(refused, Err(Error::Launch { .. })), "{refused:?}");
    let much = LaunchShape::row(1, 256).shared(Bytes::gib(8));
    let refused = launch(Launch::new(&function, much).write_region(&mut data, ..));
    assert!(matches!(refused, Err(Error::Launch { .. })), "{refused:?}");
    // Nothing is held by what was refused: looking does not wait.
    write(&device, &[3; 64], data.slice_mut(..).unwrap());
    assert_eq!(bytes(&data), [3; 64]);
    drop((data, elsewhere, function, module, stream));
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_kernel_writes_pinned_memory() {
    let device = device();
    let (stream, function) = (device.stream().unwrap(), fill_kernel(&device));
    let mut pinned = Region::new(device.alloc_pinned(Bytes::new(100)).unwrap()).unwrap();
    let launch = fill_launch(&function).write_region(&mut pinned, ..40).value(40_u64).value(LOW).value(HIGH);
    // SAFETY: as above.
    unsafe { stream.launch(launch).unwrap() };
    let seen = pinned.slice(..).unwrap();
    assert_eq!(seen.as_host().unwrap()[..40], pattern(40, LOW, HIGH));
    assert_eq!(seen.as_host().unwrap()[40..], [0; 60]);
}
