//! Every call of a scripted run fails once, and from every call on all of them fail: nothing is left, and the next run works.

use granule_device::{Access, Bytes, Device, Error, FaultPlan, Region};

use crate::support::{granule, read};

/// Create, grow, alias, copy, run, shrink and drop: what an engine does, in small.
fn script(device: &Device) -> Result<Vec<u8>, Error> {
    let size = granule(device);
    let stream = device.stream()?;
    let mut range = device.reserve(Bytes::from_usize(4 * size))?;
    let mut granules = vec![device.create_granule()?];
    range.map(0, &granules, Access::ReadWrite)?;
    for _ in 0..2 {
        granules.push(device.create_granule()?);
    }
    range.map(1, &granules[1..], Access::ReadWrite)?;
    device.copy((&[1u8; 100][..]).into(), range.slice_mut(size - 50..size + 50)?)?;
    let mut shared = device.reserve(Bytes::from_usize(size))?;
    range.set_access(0..1, Access::ReadOnly)?;
    shared.map(0, &granules[..1], Access::ReadOnly)?;
    let private = device.create_granule()?;
    drop(shared.replace(0, &private, Access::ReadWrite)?);
    let mut from = Region::new(device.alloc(Bytes::new(100))?)?;
    let mut to = Region::new(device.alloc_pinned(Bytes::new(100))?)?;
    stream.fill(&mut from, .., 2)?;
    stream.copy(&from, .., &mut to, ..)?;
    let event = stream.record()?;
    let other = device.stream()?;
    other.wait(&event)?;
    other.call(|| ())?;
    device.synchronize()?;
    let mut lent = range.lend(3..4)?;
    lent.map(&[device.create_granule()?])?;
    range.take_back(lent)?;
    drop(range.unmap(1..2)?);
    let mut retired = range.retire(2..3)?;
    event.synchronize();
    retired.finish()?;
    let mut bytes = vec![0; 100];
    device.copy(to.slice(..)?, (&mut bytes[..]).into())?;
    device.copy(range.slice(size - 50..size)?, (&mut bytes[..50]).into())?;
    Ok(bytes)
}

fn expected() -> Vec<u8> {
    [[1; 50], [2; 50]].concat()
}

fn walk(open: &dyn Fn() -> Device, plan: fn(u64) -> FaultPlan) {
    let device = open();
    assert_eq!(script(&device).unwrap(), expected());
    let free = device.memory().unwrap().free;
    let calls = device.calls_made();
    assert_eq!(script(&device).unwrap(), expected());
    let calls = device.calls_made() - calls;
    for k in 1.. {
        let guard = device.inject_fault(plan(k));
        let done = script(&device);
        let fired = guard.fired();
        drop(guard);
        assert!(fired || done.is_ok(), "k = {k}: {done:?}");
        if let Ok(bytes) = &done {
            assert_eq!(*bytes, expected(), "k = {k}");
        }
        assert_eq!(device.live(), Default::default(), "k = {k}");
        assert_eq!(device.memory().unwrap().free, free, "k = {k}");
        assert_eq!(script(&device).unwrap(), expected(), "the run after k = {k}");
        if !fired {
            // How often a stream is asked whether its work is done depends on when it is.
            assert!(k > 20 && k <= 2 * calls, "{k} faults for {calls} calls");
            break;
        }
    }
}

pub(crate) fn every_failing_call_leaves_nothing(open: &dyn Fn() -> Device) {
    walk(open, FaultPlan::nth);
}

pub(crate) fn every_lasting_failure_leaves_nothing(open: &dyn Fn() -> Device) {
    walk(open, FaultPlan::from_nth);
}

pub(crate) fn a_refused_release_is_settled_later(open: &dyn Fn() -> Device) {
    let device = open();
    let granule = device.create_granule().unwrap();
    let buffer = device.alloc(Bytes::kib(64)).unwrap();
    let free = device.memory().unwrap().free;
    let guard = device.inject_fault(FaultPlan::from_nth(1));
    drop((granule, buffer));
    assert!(guard.fired());
    assert_eq!(device.live().unsettled, 2);
    drop(guard);
    assert_eq!(device.live().unsettled, 0);
    assert!(device.memory().unwrap().free > free);
    let buffer = device.alloc(Bytes::kib(64)).unwrap();
    assert_eq!(read(&device, buffer.slice(..1).unwrap()).len(), 1);
}
