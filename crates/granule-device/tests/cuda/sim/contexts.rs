//! The calling thread's current context, and what an open device holds of the driver's.

use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};
use granule_device::{Bytes, Device, Error, FaultPlan};
use granule_sim::Sim;

use crate::support::device;

fn current() -> sys::CUcontext {
    let mut context = null_mut();
    // SAFETY: it is written into a local.
    unsafe { sys::cuCtxGetCurrent(&raw mut context).result().unwrap() };
    context
}

fn make_none_current() {
    // SAFETY: none is a context that is always there.
    unsafe { sys::cuCtxSetCurrent(null_mut()).result().unwrap() };
}

/// Everything that a device is used for, in one.
fn use_it(device: &Device) {
    let mut range = device.reserve(device.granularity()).unwrap();
    range.map(0, &[device.create_granule().unwrap()], granule_device::Access::ReadWrite).unwrap();
    let stream = device.stream().unwrap();
    let mut data = granule_device::Region::new(device.alloc(Bytes::kib(4)).unwrap()).unwrap();
    stream.fill(&mut data, .., 1).unwrap();
    device.copy(data.slice(..4).unwrap(), (&mut [0; 4][..]).into()).unwrap();
    device.features().unwrap();
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn an_engines_current_context_stays_current() {
    let engine = CudaContext::new(0).unwrap();
    let other = Device::cuda(1).unwrap();
    assert_eq!(current(), engine.cu_ctx(), "opened");
    use_it(&other);
    assert_eq!(current(), engine.cu_ctx(), "used");
    let fault = other.inject_fault(FaultPlan::from_nth(2));
    assert!(other.create_granule().is_err() && fault.fired());
    assert_eq!(current(), engine.cu_ctx(), "failed");
    drop(fault);
    drop(other);
    assert_eq!(current(), engine.cu_ctx(), "dropped");
    let beside = Device::from_cuda(Arc::clone(&engine)).unwrap();
    use_it(&beside);
    drop(beside);
    assert_eq!(current(), engine.cu_ctx(), "its own device dropped");
    drop(engine);
    make_none_current();
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn where_none_was_current_none_is() {
    make_none_current();
    let device = device();
    assert!(current().is_null(), "opened");
    use_it(&device);
    assert!(current().is_null(), "used");
    drop(device);
    assert!(current().is_null(), "dropped");
    assert!(Device::cuda(usize::MAX).is_err());
    assert!(current().is_null(), "not opened");
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn a_context_that_goes_is_not_left_current() {
    make_none_current();
    let device = device();
    device.as_cuda().unwrap().bind_to_thread().unwrap();
    drop(device);
    assert!(current().is_null(), "the last has gone");
    // Kept by somebody else, it stays what it was.
    let device = self::device();
    let engine = CudaContext::new(0).unwrap();
    assert_eq!(current(), engine.cu_ctx());
    drop(device);
    assert_eq!(current(), engine.cu_ctx(), "somebody has it");
    // A last hold that is given away, too.
    let device = Device::from_cuda(engine).unwrap();
    drop(device);
    assert!(current().is_null());
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn a_code_newer_than_the_bindings_is_an_error() {
    let sim = Sim::find().unwrap();
    let device = device();
    let fault = sim.fail_nth(2, 4242);
    let said = device.memory().unwrap_err().to_string();
    assert!(!fault.clear());
    assert!(said.contains("an error (4242)"), "{said}");
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn opening_and_closing_a_device_leaves_nothing_whatever_fails() {
    let sim = Sim::find().unwrap();
    make_none_current();
    drop(device());
    assert_eq!(sim.live(), []);
    let mut left = Vec::new();
    for k in 1.. {
        let fault = sim.fail_nth(k, 999);
        let opened = Device::cuda(0);
        let waiting = fault.clear();
        if opened.is_ok() && !waiting {
            // What was put back or let go of beside the point.
            assert!(k > 10, "{k}");
        }
        drop(opened);
        if !sim.live().is_empty() {
            left.push((k, sim.live()));
            // SAFETY: the hold that cudarc forgot; there is no other.
            unsafe { result::primary_ctx::release(0).unwrap() };
        }
        assert_eq!(sim.live(), [], "k = {k}");
        assert!(current().is_null(), "k = {k}");
        if waiting {
            assert!(k > 20, "{k}");
            break;
        }
    }
    // cudarc's own question between taking hold of the context and making an owner of it: `retain` in context.rs.
    let [(_, only)] = &left[..] else { panic!("{left:?}") };
    assert_eq!(
        only.iter().map(|thing| thing.name.as_str()).collect::<Vec<_>>(),
        ["cuDevicePrimaryCtxRetain"]
    );
    assert_eq!(sim.take_reports(), []);
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn a_device_without_room_says_so_when_it_is_opened() {
    let sim = Sim::find().unwrap();
    let engine = CudaContext::new(0).unwrap();
    let (mut full, mut opened) = (0, 0);
    for k in 1.. {
        let fault = sim.fail_nth(k, Sim::OUT_OF_MEMORY);
        let device = Device::cuda(0);
        let waiting = fault.clear();
        match device {
            Ok(_) => opened += 1,
            Err(Error::OutOfMemory { device, .. }) => {
                assert_eq!(device, "cuda:0");
                full += 1;
            }
            Err(Error::Driver { call, code: 2, .. }) => {
                let takes_room =
                    ["cuDevicePrimaryCtxRetain", "cuStreamCreate", "cuMemCreate"].contains(&call);
                assert!(!takes_room, "k = {k}: {call}");
            }
            Err(other) => panic!("k = {k}: {other}"),
        }
        if waiting {
            break;
        }
    }
    assert!(full > 1 && opened > 2, "{full} {opened}");
    // What cudarc has forgotten; see the test above.
    assert_eq!(sim.live().len(), 1);
    drop(engine);
    if !sim.live().is_empty() {
        // SAFETY: the hold that cudarc forgot; there is no other.
        unsafe { result::primary_ctx::release(0).unwrap() };
    }
    assert_eq!(sim.live(), []);
    make_none_current();
}
