//! Stream-ordered allocation: memory that begins and ends at points of streams.

use super::support::{Bench, LEN, destroy, event, fill, ok, read, record, stream, synchronize, wait};
use cudarc::driver::sys::{self, CUdeviceptr, CUresult, CUstream};
use std::ptr::null_mut;

fn alloc_async(len: usize, stream: CUstream) -> CUdeviceptr {
    let mut at = 0;
    ok(unsafe { sys::cuMemAllocAsync(&mut at, len, stream) });
    at
}

fn free_async(at: CUdeviceptr, stream: CUstream) {
    ok(unsafe { sys::cuMemFreeAsync(at, stream) });
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn memory_belongs_to_its_stream_until_somebody_waits() {
    let bench = Bench::new();
    let (owner, guest, there) = (stream(), stream(), event());
    let a = alloc_async(LEN, owner);
    fill(a, 1, LEN, guest);
    assert_eq!(bench.kinds(), ["StreamRace"]);
    ok(unsafe { sys::cuCtxSynchronize() });
    let b = alloc_async(LEN, owner);
    record(there, owner);
    wait(guest, there);
    fill(b, 2, LEN, guest);
    record(there, guest);
    wait(owner, there);
    free_async(b, owner);
    free_async(a, owner);
    synchronize(owner);
    destroy(&[owner, guest], &[there]);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn memory_that_was_freed_in_stream_order_is_gone_for_later_calls() {
    let bench = Bench::new();
    let stream = stream();
    let a = alloc_async(LEN, stream);
    fill(a, 1, LEN, stream);
    free_async(a, stream);
    let code = unsafe { sys::cuMemsetD8Async(a, 2, LEN, stream) };
    assert_eq!(code, CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(bench.kinds(), ["UseAfterFree"]);
    assert_eq!(unsafe { sys::cuMemFreeAsync(a, stream) }, CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(bench.kinds(), ["UseAfterFree"]);
    synchronize(stream);
    assert_eq!(unsafe { sys::cuMemFree_v2(a) }, CUresult::CUDA_ERROR_INVALID_VALUE);
    assert_eq!(bench.kinds(), ["UseAfterFree"]);
    destroy(&[stream], &[]);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_full_device_waits_for_memory_whose_end_is_queued() {
    let bench = Bench::new();
    let stream = stream();
    let (mut free_bytes, mut total) = (0, 0);
    ok(unsafe { sys::cuMemGetInfo_v2(&mut free_bytes, &mut total) });
    let a = alloc_async(total, stream);
    let mut at = 0;
    let full = unsafe { sys::cuMemAllocAsync(&mut at, LEN, stream) };
    assert_eq!(full, CUresult::CUDA_ERROR_OUT_OF_MEMORY);
    free_async(a, stream);
    let b = alloc_async(total, stream);
    ok(unsafe { sys::cuMemFree_v2(b) });
    destroy(&[stream], &[]);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_pool_of_ones_own_counts_what_it_gave() {
    let bench = Bench::new();
    let mut properties: sys::CUmemPoolProps = unsafe { std::mem::zeroed() };
    properties.allocType = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
    unsafe { (&raw mut properties.location).cast::<[i32; 2]>().write([1, 0]) };
    let (mut pool, stream) = (null_mut(), stream());
    ok(unsafe { sys::cuMemPoolCreate(&mut pool, &properties) });
    let mut a = 0;
    ok(unsafe { sys::cuMemAllocFromPoolAsync(&mut a, LEN, pool, stream) });
    let used = || {
        let mut bytes = 0_u64;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT;
        ok(unsafe { sys::cuMemPoolGetAttribute(pool, attribute, (&raw mut bytes).cast()) });
        bytes
    };
    assert_eq!(used(), LEN as u64);
    ok(unsafe { sys::cuMemsetD8Async(a, 3, LEN, stream) });
    synchronize(stream);
    assert_eq!(read(a, 2), [3; 2]);
    free_async(a, stream);
    synchronize(stream);
    assert_eq!(used(), 0);
    assert!(bench.sim.live().iter().any(|l| l.what == "pool" && l.name == "cuMemPoolCreate"));
    ok(unsafe { sys::cuMemPoolTrimTo(pool, 0) });
    ok(unsafe { sys::cuMemPoolDestroy(pool) });
    destroy(&[stream], &[]);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn the_plain_free_does_not_wait_for_a_pools_memory() {
    for waits in [true, false] {
        let bench = Bench::new();
        let stream = stream();
        let a = alloc_async(LEN, stream);
        fill(a, 1, LEN, stream);
        if waits {
            synchronize(stream);
        }
        ok(unsafe { sys::cuMemFree_v2(a) });
        let reports = bench.sim.take_reports();
        assert_eq!(reports.is_empty(), waits, "{reports:?}");
        if let Some(report) = reports.first() {
            assert_eq!((&report.kind[..], reports.len()), ("UseAfterFree", 1), "{reports:?}");
            let calls = ["cuMemFree_v2 #", "cuMemsetD8Async #", "cuMemAllocAsync #"];
            assert!(calls.iter().all(|call| report.message.contains(call)), "{reports:?}");
        }
        let code = unsafe { sys::cuStreamSynchronize(stream) };
        assert_eq!(code == CUresult::CUDA_SUCCESS, waits, "the fill finds nothing");
        assert_eq!(bench.kinds().is_empty(), waits);
        if waits {
            destroy(&[stream], &[]);
        }
        assert!(bench.end().is_empty());
    }
}
