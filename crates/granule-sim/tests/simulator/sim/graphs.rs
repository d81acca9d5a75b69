//! Captures and graphs: what is recorded, what forbids it, and launches after the memory was mapped anew.

use super::support::{
    Bench, LEN, alloc, copy, destroy, event, fill, free, ok, read, record, stream, synchronize, wait,
};
use cudarc::driver::sys::{self, CUgraph, CUgraphExec, CUresult, CUstream};
use std::ptr::null_mut;

fn begin(stream: CUstream) {
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_GLOBAL;
    ok(unsafe { sys::cuStreamBeginCapture_v2(stream, mode) });
}

fn end(stream: CUstream) -> (CUresult, CUgraph) {
    let mut graph = null_mut();
    let code = unsafe { sys::cuStreamEndCapture(stream, &mut graph) };
    (code, graph)
}

fn instantiate(graph: CUgraph) -> CUgraphExec {
    let mut executable = null_mut();
    ok(unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) });
    ok(unsafe { sys::cuGraphDestroy(graph) });
    executable
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_fork_and_a_join_run_in_order_at_every_launch() {
    for seed in 0..20 {
        let bench = Bench::new();
        bench.sim.set_seed(seed);
        let (main, side, forked, joined) = (stream(), stream(), event(), event());
        let [a, b, c] = [alloc(LEN), alloc(LEN), alloc(2 * LEN)];
        begin(main);
        fill(a, 1, LEN, main);
        record(forked, main);
        wait(side, forked);
        copy(b, a, LEN, side);
        copy(c, a, LEN, main);
        record(joined, side);
        wait(main, joined);
        copy(c + LEN as u64, b, LEN, main);
        let (code, graph) = end(main);
        ok(code);
        let mut count = 0;
        ok(unsafe { sys::cuGraphGetNodes(graph, null_mut(), &mut count) });
        assert_eq!(count, 4);
        assert_eq!(read(c, 1), [0xa5], "nothing ran");
        let executable = instantiate(graph);
        for _ in 0..2 {
            fill(c, 0, 2 * LEN, main);
            ok(unsafe { sys::cuGraphLaunch(executable, main) });
            synchronize(main);
            assert_eq!(read(c, 2 * LEN), vec![1; 2 * LEN]);
        }
        ok(unsafe { sys::cuGraphExecDestroy(executable) });
        [a, b, c].into_iter().for_each(free);
        destroy(&[main, side], &[forked, joined]);
        assert!(bench.end().is_empty());
    }
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_branch_that_nobody_joins_ends_in_an_error() {
    let bench = Bench::new();
    let (main, side, forked, a) = (stream(), stream(), event(), alloc(LEN));
    begin(main);
    fill(a, 1, LEN, main);
    record(forked, main);
    wait(side, forked);
    fill(a, 2, LEN, side);
    assert_eq!(end(main).0, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNJOINED);
    free(a);
    destroy(&[main, side], &[forked]);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn what_a_capture_forbids_breaks_it() {
    let bench = Bench::new();
    let (main, outside, a) = (stream(), event(), alloc(LEN));
    let other = stream();
    record(outside, other);
    let mut pointer = 0;
    let forbidden: [(&dyn Fn() -> CUresult, CUresult); 7] = [
        (&|| unsafe { sys::cuStreamSynchronize(main) }, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),
        (&|| unsafe { sys::cuStreamQuery(main) }, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),
        (&|| unsafe { sys::cuCtxSynchronize() }, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),
        (
            &|| unsafe { sys::cuStreamWaitEvent(main, outside, 0) },
            CUresult::CUDA_ERROR_STREAM_CAPTURE_ISOLATION,
        ),
        (
            &|| unsafe { sys::cuMemAlloc_v2((&raw const pointer).cast_mut(), LEN) },
            CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
        ),
        (&|| unsafe { sys::cuEventQuery(outside) }, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),
        (&|| unsafe { sys::cuEventSynchronize(outside) }, CUresult::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED),
    ];
    for (number, (call, expected)) in forbidden.iter().enumerate() {
        begin(main);
        fill(a, 1, LEN, main);
        assert_eq!(call(), *expected, "number {number}");
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        ok(unsafe { sys::cuStreamIsCapturing(main, &mut status) });
        assert_eq!(status, sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_INVALIDATED);
        assert_eq!(end(main).0, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, "number {number}");
    }
    pointer += 1;
    assert_eq!(pointer, 1, "nothing was allocated");
    free(a);
    destroy(&[main, other], &[outside]);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn a_relaxed_thread_may_ask_events_and_free_beside_a_global_capture() {
    let bench = Bench::new();
    let (main, other, outside, a) = (stream(), stream(), event(), alloc(LEN));
    record(outside, other);
    begin(main);
    let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
    ok(unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) });
    ok(unsafe { sys::cuEventSynchronize(outside) });
    ok(unsafe { sys::cuEventQuery(outside) });
    free(a);
    ok(unsafe { sys::cuThreadExchangeStreamCaptureMode(&mut mode) });
    let (code, graph) = end(main);
    ok(code);
    ok(unsafe { sys::cuGraphDestroy(graph) });
    destroy(&[main, other], &[outside]);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn the_legacy_stream_is_closed_while_a_blocking_stream_captures() {
    let bench = Bench::new();
    let mut blocking = null_mut();
    ok(unsafe { sys::cuStreamCreate(&mut blocking, 0) });
    let a = alloc(LEN);
    begin(blocking);
    let code = unsafe { sys::cuMemsetD8Async(a, 1, LEN, null_mut()) };
    assert_eq!(code, CUresult::CUDA_ERROR_STREAM_CAPTURE_IMPLICIT);
    assert_eq!(end(blocking).0, CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
    free(a);
    destroy(&[blocking], &[]);
    assert!(bench.end().is_empty());
}

#[test]
#[ignore = "needs the simulated driver: cargo xtask test"]
fn two_launches_of_one_graph_on_two_streams_are_in_order_and_different_graphs_are_not() {
    let bench = Bench::new();
    let (x, y, a) = (stream(), stream(), alloc(LEN));
    let graph = |value| {
        begin(x);
        fill(a, value, LEN, x);
        instantiate(end(x).1)
    };
    let (first, second) = (graph(1), graph(2));
    ok(unsafe { sys::cuGraphLaunch(first, x) });
    ok(unsafe { sys::cuGraphLaunch(first, y) });
    assert!(bench.kinds().is_empty());
    ok(unsafe { sys::cuGraphLaunch(second, x) });
    assert_eq!(bench.kinds(), ["StreamRace"]);
    ok(unsafe { sys::cuCtxSynchronize() });
    ok(unsafe { sys::cuGraphExecDestroy(first) });
    ok(unsafe { sys::cuGraphExecDestroy(second) });
    free(a);
    destroy(&[x, y], &[]);
    assert!(bench.end().is_empty());
}
