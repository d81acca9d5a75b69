//! Modules and launches of the emulated kernels of `planted.cu`, whose PTX stands here in its shortest form.

use super::support::{
    Bench, LEN, Range, access, alloc, arg, copy, destroy, event, fill, free, granularity, ok, properties,
    read, record, stream, synchronize, wait,
};
use cudarc::driver::sys::{self, CUfunction, CUmodule, CUresult, CUstream};
use std::ffi::{CString, c_void};
use std::ptr::null_mut;

const PTX: &str = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry planted_write(.param .u64 a, .param .u32 n) { ret; }
.visible .entry planted_increment(.param .u64 a, .param .u64 b, .param .u32 n) { ret; }
";

fn load(text: &str) -> Result<CUmodule, CUresult> {
    let text = CString::new(text).unwrap();
    let mut module = null_mut();
    match unsafe { sys::cuModuleLoadData(&mut module, text.as_ptr().cast()) } {
        CUresult::CUDA_SUCCESS => Ok(module),
        code => Err(code),
    }
}

fn function(module: CUmodule, name: &str) -> Result<CUfunction, CUresult> {
    let name = CString::new(name).unwrap();
    let mut function = null_mut();
    match unsafe { sys::cuModuleGetFunction(&mut function, module, name.as_ptr()) } {
        CUresult::CUDA_SUCCESS => Ok(function),
        code => Err(code),
    }
}

