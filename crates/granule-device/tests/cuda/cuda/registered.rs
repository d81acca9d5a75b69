//! An engine's own memory, registered with the device.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use granule_device::{Access, Bytes, Device, Error, Region, RegisteredMemory};

use crate::support::{assert_nothing_left, bytes, device, fill_kernel, fill_launch, pattern, region};

/// Pages of memory that say when they go.
struct Pages {
    memory: Box<[u8]>,
    gone: Arc<AtomicBool>,
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::Release);
    }
}

fn pages(device: &Device, access: Access) -> (Result<RegisteredMemory, Error>, Arc<AtomicBool>) {
    let gone = Arc::new(AtomicBool::new(false));
    let memory = (0..20_000_u32).map(|i| (i % 251) as u8).collect();
    let mut pages = Pages { memory, gone: Arc::clone(&gone) };
    let at = NonNull::from(&mut pages.memory[..]);
    // SAFETY: the box is given away with the memory, which nothing else points to.
    (unsafe { device.register_memory(at, access, pages) }, gone)
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_vec_is_read_and_written_by_kernels() {
    let device = device();
    let (stream, function) = (device.stream().unwrap(), fill_kernel(&device));
    let (memory, gone) = pages(&device, Access::ReadWrite);
    let mut memory = Region::new(memory.unwrap()).unwrap();
    assert_eq!(device.live().registered, 1);
    let launch =
        fill_launch(&function).write_region(&mut memory, 16..64).value(48_u64).value(3_u64).value(4_u64);
    // SAFETY: the kernel stays inside its 48 bytes.
    unsafe { stream.launch(launch).unwrap() };
    let mut copy = region(&device, 20_000);
    stream.copy(&memory, .., &mut copy, ..).unwrap();
    drop(memory);
    let mut expected: Vec<u8> = (0..20_000_u32).map(|i| (i % 251) as u8).collect();
    expected[16..64].copy_from_slice(&pattern(48, 3, 4));
    assert_eq!(bytes(&copy), expected);
    stream.synchronize().unwrap();
    drop((stream, function, copy));
    assert_nothing_left(&device);
    assert!(gone.load(Ordering::Acquire));
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn memory_to_be_read_is_not_written() {
    let device = device();
    let (memory, gone) = pages(&device, Access::ReadOnly);
    let mut memory = memory.unwrap();
    assert!(matches!(memory.slice_mut(), Err(Error::ReadOnly { .. })));
    assert_eq!(memory.slice().as_host().unwrap()[..3], [0, 1, 2]);
    let (stream, mut memory) = (device.stream().unwrap(), Region::new(memory).unwrap());
    assert!(matches!(stream.fill(&mut memory, .., 1), Err(Error::ReadOnly { .. })));
    let mut copy = region(&device, 20_000);
    stream.copy(&memory, .., &mut copy, ..).unwrap();
    assert_eq!(bytes(&copy)[..3], [0, 1, 2]);
    drop((memory, copy, stream));
    assert_nothing_left(&device);
    assert!(gone.load(Ordering::Acquire));
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn memory_that_is_refused_is_let_go_of() {
    let device = device();
    let (first, _) = pages(&device, Access::ReadWrite);
    let first = first.unwrap();
    let at = NonNull::slice_from_raw_parts(NonNull::new(first.ptr().addr() as *mut u8).unwrap(), 64);
    // SAFETY: the memory outlives the answer, which is an error.
    let again = unsafe { device.register_memory(at, Access::ReadWrite, ()) };
    assert!(matches!(again, Err(Error::Driver { code: 712, .. })), "{again:?}");
    let none = NonNull::slice_from_raw_parts(NonNull::<u8>::dangling(), 0);
    // SAFETY: there is no memory.
    let none = unsafe { device.register_memory(none, Access::ReadOnly, ()) };
    assert!(matches!(none, Err(Error::ZeroSize { .. })), "{none:?}");
    assert_eq!((device.live().registered, first.len()), (1, Bytes::new(20_000)));
    drop(first);
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn memory_stays_until_it_is_unregistered() {
    let device = device();
    let stream = device.stream().unwrap();
    let (memory, gone) = pages(&device, Access::ReadWrite);
    let memory = memory.unwrap();
    stream.begin_capture().unwrap();
    // Unregistering it now would spoil the capture: it is put off.
    drop(memory);
    let waiting = device.live().unsettled == 1;
    assert_eq!(gone.load(Ordering::Acquire), !waiting);
    stream.end_capture().unwrap();
    assert_eq!(device.live().unsettled, 0);
    assert!(gone.load(Ordering::Acquire));
    // Refused before the driver was asked.
    let (memory, gone) = pages(&device, Access::ReadOnly);
    let plan = device.inject_fault(granule_device::FaultPlan::from_nth(1));
    drop(memory.unwrap());
    assert!(device.live().unsettled == 1 && !gone.load(Ordering::Acquire));
    drop(plan);
    drop(stream);
    assert_nothing_left(&device);
    assert!(gone.load(Ordering::Acquire));
}
