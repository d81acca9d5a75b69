//! Bugs of order: a wait that is missing, a buffer or a granule taken away too early, an event nobody recorded.
//! Nothing on a GPU notices these; the simulated driver runs streams in many orders and compares what was ordered.

use std::ptr::null_mut;

use anyhow::{Result, bail};
use cudarc::driver::sys::{self, CUdeviceptr, CUevent, CUstream};
use granule_device::{Access, Device};

use crate::cuda::{Cuda, arg, check};

const LEN: usize = 1 << 16;

fn stream() -> Result<CUstream> {
    let mut stream = null_mut();
    let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
    // SAFETY: a local is written.
    check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
    Ok(stream)
}

fn event() -> Result<CUevent> {
    let mut event = null_mut();
    let flags = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING as u32;
    // SAFETY: a local is written.
    check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, flags) })?;
    Ok(event)
}

fn fill(ptr: CUdeviceptr, value: u8, stream: CUstream) -> Result<()> {
    // SAFETY: the callers pass memory of that size.
    check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(ptr, value, LEN, stream) })
}

fn copy(to: CUdeviceptr, from: CUdeviceptr, stream: CUstream) -> Result<()> {
    // SAFETY: the callers pass memory of that size.
    check("cuMemcpyDtoDAsync", unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, LEN, stream) })
}

fn wait(stream: CUstream, event: CUevent) -> Result<()> {
    // SAFETY: both are alive.
    check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(stream, event, 0) })
}

fn record(event: CUevent, stream: CUstream) -> Result<()> {
    // SAFETY: both are alive.
    check("cuEventRecord", unsafe { sys::cuEventRecord(event, stream) })
}

fn finish(cuda: &Cuda, streams: &[CUstream], events: &[CUevent], memory: &[CUdeviceptr]) -> Result<()> {
    cuda.context.synchronize()?;
    for &stream in streams {
        // SAFETY: made by this program and used no more.
        check("cuStreamDestroy", unsafe { sys::cuStreamDestroy_v2(stream) })?;
    }
    for &event in events {
        // SAFETY: made by this program and used no more.
        check("cuEventDestroy", unsafe { sys::cuEventDestroy_v2(event) })?;
    }
    memory.iter().try_for_each(|&ptr| cuda.free(ptr))
}

/// One stream reads what another writes, and nothing makes it wait.
pub(crate) fn missing_wait(cuda: &Cuda, fixed: bool) -> Result<()> {
    let (writer, reader, written) = (stream()?, stream()?, event()?);
    let (a, b) = (cuda.alloc(LEN)?, cuda.alloc(LEN)?);
    fill(a, 1, writer)?;
    record(written, writer)?;
    if fixed {
        wait(reader, written)?;
    }
    copy(b, a, reader)?;
    finish(cuda, &[writer, reader], &[written], &[a, b])
}

/// The host writes the next piece into a pinned buffer that a copy still reads from.
pub(crate) fn pinned_reused_early(cuda: &Cuda, fixed: bool) -> Result<()> {
    let stream = stream()?;
    let target = cuda.alloc(LEN)?;
    let mut pinned = null_mut();
    // SAFETY: a local is written.
    check("cuMemHostAlloc", unsafe { sys::cuMemHostAlloc(&mut pinned, LEN, 0) })?;
    for value in 0..4_u8 {
        // SAFETY: the buffer has that size.
        unsafe { pinned.cast::<u8>().write_bytes(value, LEN) };
        // SAFETY: both have that size.
        let copied = unsafe { sys::cuMemcpyHtoDAsync_v2(target, pinned, LEN, stream) };
        check("cuMemcpyHtoDAsync", copied)?;
        if fixed {
            // SAFETY: the stream is alive.
            check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream) })?;
        }
    }
    finish(cuda, &[stream], &[], &[target])?;
    // SAFETY: made above, and no copy is left.
    check("cuMemFreeHost", unsafe { sys::cuMemFreeHost(pinned) })
}

