//! Plain, pinned and registered memory: round trips, capacity, bounds, leaks, leases.

use super::support::{
    Bench, LEN, alloc, copy, fill, free, free_pinned, ok, pinned, read, stream, synchronize,
};
use cudarc::driver::CudaContext;
use cudarc::driver::sys::{self, CUresult};

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn bytes_make_the_round_trip_through_the_safe_layer_and_nothing_is_left() {
    let bench = Bench::new();
    ok(unsafe { sys::cuDevicePrimaryCtxRelease_v2(0) });
    let context = CudaContext::new(0).unwrap();
    let other = context.new_stream().unwrap();
    let data: Vec<f32> = (0..1000).map(|n| n as f32).collect();
    let there = context.default_stream().clone_htod(&data).unwrap();
    let twice = other.clone_dtod(&there).unwrap();
    let back = context.default_stream().clone_dtoh(&twice).unwrap();
    context.synchronize().unwrap();
    assert_eq!(back, data);
    // SAFETY: never read.
    let unused = unsafe { context.alloc_pinned::<u8>(64) }.unwrap();
    drop((there, twice, other, unused));
    drop(context);
    assert_eq!(bench.sim.take_reports(), []);
    assert_eq!(bench.sim.live(), []);
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_full_device_says_so_and_has_room_again_after_a_free() {
    let bench = Bench::new();
    let (mut free_bytes, mut total) = (0, 0);
    ok(unsafe { sys::cuMemGetInfo_v2(&mut free_bytes, &mut total) });
    assert_eq!(free_bytes, total);
    let most = alloc(total - 512);
    let mut at = 0;
    assert_eq!(unsafe { sys::cuMemAlloc_v2(&mut at, 513) }, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    let last = alloc(1);
    ok(unsafe { sys::cuMemGetInfo_v2(&mut free_bytes, &mut total) });
    assert_eq!(free_bytes, 0);
    free(most);
    free(alloc(total - 512));
    free(last);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_copy_past_the_end_is_refused_and_reported() {
    let bench = Bench::new();
    let at = alloc(1000);
    let code = unsafe { sys::cuMemsetD8_v2(at, 0, 1001) };
    assert_eq!(code, CUresult::CUDA_ERROR_INVALID_VALUE);
    let reports = bench.sim.take_reports();
    assert_eq!(reports[0].kind, "OutOfBounds");
    assert!(
        reports[0]
            .message
            .contains("end 1 bytes past the end of the allocation of 1000 bytes by cuMemAlloc_v2 #")
    );
    free(at);
    assert_eq!(unsafe { sys::cuMemsetD8_v2(at, 0, 1) }, CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(bench.kinds(), ["UseAfterFree"]);
    assert_eq!(unsafe { sys::cuMemFree_v2(at) }, CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(bench.end(), ["UseAfterFree"], "a second free");
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn new_memory_is_not_zero() {
    let bench = Bench::new();
    let at = alloc(LEN);
    assert_eq!(read(at, LEN), vec![0xa5; LEN]);
    free(at);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn what_is_still_held_is_counted_with_the_call_that_made_it() {
    let bench = Bench::new();
    let lost = alloc(1 << 20);
    let stream = stream();
    let live = bench.sim.live();
    let names: Vec<_> = live.iter().map(|l| (l.what.as_str(), l.name.as_str(), l.bytes)).collect();
    let expected = [
        ("context", "cuDevicePrimaryCtxRetain", 0),
        ("allocation", "cuMemAlloc_v2", 1 << 20),
        ("stream", "cuStreamCreate", 0),
    ];
    assert_eq!(names, expected);
    ok(unsafe { sys::cuStreamDestroy_v2(stream) });
    let sim = bench.sim;
    let kinds = bench.end();
    assert_eq!(kinds, ["LeakAtContextRelease"]);
    assert_eq!(sim.live(), [], "the context took it along: {lost:#x}");
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_pageable_source_is_taken_at_the_call_and_a_pinned_one_later() {
    let bench = Bench::new();
    let (to, stream, pinned) = (alloc(LEN), stream(), pinned(LEN));
    let mut pageable = vec![1_u8; LEN];
    ok(unsafe { sys::cuMemcpyHtoDAsync_v2(to, pageable.as_ptr().cast(), LEN, stream) });
    pageable.fill(2);
    synchronize(stream);
    assert_eq!(read(to, LEN), vec![1; LEN]);
    assert!(bench.kinds().is_empty());

    unsafe { pinned.write_bytes(3, LEN) };
    ok(unsafe { sys::cuMemcpyHtoDAsync_v2(to, pinned.cast(), LEN, stream) });
    unsafe { pinned.write_bytes(4, LEN) };
    synchronize(stream);
    assert_eq!(read(to, LEN), vec![4; LEN], "late, as a device may be");
    assert_eq!(bench.kinds(), ["PinnedReuse"]);

    free(to);
    free_pinned(pinned);
    ok(unsafe { sys::cuStreamDestroy_v2(stream) });
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_pinned_buffer_that_the_stream_itself_fills_is_no_reuse() {
    let bench = Bench::new();
    let (a, b, stream, pinned) = (alloc(LEN), alloc(LEN), stream(), pinned(LEN));
    for seed in 0..20 {
        bench.sim.set_seed(seed);
        fill(a, seed as u8, LEN, stream);
        ok(unsafe { sys::cuMemcpyDtoHAsync_v2(pinned.cast(), a, LEN, stream) });
        ok(unsafe { sys::cuMemcpyHtoDAsync_v2(b, pinned.cast(), LEN, stream) });
        synchronize(stream);
        assert_eq!(read(b, LEN), vec![seed as u8; LEN]);
    }
    free(a);
    free(b);
    free_pinned(pinned);
    ok(unsafe { sys::cuStreamDestroy_v2(stream) });
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn registered_memory_is_the_programs_again_afterwards() {
    let bench = Bench::new();
    let mut memory = vec![7_u8; 2 * LEN];
    let at = memory.as_mut_ptr();
    ok(unsafe { sys::cuMemHostRegister_v2(at.cast(), LEN, 0) });
    let again = unsafe { sys::cuMemHostRegister_v2(at.add(8).cast(), 8, 0) };
    assert_eq!(again, CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    let mut device = 0;
    ok(unsafe { sys::cuMemHostGetDevicePointer_v2(&mut device, at.cast(), 0) });
    let (to, stream) = (alloc(LEN), stream());
    copy(to, device, LEN, stream);
    synchronize(stream);
    assert_eq!(read(to, LEN), vec![7; LEN]);
    ok(unsafe { sys::cuMemHostUnregister(at.cast()) });
    let gone = unsafe { sys::cuMemHostUnregister(at.cast()) };
    assert_eq!(gone, CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED);
    bench.kinds();
    ok(unsafe { sys::cuMemcpyHtoDAsync_v2(to, at.cast(), LEN, stream) });
    memory.fill(8);
    synchronize(stream);
    assert_eq!(read(to, LEN), vec![7; LEN], "pageable again");
    free(to);
    ok(unsafe { sys::cuStreamDestroy_v2(stream) });
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn managed_memory_is_there_for_both() {
    let bench = Bench::new();
    let mut at = 0;
    ok(unsafe { sys::cuMemAllocManaged(&mut at, LEN, 1) });
    let host = at as *mut u8;
    unsafe { host.write_bytes(5, LEN) };
    let (to, stream) = (alloc(LEN), stream());
    copy(to, at, LEN, stream);
    fill(at, 6, LEN, stream);
    synchronize(stream);
    assert_eq!((read(to, 1), unsafe { host.read() }), (vec![5], 6));
    free(at);
    free(to);
    ok(unsafe { sys::cuStreamDestroy_v2(stream) });
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn between_leases_is_out_of_bounds() {
    let bench = Bench::new();
    let slab = alloc(LEN);
    assert!(bench.sim.lease(slab + 256, 256));
    assert!(!bench.sim.lease(slab + 300, 8), "overlaps");
    assert_eq!(bench.kinds(), ["BadArguments"]);
    ok(unsafe { sys::cuMemsetD8_v2(slab + 256, 1, 256) });
    for (from, len) in [(0, 8), (256, 257), (512, 1)] {
        let code = unsafe { sys::cuMemsetD8_v2(slab + from, 1, len) };
        assert_eq!(code, CUresult::CUDA_ERROR_INVALID_VALUE, "{from} {len}");
    }
    assert_eq!(bench.kinds(), ["PastLease"; 3]);
    assert!(bench.sim.unlease(slab + 256));
    assert!(!bench.sim.unlease(slab + 256));
    assert_eq!(unsafe { sys::cuMemsetD8_v2(slab + 256, 1, 1) }, CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(bench.kinds(), ["PastLease"]);
    free(slab);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn peers_must_be_let_in() {
    let bench = Bench::new();
    let mut second = std::ptr::null_mut();
    ok(unsafe { sys::cuDevicePrimaryCtxRetain(&mut second, 1) });
    let here = alloc(LEN);
    ok(unsafe { sys::cuCtxSetCurrent(second) });
    let there = alloc(LEN);
    ok(unsafe { sys::cuMemsetD8_v2(there, 9, LEN) });
    ok(unsafe { sys::cuCtxSynchronize() });
    ok(unsafe { sys::cuCtxSetCurrent(bench.context) });
    let code = unsafe { sys::cuMemcpyDtoD_v2(here, there, LEN) };
    assert_eq!(code, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(bench.kinds(), ["NoAccess"]);
    ok(unsafe { sys::cuMemcpyPeer(here, bench.context, there, second, LEN) });
    ok(unsafe { sys::cuCtxEnablePeerAccess(second, 0) });
    let twice = unsafe { sys::cuCtxEnablePeerAccess(second, 0) };
    assert_eq!(twice, CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED);
    ok(unsafe { sys::cuMemcpyDtoD_v2(here, there, LEN) });
    assert_eq!(read(here, LEN), vec![9; LEN]);
    free(here);
    free(there);
    ok(unsafe { sys::cuDevicePrimaryCtxRelease_v2(1) });
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_host_that_follows_a_device_pointer_dies() {
    let bench = Bench::new();
    let at = alloc(LEN);
    // In a child, which ends by the signal and by nothing else.
    let child = unsafe { libc::fork() };
    if child == 0 {
        unsafe {
            std::ptr::read_volatile(at as *const u8);
            libc::_exit(0);
        }
    }
    let mut status = 0;
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert!(libc::WIFSIGNALED(status), "status {status}");
    free(at);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_length_beyond_all_addresses_is_refused_like_any_other() {
    let bench = Bench::new();
    let (at, target) = (alloc(1000), stream());
    let bytes = [1_u8; 16];
    let invalid = CUresult::CUDA_ERROR_INVALID_VALUE;
    let from = bytes.as_ptr().cast();
    for len in [usize::MAX, usize::MAX - 7, 1 << 62] {
        assert_eq!(unsafe { sys::cuMemsetD8Async(at, 1, len, target) }, invalid);
        assert_eq!(unsafe { sys::cuMemcpyDtoDAsync_v2(at, at + 512, len, target) }, invalid);
        assert_eq!(unsafe { sys::cuMemcpyHtoDAsync_v2(at, from, len, target) }, invalid);
        assert_eq!(unsafe { sys::cuMemcpyHtoD_v2(at, from, len) }, invalid);
        let reports = bench.sim.take_reports();
        assert!(reports.len() >= 4 && reports.iter().all(|r| r.kind == "OutOfBounds"), "{reports:?}");
        assert!(reports.iter().all(|r| !r.message.contains("lies 0 bytes")), "{reports:?}");
        let (mut somewhere, mut there) = (std::ptr::null_mut(), 0);
        let full = CUresult::CUDA_ERROR_OUT_OF_MEMORY;
        assert_eq!(unsafe { sys::cuMemAlloc_v2(&mut there, len) }, full);
        assert_eq!(unsafe { sys::cuMemHostAlloc(&mut somewhere, len, 0) }, full);
        assert_eq!(unsafe { sys::cuMemAllocManaged(&mut there, len, 1) }, full);
        assert_eq!(unsafe { sys::cuMemAllocAsync(&mut there, len, target) }, full);
        assert!(!bench.sim.lease(at, len as u64));
        assert_eq!(bench.kinds(), ["BadArguments"]);
    }
    assert_eq!(unsafe { sys::cuMemHostRegister_v2(from.cast_mut(), usize::MAX, 0) }, invalid);
    free(at);
    super::support::destroy(&[target], &[]);
    assert!(bench.end().is_empty());
}
