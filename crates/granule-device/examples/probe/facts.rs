//! One function for each fact: it asks the driver and answers in a word.

use std::error::Error;
use std::time::{Duration, Instant};

use cudarc::driver::sys;

use crate::driver::{Answer, Gpu, Home, answer};
use crate::word;

type Word = Result<String, Box<dyn Error>>;

/// Something that is one way or another on a driver.
pub(crate) struct Fact {
    pub(crate) name: &'static str,
    /// What the simulated driver answers.
    pub(crate) simulated: &'static str,
    pub(crate) ask: fn(&Gpu) -> Word,
}

const fn fact(name: &'static str, simulated: &'static str, ask: fn(&Gpu) -> Word) -> Fact {
    Fact { name, simulated, ask }
}

pub(crate) const ALL: &[Fact] = &[
    fact("the smallest granule", "2 MiB", |gpu| Ok(mib(gpu.granularity(false).map_err(code)?))),
    fact("the recommended granule", "2 MiB", |gpu| Ok(mib(gpu.granularity(true).map_err(code)?))),
    fact("half a granule can be created", "no (invalid value)", half_a_granule),
    fact("half a granule can be mapped", "no (invalid value)", map_half),
    fact("mapping over a mapping", "no (invalid value)", map_twice),
    fact("memory without access can be used", "no (illegal address)", no_access),
    fact("a granule shows at two addresses", "yes", aliasing),
    fact("one access call over a run of mappings", "yes", access_over_a_run),
    fact("read-only access is accepted", "yes", read_only_is_accepted),
    fact("writing through read-only access by a fill", "no (illegal address)", write_read_only),
    // The simulator runs kernels that were compiled for its emulator, and this one was not.
    fact("writing through read-only access by a kernel", "no (not found)", write_read_only_by_kernel),
    fact("a released granule lives while it is mapped", "yes", released_while_mapped),
    fact("one unmap over a run of mappings", "yes", unmap_a_run),
    fact("unmapping half of a granule", "no (invalid value)", unmap_half),
    fact("freeing addresses with a mapping", "no (invalid value)", free_mapped_addresses),
    fact("a new granule takes its size from the free memory", "yes", free_memory),
    fact("granules in host memory can be mapped", "yes", host_granules),
    fact("mapping waits for running work", "no", map_while_busy),
    fact("unmapping other memory waits for running work", "no", unmap_while_busy),
    fact("freeing plain memory waits for running work", "yes", free_while_busy),
    fact("mapping during a global capture", "no (not while capturing)", |gpu| map_in_capture(gpu, false)),
    fact("mapping during a relaxed capture", "yes", |gpu| map_in_capture(gpu, true)),
    fact("unmapping during a relaxed capture", "yes", unmap_in_capture),
    fact("asking an event during a global capture", "no (not while capturing)", ask_event_in_capture),
    fact(
        "asking an event during another thread's global capture",
        "no (not while capturing)",
        ask_event_beside_capture,
    ),
    fact("asking what access an unmapped place has", "no (invalid value)", access_of_unmapped),
    fact("allocating during a global capture", "no (not while capturing)", alloc_in_capture),
    fact("a capture survives mapping", "yes", capture_survives),
    fact("waiting for an event that was never recorded", "returns at once", wait_unrecorded),
    fact("a copy from pageable memory takes its source at the call", "yes", pageable_snapshot),
    fact("a copy from pinned memory takes its source when it runs", "yes", pinned_late),
    fact("a mapped file can be registered to be read", "yes", register_file),
];

fn code(code: u32) -> String {
    format!("error {code}")
}

fn mib(bytes: usize) -> String {
    format!("{} MiB", bytes >> 20)
}

fn yes(is: bool) -> Word {
    Ok(if is { "yes" } else { "no" }.to_owned())
}

fn said(answer: Answer) -> Word {
    Ok(word(answer).to_owned())
}

fn half_a_granule(gpu: &Gpu) -> Word {
    said(gpu.create(Home::Device, gpu.granule / 2).map(drop))
}

