//! Virtual memory: rules, aliases, access, and memory taken away too early.

use super::support::{
    Bench, access, alloc, copy, destroy, fill, free, granularity, ok, properties, read, stream, synchronize,
};
use cudarc::driver::sys::{self, CUdeviceptr, CUresult};

const INVALID: CUresult = CUresult::CUDA_ERROR_INVALID_VALUE;

fn create(len: usize) -> u64 {
    let mut handle = 0;
    ok(unsafe { sys::cuMemCreate(&mut handle, len, &properties(1, 0), 0) });
    handle
}

fn reserve(len: usize) -> CUdeviceptr {
    let mut at = 0;
    ok(unsafe { sys::cuMemAddressReserve(&mut at, len, 0, 0, 0) });
    at
}

fn map(at: CUdeviceptr, len: usize, handle: u64) {
    ok(unsafe { sys::cuMemMap(at, len, 0, handle, 0) });
}

fn unmap(at: CUdeviceptr, len: usize) {
    ok(unsafe { sys::cuMemUnmap(at, len) });
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn an_alias_sees_the_same_bytes_and_a_released_handle_lives_while_mapped() {
    let bench = Bench::new();
    let g = granularity();
    let at = reserve(4 * g);
    assert_eq!(at as usize % g, 0);
    let handle = create(g);
    map(at, g, handle);
    map(at + 2 * g as u64, g, handle);
    ok(unsafe { sys::cuMemRelease(handle) });
    ok(access(at, g, 0, 3));
    ok(access(at + 2 * g as u64, g, 0, 3));
    ok(unsafe { sys::cuMemsetD8_v2(at, 5, g) });
    assert_eq!(read(at + 2 * g as u64 + 77, 3), [5; 3]);
    let (mut free_bytes, mut total) = (0, 0);
    ok(unsafe { sys::cuMemGetInfo_v2(&mut free_bytes, &mut total) });
    assert_eq!(free_bytes, total - g);
    unmap(at, g);
    unmap(at + 2 * g as u64, g);
    ok(unsafe { sys::cuMemGetInfo_v2(&mut free_bytes, &mut total) });
    assert_eq!(free_bytes, total);
    ok(unsafe { sys::cuMemAddressFree(at, 4 * g) });
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn what_the_rules_forbid_is_refused() {
    let bench = Bench::new();
    let g = granularity();
    let (at, handle) = (reserve(4 * g), create(g));
    let mut out = 0;
    assert_eq!(unsafe { sys::cuMemAddressReserve(&mut out, g + 1, 0, 0, 0) }, INVALID);
    assert_eq!(unsafe { sys::cuMemCreate(&mut out, g / 2, &properties(1, 0), 0) }, INVALID);
    assert_eq!(
        unsafe { sys::cuMemCreate(&mut out, g, &properties(1, 9), 0) },
        CUresult::CUDA_ERROR_INVALID_DEVICE
    );
    assert_eq!(unsafe { sys::cuMemMap(at + 512, g, 0, handle, 0) }, INVALID);
    assert_eq!(unsafe { sys::cuMemMap(at, g, g, handle, 0) }, INVALID);
    assert_eq!(unsafe { sys::cuMemMap(at + 4 * g as u64, g, 0, handle, 0) }, INVALID);
    map(at, g, handle);
    assert_eq!(unsafe { sys::cuMemMap(at, g, 0, handle, 0) }, INVALID, "taken");
    assert_eq!(access(at, 2 * g, 0, 3), INVALID, "half of it is not mapped");
    assert_eq!(access(at, g, 0, 2), INVALID, "there is no write-only");
    assert_eq!(unsafe { sys::cuMemUnmap(at, 2 * g) }, INVALID);
    assert_eq!(unsafe { sys::cuMemAddressFree(at, 4 * g) }, INVALID, "still mapped");
    unmap(at, g);
    assert_eq!(unsafe { sys::cuMemAddressFree(at, g) }, INVALID, "not all of it");
    ok(unsafe { sys::cuMemAddressFree(at, 4 * g) });
    ok(unsafe { sys::cuMemRelease(handle) });
    assert_eq!(unsafe { sys::cuMemRelease(handle) }, INVALID);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn access_is_enforced() {
    let bench = Bench::new();
    let g = granularity();
    let (at, handle) = (reserve(2 * g), create(g));
    map(at, g, handle);
    let write = || unsafe { sys::cuMemsetD8_v2(at, 1, 16) };
    assert_eq!(write(), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(bench.kinds(), ["NoAccess"]);
    ok(access(at, g, 0, 1));
    assert_eq!(write(), CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    assert_eq!(bench.kinds(), ["WriteThroughReadOnly"]);
    assert_eq!(read(at, 1), [0xa5]);
    ok(access(at, g, 0, 3));
    ok(write());
    assert_eq!(unsafe { sys::cuMemsetD8_v2(at + g as u64, 1, 16) }, INVALID);
    assert_eq!(unsafe { sys::cuMemsetD8_v2(at + g as u64 - 8, 1, 16) }, INVALID);
    assert_eq!(bench.kinds(), ["OutsideMapping"; 2]);
    ok(unsafe { sys::cuCtxSynchronize() });
    unmap(at, g);
    assert_eq!(write(), INVALID);
    assert_eq!(bench.kinds(), ["UseAfterRetire"]);
    ok(unsafe { sys::cuMemAddressFree(at, 2 * g) });
    ok(unsafe { sys::cuMemRelease(handle) });
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn unmapping_before_the_reader_is_done_is_reported_with_every_seed() {
    for seed in 0..20 {
        let bench = Bench::new();
        bench.sim.set_seed(seed);
        let g = granularity();
        let (at, handle, target, reader) = (reserve(g), create(g), alloc(4096), stream());
        map(at, g, handle);
        ok(access(at, g, 0, 3));
        fill(at, 1, 4096, reader);
        copy(target, at, 4096, reader);
        unmap(at, g);
        let reports = bench.sim.take_reports();
        assert_eq!(reports[0].kind, "UseAfterRetire");
        assert!(
            reports[0].message.contains("cuMemUnmap #") && reports[0].message.contains("while cuMem"),
            "{reports:?}"
        );
        let late = unsafe { sys::cuStreamSynchronize(reader) };
        assert_eq!(late, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, "and the context is lost");
        assert_eq!(unsafe { sys::cuMemFree_v2(target) }, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
        ok(unsafe { sys::cuMemAddressFree(at, g) });
        ok(unsafe { sys::cuMemRelease(handle) });
        assert!(bench.end().iter().all(|k| k == "UseAfterRetire"));
    }
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn unmapping_after_the_reader_is_done_is_fine() {
    let bench = Bench::new();
    let g = granularity();
    let (at, handle, reader) = (reserve(g), create(g), stream());
    for _ in 0..3 {
        map(at, g, handle);
        ok(access(at, g, 0, 3));
        fill(at, 1, g, reader);
        synchronize(reader);
        unmap(at, g);
    }
    ok(unsafe { sys::cuMemAddressFree(at, g) });
    ok(unsafe { sys::cuMemRelease(handle) });
    destroy(&[reader], &[]);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn aliases_of_one_granule_race_too() {
    let bench = Bench::new();
    let g = granularity();
    let (at, handle, a, b) = (reserve(2 * g), create(g), stream(), stream());
    map(at, g, handle);
    map(at + g as u64, g, handle);
    ok(access(at, 2 * g, 0, 3));
    fill(at, 1, 64, a);
    fill(at + g as u64, 2, 64, b);
    assert_eq!(bench.kinds(), ["StreamRace"]);
    ok(unsafe { sys::cuCtxSynchronize() });
    unmap(at, 2 * g);
    ok(unsafe { sys::cuMemAddressFree(at, 2 * g) });
    ok(unsafe { sys::cuMemRelease(handle) });
    destroy(&[a, b], &[]);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_granule_on_the_host_is_mapped_like_any_other() {
    let bench = Bench::new();
    let g = granularity();
    let at = reserve(g);
    let mut handle = 0;
    ok(unsafe { sys::cuMemCreate(&mut handle, g, &properties(3, 0), 0) });
    map(at, g, handle);
    ok(access(at, g, 0, 3));
    ok(unsafe { sys::cuMemsetD8_v2(at, 8, 16) });
    assert_eq!(read(at, 16), [8; 16]);
    let host = [3, 0, 3];
    ok(unsafe { sys::cuMemSetAccess(at, g, host.as_ptr().cast(), 1) });
    assert_eq!(unsafe { (at as *const u8).read() }, 8, "the host was let in");
    unmap(at, g);
    ok(unsafe { sys::cuMemAddressFree(at, g) });
    ok(unsafe { sys::cuMemRelease(handle) });
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_change_of_virtual_memory_during_a_capture_is_reported() {
    let bench = Bench::new();
    let g = granularity();
    let (at, handle, stream) = (reserve(g), create(g), stream());
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
    ok(unsafe { sys::cuStreamBeginCapture_v2(stream, mode) });
    let code = unsafe { sys::cuMemMap(at, g, 0, handle, 0) };
    assert_eq!(code, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    let reports = bench.sim.take_reports();
    assert_eq!(reports[0].kind, "VmmDuringCapture");
    let mut graph = std::ptr::null_mut();
    let ended = unsafe { sys::cuStreamEndCapture(stream, &mut graph) };
    assert_eq!(ended, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    assert!(graph.is_null());
    map(at, g, handle);
    unmap(at, g);
    ok(unsafe { sys::cuMemAddressFree(at, g) });
    ok(unsafe { sys::cuMemRelease(handle) });
    destroy(&[stream], &[]);
    free(alloc(1));
    assert!(bench.end().is_empty());
}
