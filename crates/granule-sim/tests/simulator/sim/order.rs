//! Streams, events and host functions: what is ordered, and what only looks as if it were.

use super::support::{
    Bench, LEN, alloc, copy, destroy, event, fill, free, free_pinned, ok, pinned, read, record, stream,
    synchronize, wait,
};
use cudarc::driver::sys::{self, CUresult};
use std::ffi::c_void;
use std::ptr::null_mut;

/// Fill on one stream, copy on another, with and without a wait. What the copy saw.
fn hand_over(waits: bool) -> u8 {
    let (writer, reader, written) = (stream(), stream(), event());
    let (a, b) = (alloc(LEN), alloc(LEN));
    fill(a, 1, LEN, writer);
    record(written, writer);
    if waits {
        wait(reader, written);
    }
    copy(b, a, LEN, reader);
    synchronize(reader);
    let seen = read(b, 1)[0];
    free(a);
    free(b);
    destroy(&[writer, reader], &[written]);
    seen
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_missing_wait_is_reported_with_every_seed_and_shows_with_many() {
    let mut late = 0;
    for seed in 0..40 {
        let bench = Bench::new();
        bench.sim.set_seed(seed);
        late += u32::from(hand_over(false) != 1);
        let reports = bench.sim.take_reports();
        assert_eq!(reports.len(), 1, "seed {seed}: {reports:?}");
        assert_eq!(reports[0].kind, "StreamRace");
        assert!(
            reports[0].message.contains("cuMemsetD8Async #")
                && reports[0].message.contains("cuMemcpyDtoDAsync_v2 #")
        );
        assert!(bench.end().is_empty());
    }
    assert!((10..40).contains(&late), "{late} of 40 schedules show it");
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_wait_is_enough_with_every_seed() {
    for seed in 0..40 {
        let bench = Bench::new();
        bench.sim.set_seed(seed);
        assert_eq!(hand_over(true), 1);
        assert!(bench.end().is_empty());
    }
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn the_legacy_stream_waits_for_blocking_streams_and_they_for_it() {
    for seed in 0..20 {
        let bench = Bench::new();
        bench.sim.set_seed(seed);
        let (mut blocking, mut other) = (null_mut(), null_mut());
        ok(unsafe { sys::cuStreamCreate(&mut blocking, 0) });
        ok(unsafe { sys::cuStreamCreate(&mut other, 0) });
        let (a, b, c) = (alloc(LEN), alloc(LEN), alloc(LEN));
        fill(a, 1, LEN, blocking);
        copy(b, a, LEN, null_mut());
        copy(c, b, LEN, other);
        synchronize(other);
        assert_eq!(read(c, 1), [1]);
        [a, b, c].into_iter().for_each(free);
        destroy(&[blocking, other], &[]);
        assert!(bench.end().is_empty());
    }
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn the_legacy_stream_does_not_wait_for_others() {
    let bench = Bench::new();
    let (free_stream, a, b) = (stream(), alloc(LEN), alloc(LEN));
    fill(a, 1, LEN, free_stream);
    copy(b, a, LEN, null_mut());
    assert_eq!(bench.kinds(), ["StreamRace"]);
    free(a);
    free(b);
    destroy(&[free_stream], &[]);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn the_blocking_copy_of_pageable_memory_may_not_have_arrived() {
    let bench = Bench::new();
    let (other, a, b) = (stream(), alloc(LEN), alloc(LEN));
    let bytes = vec![1_u8; LEN];
    ok(unsafe { sys::cuMemcpyHtoD_v2(a, bytes.as_ptr().cast(), LEN) });
    copy(b, a, LEN, other);
    assert_eq!(bench.kinds(), ["StreamRace"], "staged, then queued on the legacy stream");
    free(a);
    free(b);
    destroy(&[other], &[]);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_wait_before_the_event_is_recorded_is_no_wait_and_reported_where_the_order_is_missed() {
    for recorded_first in [true, false] {
        let bench = Bench::new();
        let (writer, reader, written) = (stream(), stream(), event());
        let (a, b) = (alloc(LEN), alloc(LEN));
        fill(a, 1, LEN, writer);
        if recorded_first {
            record(written, writer);
        }
        wait(reader, written);
        assert!(bench.kinds().is_empty(), "no harm yet");
        copy(b, a, LEN, reader);
        if !recorded_first {
            record(written, writer);
        }
        let kinds = bench.kinds();
        assert_eq!(kinds.is_empty(), recorded_first, "{kinds:?}");
        assert!(recorded_first || kinds == ["StreamRace", "EventNeverRecorded"], "{kinds:?}");
        free(a);
        free(b);
        destroy(&[writer, reader], &[written]);
        assert_eq!(unsafe { sys::cuEventQuery(written) }, CUresult::CUDA_ERROR_INVALID_HANDLE);
        assert_eq!(bench.end(), ["BadHandle"]);
    }
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn polling_ends_and_tells_the_host_what_is_done() {
    let bench = Bench::new();
    let (writer, reader, written) = (stream(), stream(), event());
    let (a, b) = (alloc(LEN), alloc(LEN));
    fill(a, 3, LEN, writer);
    record(written, writer);
    while unsafe { sys::cuEventQuery(written) } == CUresult::CUDA_ERROR_NOT_READY {}
    copy(b, a, LEN, reader);
    while unsafe { sys::cuStreamQuery(reader) } == CUresult::CUDA_ERROR_NOT_READY {}
    assert_eq!(read(b, 1), [3]);
    free(a);
    free(b);
    destroy(&[writer, reader], &[written]);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn work_of_a_destroyed_stream_is_done_before_the_context_is() {
    let bench = Bench::new();
    let (gone, a) = (stream(), alloc(LEN));
    fill(a, 4, LEN, gone);
    destroy(&[gone], &[]);
    ok(unsafe { sys::cuCtxSynchronize() });
    assert_eq!(read(a, 1), [4]);
    free(a);
    assert!(bench.end().is_empty());
}

unsafe extern "C" fn push(list: *mut c_void) {
    unsafe { (*list.cast::<Vec<u32>>()).push(1) };
}

unsafe extern "C" fn call_the_driver(answer: *mut c_void) {
    let mut version = 0;
    unsafe { answer.cast::<CUresult>().write(sys::cuCtxGetDevice(&mut version)) };
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_host_function_runs_in_stream_order_and_may_not_call_the_driver() {
    let bench = Bench::new();
    let stream = stream();
    let mut list: Vec<u32> = Vec::new();
    ok(unsafe { sys::cuLaunchHostFunc(stream, Some(push), (&raw mut list).cast()) });
    synchronize(stream);
    assert_eq!(list, [1]);
    let mut answer = CUresult::CUDA_SUCCESS;
    ok(unsafe { sys::cuLaunchHostFunc(stream, Some(call_the_driver), (&raw mut answer).cast()) });
    synchronize(stream);
    assert_eq!(answer, CUresult::CUDA_ERROR_NOT_PERMITTED);
    assert_eq!(bench.kinds(), ["DriverCallInHostFunction"]);
    destroy(&[stream], &[]);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn freeing_memory_runs_the_work_of_its_device_and_is_no_order() {
    for seed in 0..10 {
        let bench = Bench::new();
        bench.sim.set_seed(seed);
        let (x, y, here, other) = (stream(), stream(), pinned(LEN), pinned(LEN));
        let (a, unused) = (alloc(LEN), alloc(LEN));
        let mut context = null_mut();
        ok(unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, 1) });
        ok(unsafe { sys::cuCtxSetCurrent(context) });
        let (elsewhere, b) = (stream(), alloc(LEN));
        [here, other].into_iter().for_each(|at| unsafe { at.write_bytes(0, LEN) });
        fill(a, 1, LEN, x);
        ok(unsafe { sys::cuMemcpyDtoHAsync_v2(here.cast(), a, LEN, x) });
        fill(b, 1, LEN, elsewhere);
        ok(unsafe { sys::cuMemcpyDtoHAsync_v2(other.cast(), b, LEN, elsewhere) });
        assert_eq!(unsafe { (here.read(), other.read()) }, (0, 0));
        free(unused);
        assert_eq!(unsafe { here.read() }, 1, "drivers wait for the device's own work");
        assert_eq!(bench.kinds(), [""; 0]);
        // And no document says so: whoever builds on it is told.
        ok(unsafe { sys::cuCtxSetCurrent(bench.context) });
        fill(a, 2, LEN, y);
        assert_eq!(bench.kinds(), ["StreamRace", "StreamRace"], "with the fill and with the copy");
        [x, y, elsewhere].into_iter().for_each(synchronize);
        [a, b].into_iter().for_each(free);
        [here, other].into_iter().for_each(free_pinned);
        destroy(&[x, y, elsewhere], &[]);
        ok(unsafe { sys::cuDevicePrimaryCtxRelease_v2(1) });
        assert!(bench.end().is_empty());
    }
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn freeing_memory_does_not_wait_for_other_devices() {
    let late = (0..20).filter(|&seed| {
        let bench = Bench::new();
        bench.sim.set_seed(seed);
        let (unused, there) = (alloc(LEN), pinned(LEN));
        let mut context = null_mut();
        ok(unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, 1) });
        ok(unsafe { sys::cuCtxSetCurrent(context) });
        let (stream, b) = (stream(), alloc(LEN));
        unsafe { there.write_bytes(0, LEN) };
        fill(b, 1, LEN, stream);
        ok(unsafe { sys::cuMemcpyDtoHAsync_v2(there.cast(), b, LEN, stream) });
        free(unused);
        let late = unsafe { there.read() } == 0;
        synchronize(stream);
        free(b);
        free_pinned(there);
        destroy(&[stream], &[]);
        ok(unsafe { sys::cuDevicePrimaryCtxRelease_v2(1) });
        assert!(bench.end().is_empty());
        late
    });
    assert_eq!(late.count(), 20);
}