fn map_half(gpu: &Gpu) -> Word {
    let (handle, at) =
        (gpu.create(Home::Device, gpu.granule).map_err(code)?, gpu.reserve(gpu.granule).map_err(code)?);
    // SAFETY: the driver checks the sizes.
    said(answer(unsafe { sys::cuMemMap(at, gpu.granule / 2, 0, handle, 0) }))
}

fn map_twice(gpu: &Gpu) -> Word {
    let (at, _) = gpu.mapped().map_err(code)?;
    let other = gpu.create(Home::Device, gpu.granule).map_err(code)?;
    said(gpu.map(at, other))
}

fn no_access(gpu: &Gpu) -> Word {
    let handle = gpu.create(Home::Device, gpu.granule).map_err(code)?;
    let at = gpu.reserve(gpu.granule).map_err(code)?;
    gpu.map(at, handle).map_err(code)?;
    said(gpu.set(at, 1, 16))
}

fn aliasing(gpu: &Gpu) -> Word {
    let (here, handle) = gpu.mapped().map_err(code)?;
    let there = gpu.reserve(gpu.granule).map_err(code)?;
    gpu.map(there, handle).map_err(code)?;
    gpu.access(there, gpu.granule, true).map_err(code)?;
    gpu.set(here, 0x5A, gpu.granule).map_err(code)?;
    yes(gpu.byte(there).map_err(code)? == 0x5A)
}

/// Three granules side by side.
fn run_of_three(gpu: &Gpu) -> Answer<u64> {
    let base = gpu.reserve(3 * gpu.granule)?;
    for index in 0..3 {
        let handle = gpu.create(Home::Device, gpu.granule)?;
        gpu.map(base + (index * gpu.granule) as u64, handle)?;
    }
    Ok(base)
}

fn access_over_a_run(gpu: &Gpu) -> Word {
    let base = run_of_three(gpu).map_err(code)?;
    said(gpu.access(base, 3 * gpu.granule, true).and_then(|()| gpu.set(base, 1, 3 * gpu.granule)))
}

fn read_only_is_accepted(gpu: &Gpu) -> Word {
    let (at, _) = gpu.mapped().map_err(code)?;
    gpu.set(at, 7, gpu.granule).map_err(code)?;
    said(
        gpu.access(at, gpu.granule, false)
            .and_then(|()| gpu.byte(at))
            .and_then(|byte| if byte == 7 { Ok(()) } else { Err(0) }),
    )
}

fn write_read_only(gpu: &Gpu) -> Word {
    let (at, _) = gpu.mapped().map_err(code)?;
    gpu.access(at, gpu.granule, false).map_err(code)?;
    said(gpu.set(at, 1, gpu.granule))
}

/// Stores one word at its argument; written by hand, for any device since Ampere.
const STORE: &std::ffi::CStr = c".version 8.0
.target sm_80
.address_size 64
.visible .entry granule_probe_store(.param .u64 at)
{
    .reg .b64 %a;
    .reg .b32 %one;
    ld.param.u64 %a, [at];
    mov.b32 %one, 1;
    st.global.b32 [%a], %one;
    ret;
}
";

fn write_read_only_by_kernel(gpu: &Gpu) -> Word {
    let (mut at, _) = gpu.mapped().map_err(code)?;
    gpu.access(at, gpu.granule, false).map_err(code)?;
    let (mut module, mut function) = (std::ptr::null_mut(), std::ptr::null_mut());
    // SAFETY: the image is PTX that ends in a zero; the kernel takes the one argument that it gets.
    let launched = unsafe {
        answer(sys::cuModuleLoadData(&mut module, STORE.as_ptr().cast()))
            .and_then(|()| {
                answer(sys::cuModuleGetFunction(&mut function, module, c"granule_probe_store".as_ptr()))
            })
            .and_then(|()| {
                let mut arguments = [(&raw mut at).cast()];
                let (stream, extra) = (std::ptr::null_mut(), std::ptr::null_mut());
                answer(sys::cuLaunchKernel(
                    function,
                    1,
                    1,
                    1,
                    1,
                    1,
                    1,
                    0,
                    stream,
                    arguments.as_mut_ptr(),
                    extra,
                ))
            })
    };
    said(launched.and_then(|()| gpu.synchronize()))
}