fn launch(function: CUfunction, threads: u32, stream: CUstream, args: &mut [*mut c_void]) -> CUresult {
    unsafe { sys::cuLaunchKernel(function, 1, 1, 1, threads, 1, 1, 0, stream, args.as_mut_ptr(), null_mut()) }
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_kernel_runs_in_stream_order_with_the_parameters_of_the_call() {
    for seed in 0..20 {
        let bench = Bench::new();
        bench.sim.set_seed(seed);
        let module = load(PTX).unwrap();
        let (increment, stream) = (function(module, "planted_increment").unwrap(), stream());
        let (mut a, mut b, mut n) = (alloc(LEN), alloc(LEN), 64_u32);
        fill(a, 0, LEN, stream);
        ok(launch(increment, 64, stream, &mut [arg(&mut a), arg(&mut b), arg(&mut n)]));
        n = 1_000_000;
        ok(unsafe { sys::cuMemcpyDtoDAsync_v2(a, b, 4 * 64, stream) });
        synchronize(stream);
        assert_eq!(n, 1_000_000);
        assert_eq!(read(a, 256), 1_u32.to_le_bytes().repeat(64));
        free(a);
        free(b);
        ok(unsafe { sys::cuModuleUnload(module) });
        destroy(&[stream], &[]);
        assert!(bench.end().is_empty());
    }
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_module_that_the_driver_would_not_take_is_refused() {
    let bench = Bench::new();
    let ptx =
        |version: &str, target: &str| format!(".version {version}\n.target {target}\n.address_size 64\n");
    assert_eq!(load(&ptx("99.0", "sm_80")), Err(CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION));
    assert_eq!(load(&ptx("7.0", "sm_199")), Err(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU));
    assert_eq!(load(&ptx("7.0", "sm_50a")), Err(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU));
    assert_eq!(load("int main() {}"), Err(CUresult::CUDA_ERROR_INVALID_PTX));
    assert_eq!(load("\x7fELF"), Err(CUresult::CUDA_ERROR_INVALID_IMAGE));
    let module = load(PTX).unwrap();
    assert_eq!(function(module, "nowhere"), Err(CUresult::CUDA_ERROR_NOT_FOUND));
    assert!(bench.kinds().is_empty());
    ok(unsafe { sys::cuModuleUnload(module) });
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn parameters_that_ptx_and_kernel_do_not_agree_on_are_reported() {
    let bench = Bench::new();
    let module = load(&PTX.replace(".param .u32 n", ".param .u64 n")).unwrap();
    assert_eq!(function(module, "planted_write"), Err(CUresult::CUDA_ERROR_INVALID_IMAGE));
    let reports = bench.sim.take_reports();
    assert_eq!(reports[0].kind, "BadArguments");
    assert!(reports[0].message.contains("[8, 8]") && reports[0].message.contains("[8, 4]"), "{reports:?}");
    ok(unsafe { sys::cuModuleUnload(module) });
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn an_impossible_shape_is_refused() {
    let bench = Bench::new();
    let module = load(PTX).unwrap();
    let write = function(module, "planted_write").unwrap();
    let (mut a, mut n) = (alloc(LEN), 1_u32);
    let mut args = [arg(&mut a), arg(&mut n)];
    for threads in [0, 1025] {
        assert_eq!(launch(write, threads, null_mut(), &mut args), CUresult::CUDA_ERROR_INVALID_VALUE);
    }
    let shared = unsafe {
        sys::cuLaunchKernel(write, 1, 1, 1, 1, 1, 1, 49_153, null_mut(), args.as_mut_ptr(), null_mut())
    };
    assert_eq!(shared, CUresult::CUDA_ERROR_INVALID_VALUE);
    let most = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    ok(unsafe { sys::cuFuncSetAttribute(write, most, 60_000) });
    ok(unsafe {
        sys::cuLaunchKernel(write, 1, 1, 1, 1, 1, 1, 49_153, null_mut(), args.as_mut_ptr(), null_mut())
    });
    ok(unsafe { sys::cuCtxSynchronize() });
    free(a);
    ok(unsafe { sys::cuModuleUnload(module) });
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_kernel_that_writes_behind_its_buffer_is_reported() {
    let bench = Bench::new();
    let module = load(PTX).unwrap();
    let write = function(module, "planted_write").unwrap();
    let (mut a, mut n) = (alloc(512), 129_u32);
    ok(launch(write, 256, null_mut(), &mut [arg(&mut a), arg(&mut n)]));
    // The checked kernels stop at the access; with the others the red zone tells afterwards.
    let _ = unsafe { sys::cuCtxSynchronize() };
    let reports = bench.sim.take_reports();
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert_eq!(reports[0].kind, "OutOfBounds");
    assert!(reports[0].message.contains("cuLaunchKernel #"), "{reports:?}");
    assert!(reports[0].message.contains("cuMemAlloc_v2 #"), "{reports:?}");
    let _ = bench.end();
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_kernel_in_freed_memory_is_reported_and_the_context_is_lost() {
    let bench = Bench::new();
    let module = load(PTX).unwrap();
    let write = function(module, "planted_write").unwrap();
    let (mut a, mut n) = (alloc(LEN), 4_u32);
    free(a);
    ok(launch(write, 4, null_mut(), &mut [arg(&mut a), arg(&mut n)]));
    assert_eq!(unsafe { sys::cuCtxSynchronize() }, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let mut b = 0;
    assert_eq!(unsafe { sys::cuMemAlloc_v2(&mut b, 1) }, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, "for good");
    let reports = bench.sim.take_reports();
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert_eq!(reports[0].kind, "UseAfterFree");
    assert!(bench.end().is_empty(), "what a lost context held is no leak");
    ok(unsafe { sys::cuDevicePrimaryCtxRetain(&mut null_mut(), 0) });
    ok(unsafe { sys::cuDevicePrimaryCtxRelease_v2(0) });
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_graph_launches_kernels_again_and_again() {
    let bench = Bench::new();
    let module = load(PTX).unwrap();
    let (increment, stream) = (function(module, "planted_increment").unwrap(), stream());
    let (mut a, mut b, mut n) = (alloc(256), alloc(256), 64_u32);
    fill(a, 0, 256, stream);
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    ok(unsafe { sys::cuStreamBeginCapture_v2(stream, mode) });
    ok(launch(increment, 64, stream, &mut [arg(&mut a), arg(&mut b), arg(&mut n)]));
    copy(a, b, 256, stream);
    let (mut graph, mut executable) = (null_mut(), null_mut());
    ok(unsafe { sys::cuStreamEndCapture(stream, &mut graph) });
    ok(unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) });
    for _ in 0..5 {
        ok(unsafe { sys::cuGraphLaunch(executable, stream) });
    }
    synchronize(stream);
    assert_eq!(read(a, 256), 5_u32.to_le_bytes().repeat(64));
    ok(unsafe { sys::cuGraphExecDestroy(executable) });
    ok(unsafe { sys::cuGraphDestroy(graph) });
    free(a);
    free(b);
    ok(unsafe { sys::cuModuleUnload(module) });
    destroy(&[stream], &[]);
    assert!(bench.end().is_empty());
}

/// Whether the kernels are of the build that shows every access.
fn checked() -> bool {
    std::env::var("GRANULE_SIM_KERNELS").unwrap().contains("checked")
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn kernels_that_nothing_orders_are_reported_where_their_accesses_are_seen() {
    for waits in [false, true] {
        let bench = Bench::new();
        let module = load(PTX).unwrap();
        let (increment, x, y, done) =
            (function(module, "planted_increment").unwrap(), stream(), stream(), event());
        let (mut a, mut b, mut c, mut n) = (alloc(256), alloc(256), alloc(256), 64_u32);
        fill(a, 0, 256, x);
        synchronize(x);
        ok(launch(increment, 64, x, &mut [arg(&mut a), arg(&mut b), arg(&mut n)]));
        record(done, x);
        if waits {
            wait(y, done);
        }
        ok(launch(increment, 64, y, &mut [arg(&mut b), arg(&mut c), arg(&mut n)]));
        let code = unsafe { sys::cuCtxSynchronize() };
        assert!(code == CUresult::CUDA_SUCCESS || !waits, "{code:?}");
        let kinds = bench.kinds();
        if waits || !checked() {
            assert!(kinds.is_empty(), "{kinds:?}");
        } else {
            // Whichever ran first: a read of what nobody wrote yet, or a race.
            assert!(kinds.iter().any(|k| k == "StreamRace" || k == "UninitializedRead"), "{kinds:?}");
        }
        let _ = bench.end();
    }
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn memory_unmapped_under_a_queued_kernel_is_reported_with_both_calls() {
    let bench = Bench::new();
    let module = load(PTX).unwrap();
    let write = function(module, "planted_write").unwrap();
    let range = Range::new();
    let (mut at, mut n, stream) = (range.at, 64_u32, stream());
    ok(launch(write, 64, stream, &mut [arg(&mut at), arg(&mut n)]));
    ok(unsafe { sys::cuMemUnmap(range.at, range.len) });
    assert_eq!(unsafe { sys::cuStreamSynchronize(stream) }, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS);
    let reports = bench.sim.take_reports();
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert_eq!(reports[0].kind, "UseAfterRetire");
    assert!(
        reports[0].message.contains("cuLaunchKernel #") && reports[0].message.contains("cuMemUnmap #"),
        "{reports:?}"
    );
    ok(unsafe { sys::cuMemRelease(range.handle) });
    ok(unsafe { sys::cuMemAddressFree(range.at, range.len) });
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn what_is_mapped_anew_under_a_queued_kernel_is_not_what_it_was_launched_on() {
    for (as_graph, seed) in (0..6).flat_map(|seed| [(false, seed), (true, seed)]) {
        let bench = Bench::new();
        bench.sim.set_seed(seed);
        let module = load(PTX).unwrap();
        let write = function(module, "planted_write").unwrap();
        let (range, again) = (Range::new(), Range::new());
        let (mut at, mut n, stream) = (range.at, 64_u32, stream());
        let mut args = [arg(&mut at), arg(&mut n)];
        let (mut graph, mut executable) = (null_mut(), null_mut());
        if as_graph {
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            ok(unsafe { sys::cuStreamBeginCapture_v2(stream, mode) });
            ok(launch(write, 64, stream, &mut args));
            ok(unsafe { sys::cuStreamEndCapture(stream, &mut graph) });
            ok(unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) });
        }
        let launch = |args: &mut [*mut c_void]| match as_graph {
            true => unsafe { sys::cuGraphLaunch(executable, stream) },
            false => launch(write, 64, stream, args),
        };
        let remap = || {
            ok(unsafe { sys::cuMemUnmap(range.at, range.len) });
            ok(unsafe { sys::cuMemMap(range.at, range.len, 0, again.handle, 0) });
            ok(access(range.at, range.len, 0, 3));
        };
        // What was mapped anew before the launch is what the launch means; a graph does not care what was there before.
        ok(launch(&mut args));
        synchronize(stream);
        remap();
        ok(launch(&mut args));
        synchronize(stream);
        assert_eq!(bench.kinds(), [""; 0]);
        ok(launch(&mut args));
        remap();
        let code = unsafe { sys::cuStreamSynchronize(stream) };
        assert_eq!(code, CUresult::CUDA_ERROR_ILLEGAL_ADDRESS, "seed {seed}");
        let reports = bench.sim.take_reports();
        assert_eq!(reports.len(), 1, "{reports:?}");
        assert_eq!(reports[0].kind, "UseAfterRetire");
        let call = if as_graph { "cuGraphLaunch #" } else { "cuLaunchKernel #" };
        for word in [call, "cuMemUnmap #", "came after"] {
            assert!(reports[0].message.contains(word), "{reports:?}");
        }
        if as_graph {
            ok(unsafe { sys::cuGraphExecDestroy(executable) });
            ok(unsafe { sys::cuGraphDestroy(graph) });
        }
        for range in [range, again] {
            ok(unsafe { sys::cuMemUnmap(range.at, range.len) });
            ok(unsafe { sys::cuMemRelease(range.handle) });
            ok(unsafe { sys::cuMemAddressFree(range.at, range.len) });
        }
        assert!(bench.end().is_empty());
    }
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_race_with_work_that_later_work_outdoes_is_reported() {
    for seed in 0..6 {
        let bench = Bench::new();
        bench.sim.set_seed(seed);
        let module = load(PTX).unwrap();
        let (write, x, y, done) = (function(module, "planted_write").unwrap(), stream(), stream(), event());
        let (mut a, mut n) = (alloc(LEN), 64_u32);
        // Nothing orders the kernel with the first fill; the second comes after both.
        fill(a, 1, LEN, x);
        ok(launch(write, 64, y, &mut [arg(&mut a), arg(&mut n)]));
        record(done, y);
        wait(x, done);
        fill(a, 2, LEN, x);
        ok(unsafe { sys::cuCtxSynchronize() });
        let kinds = bench.kinds();
        assert_eq!(kinds, if checked() { vec!["StreamRace"] } else { vec![] }, "seed {seed}");
        free(a);
        ok(unsafe { sys::cuModuleUnload(module) });
        destroy(&[x, y], &[done]);
        assert!(bench.end().is_empty());
    }
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_kernel_reads_what_the_host_wrote_through_its_own_access() {
    let bench = Bench::new();
    let module = load(PTX).unwrap();
    let increment = function(module, "planted_increment").unwrap();
    let len = granularity();
    let (mut at, mut handle) = (0, 0);
    ok(unsafe { sys::cuMemCreate(&mut handle, len, &properties(3, 0), 0) });
    ok(unsafe { sys::cuMemAddressReserve(&mut at, len, 0, 0, 0) });
    ok(unsafe { sys::cuMemMap(at, len, 0, handle, 0) });
    let both = [[1, 0, 3], [3, 0, 3]];
    ok(unsafe { sys::cuMemSetAccess(at, len, both.as_ptr().cast(), 2) });
    unsafe { (at as *mut u32).write_bytes(0, 64) };
    let (mut a, mut b, mut n, stream) = (alloc(256), alloc(256), 64_u32, stream());
    ok(launch(increment, 64, stream, &mut [arg(&mut at), arg(&mut b), arg(&mut n)]));
    // And where a copy took those bytes.
    copy(a, at, 256, stream);
    ok(launch(increment, 64, stream, &mut [arg(&mut a), arg(&mut at), arg(&mut n)]));
    synchronize(stream);
    assert_eq!(read(b, 256), 1_u32.to_le_bytes().repeat(64));
    assert_eq!(unsafe { (at as *const u32).add(63).read() }, 1);
    ok(unsafe { sys::cuMemUnmap(at, len) });
    ok(unsafe { sys::cuMemRelease(handle) });
    ok(unsafe { sys::cuMemAddressFree(at, len) });
    free(a);
    free(b);
    ok(unsafe { sys::cuModuleUnload(module) });
    destroy(&[stream], &[]);
    assert!(bench.end().is_empty());
}