/// A granule is unmapped while a copy out of it may not have run.
pub(crate) fn unmapped_before_reader(_: &Cuda, fixed: bool) -> Result<()> {
    let device = Device::cuda(0)?;
    let cuda = Cuda::open()?;
    let stream = stream()?;
    let mut range = device.reserve(device.granularity())?;
    range.map(0, &[device.create_granule()?], Access::ReadWrite)?;
    let target = cuda.alloc(LEN)?;
    fill(range.base().addr(), 3, stream)?;
    copy(target, range.base().addr(), stream)?;
    if fixed {
        // SAFETY: the stream is alive.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream) })?;
    }
    drop(range.unmap(0..1)?);
    match finish(&cuda, &[stream], &[], &[target]) {
        // A device that noticed takes no more calls.
        Err(_) if !fixed => Ok(()),
        done => done,
    }
}

/// A granule is unmapped, and another put in its place, while a kernel that was given the address may not have run: it
/// writes into memory that is somebody else's by then.
pub(crate) fn remapped_before_kernel(_: &Cuda, fixed: bool) -> Result<()> {
    let device = Device::cuda(0)?;
    let cuda = Cuda::open()?;
    let stream = stream()?;
    let mut range = device.reserve(device.granularity())?;
    let granules = [device.create_granule()?, device.create_granule()?];
    range.map(0, &granules[..1], Access::ReadWrite)?;
    let (mut values, mut count) = (range.base().addr(), 64_u32);
    cuda.launch_on(stream, "planted_write", 1, 64, &mut [arg(&mut values), arg(&mut count)])?;
    if fixed {
        // SAFETY: the stream is alive.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream) })?;
    }
    drop(range.unmap(0..1)?);
    range.map(0, &granules[1..], Access::ReadWrite)?;
    match finish(&cuda, &[stream], &[], &[]) {
        // A device that noticed takes no more calls.
        Err(_) if !fixed => Ok(()),
        done => done,
    }
}

/// A stream waits for an event that is recorded only afterwards, so that it waits for nothing.
pub(crate) fn event_never_recorded(cuda: &Cuda, fixed: bool) -> Result<()> {
    let (writer, reader, written) = (stream()?, stream()?, event()?);
    let (a, b) = (cuda.alloc(LEN)?, cuda.alloc(LEN)?);
    fill(a, 1, writer)?;
    if fixed {
        record(written, writer)?;
    }
    wait(reader, written)?;
    copy(b, a, reader)?;
    if !fixed {
        record(written, writer)?;
    }
    finish(cuda, &[writer, reader], &[written], &[a, b])
}

/// Memory is mapped on the thread whose stream is under capture.
pub(crate) fn mapping_during_capture(_: &Cuda, fixed: bool) -> Result<()> {
    let device = Device::cuda(0)?;
    let mut range = device.reserve(device.granularity())?;
    let granule = device.create_granule()?;
    let stream = stream()?;
    if fixed {
        range.map(0, std::slice::from_ref(&granule), Access::ReadWrite)?;
    }
    let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_GLOBAL;
    // SAFETY: the stream is alive.
    check("cuStreamBeginCapture", unsafe { sys::cuStreamBeginCapture_v2(stream, mode) })?;
    if !fixed {
        // Whether the driver refuses is not the point here.
        let _ = range.map(0, &[granule], Access::ReadWrite);
    }
    let mut graph = null_mut();
    // SAFETY: the stream is alive, and a local is written.
    let ended = unsafe { sys::cuStreamEndCapture(stream, &mut graph) };
    if fixed {
        check("cuStreamEndCapture", ended)?;
    }
    if !graph.is_null() {
        // SAFETY: the graph was answered by the call above.
        check("cuGraphDestroy", unsafe { sys::cuGraphDestroy(graph) })?;
    }
    // SAFETY: made by this program and used no more.
    let destroyed = check("cuStreamDestroy", unsafe { sys::cuStreamDestroy_v2(stream) });
    if fixed && destroyed.is_err() {
        bail!("the stream is not whole after its capture");
    }
    Ok(())
}
