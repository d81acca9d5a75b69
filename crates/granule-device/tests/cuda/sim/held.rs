//! What the driver holds when a device is gone, and what checkers are told.

use std::sync::Arc;

use cudarc::driver::CudaContext;
use granule_device::{Access, Bytes, Device, Error, FaultPlan};
use granule_sim::Sim;

use crate::support::{bytes, device, region};

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn a_device_that_is_gone_holds_nothing() {
    let sim = Sim::find().unwrap();
    let before = sim.live();
    let device = device();
    let (first, second) = (device.stream().unwrap(), device.stream().unwrap());
    let mut data = region(&device, 100);
    first.fill(&mut data, .., 1).unwrap();
    let event = first.record().unwrap();
    second.wait(&event).unwrap();
    let mut range = device.reserve(device.granularity()).unwrap();
    range.map(0, &[device.create_granule().unwrap()], Access::ReadWrite).unwrap();
    assert_eq!(bytes(&data), [1; 100]);
    assert!(sim.live().len() > before.len() + 5);
    // In an order in which nobody would write it down.
    drop((device, second, range, data, first, event));
    assert_eq!(sim.live(), before);
    assert_eq!(sim.take_reports(), []);
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn what_was_refused_goes_with_the_device() {
    let sim = Sim::find().unwrap();
    let before = sim.live();
    let device = device();
    let (buffer, granule) = (device.alloc(Bytes::kib(4)).unwrap(), device.create_granule().unwrap());
    let stream = device.stream().unwrap();
    let guard = device.inject_fault(FaultPlan::from_nth(1));
    drop((buffer, granule, stream));
    assert_eq!(device.live().unsettled, 3);
    drop(guard);
    drop(device);
    assert_eq!(sim.live(), before);
    assert_eq!(sim.take_reports(), []);
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn a_piece_is_announced_and_taken_back() {
    let device = device();
    let slab = device.alloc(Bytes::kib(4)).unwrap();
    let piece = device.announce(slab.ptr(), Bytes::new(256)).unwrap();
    assert!(piece.is_heard());
    assert_eq!((piece.ptr(), piece.len(), device.live().suballocations), (slab.ptr(), Bytes::new(256), 1));
    match device.announce(slab.ptr(), Bytes::new(8)) {
        Err(Error::Announcement { at, len, .. }) => assert_eq!((at, len), (slab.ptr().addr(), Bytes::new(8))),
        other => panic!("{other:?}"),
    }
    let reports = Sim::find().unwrap().take_reports();
    assert!(reports.len() == 1 && reports[0].message.contains("overlaps"), "{reports:?}");
    drop(piece);
    drop(device.announce(slab.ptr(), Bytes::new(8)).unwrap());
    let host = Device::host().unwrap();
    let memory = host.alloc(Bytes::kib(4)).unwrap();
    assert!(!host.announce(memory.ptr(), Bytes::new(8)).unwrap().is_heard());
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn somebody_elses_context_stays_current() {
    let (here, there) = (device(), CudaContext::new(1).unwrap());
    there.bind_to_thread().unwrap();
    let current = || cudarc::driver::result::ctx::get_current().unwrap().unwrap();
    assert_eq!(current(), there.cu_ctx());
    let stream = here.stream().unwrap();
    let mut data = region(&here, 100);
    stream.fill(&mut data, .., 2).unwrap();
    assert_eq!(bytes(&data), [2; 100]);
    assert_eq!(current(), there.cu_ctx());
    drop((data, stream));
    assert_eq!(current(), there.cu_ctx());
    assert_eq!(Arc::strong_count(&there), 1);
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn an_earlier_drops_error_is_left_for_its_owner() {
    let context = CudaContext::new(0).unwrap();
    let device = Device::from_cuda(Arc::clone(&context)).unwrap();
    let code = cudarc::driver::sys::cudaError_enum::CUDA_ERROR_INVALID_HANDLE;
    context.record_err(Err::<(), _>(cudarc::driver::DriverError(code)));
    let stream = device.stream().unwrap();
    stream.synchronize().unwrap();
    drop(stream);
    assert_eq!(context.check_err().unwrap_err().0, code);
}
