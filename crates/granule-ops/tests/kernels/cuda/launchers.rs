//! What launchers do beside numbers: what they refuse, what they load, how the flag is raised and lowered.

use granule_device::{Buffer, Bytes, Device, DeviceSlice, DeviceSliceMut, FaultPlan};
use granule_ops::compare::Difference;
use granule_ops::fill::Pattern;
use granule_ops::{Error, Kernels, RowShape, Rows, RowsMut, compare, fill, quantize, relayout};
use granule_quant::DType;

use super::Cuda;

fn alloc(device: &Device, len: usize) -> Buffer {
    device.alloc(Bytes::from_usize(len)).unwrap()
}

/// Device memory with these numbers.
fn floats(device: &Device, x: &[f32]) -> Buffer {
    let mut buffer = alloc(device, size_of_val(x));
    device.copy(DeviceSlice::from(bytemuck::cast_slice(x)), buffer.slice_mut(..).unwrap()).unwrap();
    buffer
}

/// Quantizes one block of f32 to Q8_0.
fn quantize_block(cuda: &Cuda, x: &[f32; 32]) {
    let (from, mut to) = (floats(cuda.device(), x), alloc(cuda.device(), 34));
    let from = Rows::new(from.slice(..).unwrap(), RowShape::dense(DType::F32, 1, 32).unwrap()).unwrap();
    let rows = RowsMut::new(to.slice_mut(..).unwrap(), RowShape::dense(DType::Q8_0, 1, 32).unwrap()).unwrap();
    // SAFETY: both stay until the stream was waited for.
    unsafe { quantize::cuda(&cuda.kernels, &cuda.stream, from, rows) }.unwrap();
    cuda.stream.synchronize().unwrap();
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn the_flag_stays_until_it_is_asked_for() {
    let cuda = Cuda::new();
    let block = |first| std::array::from_fn(|i| if i == 0 { first } else { 1.0 });
    quantize_block(&cuda, &block(2.0));
    cuda.kernels.check().unwrap();

    quantize_block(&cuda, &block(f32::NAN));
    quantize_block(&cuda, &block(2.0)); // a later one does not hide it
    let said = cuda.kernels.check().unwrap_err();
    assert!(matches!(said, Error::Flagged { not_finite: true, overflow: false, .. }), "{said:?}");
    assert!(said.to_string().contains("cuda:0") && said.to_string().contains("NaN"), "{said}");
    cuda.kernels.check().unwrap();

    quantize_block(&cuda, &block(1e30));
    assert!(matches!(cuda.kernels.check(), Err(Error::Flagged { not_finite: false, overflow: true, .. })));
    quantize_block(&cuda, &block(1e30));
    quantize_block(&cuda, &block(f32::NEG_INFINITY));
    assert!(matches!(cuda.kernels.check(), Err(Error::Flagged { not_finite: true, overflow: true, .. })));
    // Another set of kernels has a flag of its own.
    quantize_block(&cuda, &block(f32::NAN));
    Kernels::new(cuda.device()).unwrap().check().unwrap();
    assert!(cuda.kernels.check().is_err());
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn modules_are_loaded_when_they_are_used_and_once() {
    let cuda = Cuda::new();
    let modules = || cuda.device().live().modules;
    assert_eq!(modules(), 0);
    quantize_block(&cuda, &[1.0; 32]);
    assert_eq!(modules(), 1);
    quantize_block(&cuda, &[1.0; 32]);
    assert_eq!(modules(), 1);
    let mut memory = alloc(cuda.device(), 64);
    // SAFETY: it stays until the stream was waited for.
    let done = unsafe {
        fill::cuda(&cuda.kernels, &cuda.stream, memory.slice_mut(..).unwrap(), Pattern::new(&[7]).unwrap())
    };
    done.unwrap();
    cuda.stream.synchronize().unwrap();
    assert_eq!(modules(), 2);
    assert_eq!(format!("{:?}", cuda.kernels), "Kernels(cuda:0, loaded: fill, quantize)");

    let (device, Cuda { kernels, stream }) = (cuda.device().clone(), cuda);
    drop((kernels, stream, memory));
    assert_eq!(device.live(), granule_device::LiveCounts::default());
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_does_not_fit_is_refused_and_nothing_is_launched() {
    let cuda = Cuda::new();
    let device = cuda.device();
    let (from, mut to) = (alloc(device, 4096), alloc(device, 4096));
    let mut quantize = |x: RowShape, from_at: usize, y: RowShape, to_at: usize| {
        let from = Rows::new(from.slice(from_at..).unwrap(), x).unwrap();
        let to = RowsMut::new(to.slice_mut(to_at..).unwrap(), y).unwrap();
        // SAFETY: both stay to the test's end.
        unsafe { quantize::cuda(&cuda.kernels, &cuda.stream, from, to) }
    };
    let dense = |dtype, rows, cols| RowShape::dense(dtype, rows, cols).unwrap();
    let (x, y) = (dense(DType::F32, 2, 64), dense(DType::Q8_0, 2, 64));
    assert!(matches!(quantize(y, 0, x, 0), Err(Error::Types { .. })));
    assert!(matches!(quantize(x, 0, dense(DType::Q4_1, 2, 64), 0), Err(Error::Types { .. })));
    assert!(matches!(quantize(x, 0, dense(DType::Q8_0, 1, 64), 0), Err(Error::Shape { .. })));
    assert!(matches!(quantize(x, 0, dense(DType::Q8_0, 2, 32), 0), Err(Error::Shape { .. })));
    assert!(matches!(quantize(x, 8, y, 0), Err(Error::Alignment { must: 16, .. })));
    assert!(matches!(quantize(x, 0, y, 1), Err(Error::Alignment { must: 2, .. })));
    let planar = RowShape::planar(DType::Q8_0, 2, 64).unwrap();
    assert!(matches!(quantize(x, 0, planar, 2), Err(Error::Alignment { must: 16, .. })));
    // Nothing to do is no error and no launch.
    quantize(dense(DType::F32, 0, 64), 0, dense(DType::Q8_0, 0, 64), 0).unwrap();
    assert_eq!(device.live().modules, 0);

    let memory = alloc(device, 64);
    let rows = Rows::new(memory.slice(..).unwrap(), dense(DType::Q8_0, 1, 32)).unwrap();
    let to_rows = RowsMut::new(to.slice_mut(..).unwrap(), dense(DType::Q8_0, 1, 32)).unwrap();
    // SAFETY: both stay to the test's end.
    let same = unsafe { relayout::cuda(&cuda.kernels, &cuda.stream, rows, to_rows) };
    assert!(matches!(same, Err(Error::SameLayout)));

    let here = [0u8; 34];
    let rows = Rows::new(DeviceSlice::from(&here[..]), dense(DType::Q8_0, 1, 32)).unwrap();
    let to_planar =
        RowsMut::new(to.slice_mut(..).unwrap(), RowShape::planar(DType::Q8_0, 1, 32).unwrap()).unwrap();
    // SAFETY: both stay to the test's end.
    let elsewhere = unsafe { relayout::cuda(&cuda.kernels, &cuda.stream, rows, to_planar) };
    assert!(matches!(elsewhere, Err(Error::NotOnDevice { .. })));

    let slice = || memory.slice(..).unwrap();
    let mut compare = |a: DeviceSlice<'_>, b: DeviceSlice<'_>, result: std::ops::Range<usize>| {
        // SAFETY: all stay to the test's end.
        unsafe { compare::cuda(&cuda.kernels, &cuda.stream, a, b, to.slice_mut(result).unwrap()) }
    };
    assert!(matches!(compare(slice(), slice().subslice(1..).unwrap(), 0..16), Err(Error::Shape { .. })));
    assert!(matches!(compare(slice(), slice(), 0..15), Err(Error::Shape { .. })));
    assert!(matches!(compare(slice(), slice(), 4..20), Err(Error::Alignment { must: 8, .. })));

    let mut here = [0u8; 6];
    let odd = Pattern::new(&[1, 2, 3, 4]).unwrap();
    // SAFETY: it is refused.
    let refused =
        unsafe { fill::cuda(&cuda.kernels, &cuda.stream, DeviceSliceMut::from(&mut here[..]), odd) };
    assert!(matches!(refused, Err(Error::Dimension { .. })));
    assert_eq!(device.live().modules, 0);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn kernels_and_streams_of_two_devices_are_kept_apart() {
    let (cuda, host) = (Cuda::new(), Device::host().unwrap());
    assert!(matches!(Kernels::new(&host), Err(Error::NotOnDevice { .. })));
    let mut memory = alloc(cuda.device(), 64);
    let pattern = Pattern::new(&[1]).unwrap();
    // SAFETY: it is refused.
    let done =
        unsafe { fill::cuda(&cuda.kernels, &host.stream().unwrap(), memory.slice_mut(..).unwrap(), pattern) };
    assert!(matches!(done, Err(Error::OtherDevice { .. })));
}

/// Whatever driver call fails, nothing stays held, and the next one is as if nothing had been.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn every_failing_call_leaves_nothing() {
    let device = Device::cuda(0).unwrap();
    let x = floats(&device, &[1.5; 64]);
    let mut y = alloc(&device, 2 * 18);
    let mut run = || -> Result<(), Error> {
        let (kernels, stream) = (Kernels::new(&device)?, device.stream()?);
        let from = Rows::new(x.slice(..)?, RowShape::dense(DType::F32, 2, 32)?)?;
        let to = RowsMut::new(y.slice_mut(..)?, RowShape::dense(DType::Q4_0, 2, 32)?)?;
        // SAFETY: both stay until the stream was waited for, which its drop does where this ends early.
        unsafe { quantize::cuda(&kernels, &stream, from, to) }?;
        stream.synchronize()?;
        kernels.check()
    };
    run().unwrap();
    let (before, counted) = (device.live(), device.calls_made());
    run().unwrap();
    let calls = device.calls_made() - counted;
    for n in 1..=calls + 1 {
        let guard = device.inject_fault(FaultPlan::nth(n));
        let (done, fired) = (run(), guard.fired());
        drop(guard);
        assert!(done.is_ok() || fired, "call {n}: {done:?}");
        assert_eq!(device.live(), before, "call {n} of {calls}: {done:?}");
        run().unwrap();
    }
}

/// Work in stream order: fill, compare, quantize, all given at once.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn launches_of_one_stream_run_in_order() {
    let cuda = Cuda::new();
    let device = cuda.device();
    let (mut x, mut y) = (alloc(device, 32 * 4 * 4), alloc(device, 4 * 34));
    let mut results = device.alloc_pinned(Bytes::from_usize(2 * Difference::BYTES)).unwrap();
    let expected_block = {
        let mut block = vec![0; 34];
        granule_quant::encode(DType::Q8_0, &[-1.5; 32], &mut block).unwrap();
        block.repeat(4)
    };
    let mut expected = alloc(device, expected_block.len());
    device.copy(DeviceSlice::from(&expected_block[..]), expected.slice_mut(..).unwrap()).unwrap();
    let (kernels, stream) = (&cuda.kernels, &cuda.stream);
    let (first, second) = results.slice_mut(..).unwrap().split_at(Difference::BYTES).unwrap();
    // SAFETY: all memory stays until the stream was waited for, and only this stream's work touches it.
    unsafe {
        fill::cuda(kernels, stream, y.slice_mut(..).unwrap(), Pattern::new(&[0xee]).unwrap()).unwrap();
        fill::cuda(
            kernels,
            stream,
            x.slice_mut(..).unwrap(),
            Pattern::new(&(-1.5f32).to_le_bytes()).unwrap(),
        )
        .unwrap();
        compare::cuda(kernels, stream, y.slice(..).unwrap(), expected.slice(..).unwrap(), first).unwrap();
        let from = Rows::new(x.slice(..).unwrap(), RowShape::dense(DType::F32, 4, 32).unwrap()).unwrap();
        let to =
            RowsMut::new(y.slice_mut(..).unwrap(), RowShape::dense(DType::Q8_0, 4, 32).unwrap()).unwrap();
        quantize::cuda(kernels, stream, from, to).unwrap();
        compare::cuda(kernels, stream, y.slice(..).unwrap(), expected.slice(..).unwrap(), second).unwrap();
    }
    stream.synchronize().unwrap();
    let results = results.slice(..).unwrap();
    let result = |i: usize| {
        let bytes = &results.as_host().unwrap()[i * Difference::BYTES..][..Difference::BYTES];
        Difference::from_bytes(bytes.try_into().unwrap())
    };
    assert_eq!(result(0), Difference { count: 4 * 34, first: Some(0) });
    assert_eq!(result(1), Difference { count: 0, first: None });
    kernels.check().unwrap();
}