fn released_while_mapped(gpu: &Gpu) -> Word {
    let (at, handle) = gpu.mapped().map_err(code)?;
    gpu.release(handle).map_err(code)?;
    gpu.set(at, 9, gpu.granule).map_err(code)?;
    yes(gpu.byte(at).map_err(code)? == 9)
}

fn unmap_a_run(gpu: &Gpu) -> Word {
    let base = run_of_three(gpu).map_err(code)?;
    said(gpu.unmap(base, 3 * gpu.granule))
}

fn unmap_half(gpu: &Gpu) -> Word {
    let (at, _) = gpu.mapped().map_err(code)?;
    said(gpu.unmap(at, gpu.granule / 2))
}

fn free_mapped_addresses(gpu: &Gpu) -> Word {
    let (at, _) = gpu.mapped().map_err(code)?;
    said(gpu.unreserve(at, gpu.granule))
}

fn free_memory(gpu: &Gpu) -> Word {
    let before = gpu.free_bytes().map_err(code)?;
    let _handle = gpu.create(Home::Device, gpu.granule).map_err(code)?;
    yes(before - gpu.free_bytes().map_err(code)? == gpu.granule)
}

fn host_granules(gpu: &Gpu) -> Word {
    let try_it = || {
        let handle = gpu.create(Home::HostNuma, gpu.granule)?;
        let at = gpu.reserve(gpu.granule)?;
        gpu.map(at, handle)?;
        gpu.access(at, gpu.granule, true)?;
        gpu.set(at, 3, gpu.granule)
    };
    said(try_it())
}

/// Whether `call` returns only once work of a tenth of a second is done.
fn waits(gpu: &Gpu, call: impl FnOnce() -> Answer) -> Word {
    let stream = gpu.stream().map_err(code)?;
    gpu.busy(stream, 100).map_err(code)?;
    let start = Instant::now();
    call().map_err(code)?;
    let took = start.elapsed();
    gpu.wait_for(stream).map_err(code)?;
    yes(took > Duration::from_millis(50))
}

fn map_while_busy(gpu: &Gpu) -> Word {
    let handle = gpu.create(Home::Device, gpu.granule).map_err(code)?;
    let at = gpu.reserve(gpu.granule).map_err(code)?;
    waits(gpu, || gpu.map(at, handle).and_then(|()| gpu.access(at, gpu.granule, true)))
}

fn unmap_while_busy(gpu: &Gpu) -> Word {
    let (at, _) = gpu.mapped().map_err(code)?;
    waits(gpu, || gpu.unmap(at, gpu.granule))
}

fn free_while_busy(gpu: &Gpu) -> Word {
    let ptr = gpu.alloc(1 << 20).map_err(code)?;
    waits(gpu, || gpu.free(ptr))
}

fn map_in_capture(gpu: &Gpu, relaxed: bool) -> Word {
    let handle = gpu.create(Home::Device, gpu.granule).map_err(code)?;
    let at = gpu.reserve(gpu.granule).map_err(code)?;
    gpu.capture(gpu.stream().map_err(code)?, relaxed).map_err(code)?;
    said(gpu.map(at, handle).and_then(|()| gpu.access(at, gpu.granule, true)))
}

fn unmap_in_capture(gpu: &Gpu) -> Word {
    let (at, _) = gpu.mapped().map_err(code)?;
    gpu.capture(gpu.stream().map_err(code)?, true).map_err(code)?;
    said(gpu.unmap(at, gpu.granule))
}

/// An event of a stream that nobody captures.
fn event_elsewhere(gpu: &Gpu) -> Result<sys::CUevent, String> {
    let (stream, event) = (gpu.stream().map_err(code)?, gpu.event().map_err(code)?);
    // SAFETY: both are alive.
    answer(unsafe { sys::cuEventRecord(event, stream) }).map_err(code)?;
    gpu.wait_for(stream).map_err(code)?;
    Ok(event)
}

fn ask_event_in_capture(gpu: &Gpu) -> Word {
    let event = event_elsewhere(gpu)?;
    gpu.capture(gpu.stream().map_err(code)?, false).map_err(code)?;
    // SAFETY: the event is alive.
    said(answer(unsafe { sys::cuEventQuery(event) }))
}

fn ask_event_beside_capture(gpu: &Gpu) -> Word {
    let event = event_elsewhere(gpu)?.expose_provenance();
    gpu.capture(gpu.stream().map_err(code)?, false).map_err(code)?;
    let asked = std::thread::spawn(move || {
        let _gpu = Gpu::open(0).map_err(|error| error.to_string())?;
        // SAFETY: the event is alive: nobody destroys it.
        Ok::<_, String>(answer(unsafe { sys::cuEventQuery(std::ptr::with_exposed_provenance_mut(event)) }))
    });
    said(asked.join().map_err(|_| "the asking thread panicked")??)
}

fn access_of_unmapped(gpu: &Gpu) -> Word {
    let at = gpu.reserve(gpu.granule).map_err(code)?;
    said(gpu.access_of(at))
}

fn alloc_in_capture(gpu: &Gpu) -> Word {
    gpu.capture(gpu.stream().map_err(code)?, false).map_err(code)?;
    said(gpu.alloc(1 << 20).map(drop))
}

fn capture_survives(gpu: &Gpu) -> Word {
    let handle = gpu.create(Home::Device, gpu.granule).map_err(code)?;
    let at = gpu.reserve(gpu.granule).map_err(code)?;
    let target = gpu.alloc(4096).map_err(code)?;
    let stream = gpu.stream().map_err(code)?;
    gpu.capture(stream, true).map_err(code)?;
    gpu.set_async(target, 1, 4096, stream).map_err(code)?;
    gpu.map(at, handle).map_err(code)?;
    gpu.set_async(target, 2, 4096, stream).map_err(code)?;
    said(gpu.end_capture(stream).map(drop))
}

fn wait_unrecorded(gpu: &Gpu) -> Word {
    let (stream, event) = (gpu.stream().map_err(code)?, gpu.event().map_err(code)?);
    // SAFETY: both are alive.
    answer(unsafe { sys::cuStreamWaitEvent(stream, event, 0) }).map_err(code)?;
    gpu.wait_for(stream).map_err(code)?;
    Ok("returns at once".to_owned())
}

/// Copies a buffer behind busy work, overwrites it after the call, and says whether the first bytes arrived.
fn first_bytes_arrive(gpu: &Gpu, bytes: &mut [u8]) -> Result<bool, String> {
    let target = gpu.alloc(bytes.len()).map_err(code)?;
    let stream = gpu.stream().map_err(code)?;
    bytes.fill(1);
    gpu.busy(stream, 100).map_err(code)?;
    // SAFETY: both have this length, and the stream is waited for below.
    answer(unsafe { sys::cuMemcpyHtoDAsync_v2(target, bytes.as_ptr().cast(), bytes.len(), stream) })
        .map_err(code)?;
    bytes.fill(2);
    gpu.wait_for(stream).map_err(code)?;
    Ok(gpu.byte(target).map_err(code)? == 1)
}

fn pageable_snapshot(gpu: &Gpu) -> Word {
    yes(first_bytes_arrive(gpu, &mut vec![0; 32 << 10])?)
}

fn pinned_late(gpu: &Gpu) -> Word {
    let (mut ptr, len) = (std::ptr::null_mut(), 1 << 20);
    // SAFETY: the pointer is to a local.
    answer(unsafe { sys::cuMemHostAlloc(&mut ptr, len, 0) }).map_err(code)?;
    // SAFETY: the driver gave that many bytes, which nobody else has; they are set before they are read.
    let bytes = unsafe {
        ptr.cast::<u8>().write_bytes(0, len);
        std::slice::from_raw_parts_mut(ptr.cast::<u8>(), len)
    };
    yes(!first_bytes_arrive(gpu, bytes)?)
}

fn register_file(_: &Gpu) -> Word {
    let path = std::env::current_exe()?;
    let file = granule_device::MappedFile::open(&path)?;
    let (start, len) = (file.bytes().as_ptr(), file.bytes().len().next_multiple_of(4096));
    // SAFETY: the pages stay mapped until the process ends; 8 is "read only".
    said(answer(unsafe { sys::cuMemHostRegister_v2(start.cast_mut().cast(), len, 8) }))
}
