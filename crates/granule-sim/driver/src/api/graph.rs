//! Graphs: the end of a capture, instantiation, launches.

use super::enter::{driver, put};
use crate::code::Code;
use std::ffi::c_void;

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[repr(C)]
pub struct InstantiateParameters {
    flags: u64,
    upload_stream: u64,
    error_node: u64,
    result: i32,
}

driver! {
    cuStreamEndCapture(stream: u64, graph: *mut u64) = Initialized, |state, caller| {
        if graph.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let stream = state.sim.stream_of(caller, stream)?;
        let ended = state.sim.finish_capture(caller, stream);
        // "If the capture was invalidated, a NULL graph is returned."
        // SAFETY: the caller's pointer.
        unsafe { put(graph, *ended.as_ref().unwrap_or(&0)) }?;
        ended.map(|_| ())
    };

    cuGraphInstantiateWithFlags(executable: *mut u64, graph: u64, _flags: u64) = Initialized, |state, caller| {
        if executable.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let made = state.sim.instantiate(caller, graph)?;
        // SAFETY: the caller's pointer.
        unsafe { put(executable, made) }
    };

    cuGraphInstantiateWithParams(executable: *mut u64, graph: u64, parameters: *mut InstantiateParameters) = Initialized,
    |state, caller| {
        if executable.is_null() || parameters.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        let made = state.sim.instantiate(caller, graph)?;
        // SAFETY: the caller's pointers.
        unsafe {
            (*parameters).error_node = 0;
            (*parameters).result = 0;
            put(executable, made)
        }
    };

    cuGraphLaunch(executable: u64, stream: u64) = Initialized, |state, caller| {
        let stream = state.sim.stream_of(caller, stream)?;
        state.sim.launch_graph(caller, executable, stream)
    };

    cuGraphUpload(executable: u64, stream: u64) = Initialized, |state, caller| {
        state.sim.stream_of(caller, stream)?;
        state.sim.executable_exists(caller, executable)
    };

    cuGraphDestroy(graph: u64) = Release, |state, caller| state.sim.destroy_graph(caller, graph);

    cuGraphExecDestroy(executable: u64) = Release, |state, caller| state.sim.destroy_executable(caller, executable);

    cuGraphGetNodes(graph: u64, nodes: *mut u64, count: *mut usize) = Initialized, |state, caller| {
        let found = state.sim.graph_nodes(caller, graph)?;
        // SAFETY: the caller's pointers: `count` says how many nodes there is room for.
        unsafe {
            if nodes.is_null() {
                return put(count, found.len());
            }
            let room = super::enter::take(count)?;
            for n in 0..room {
                nodes.add(n).write(found.get(n).copied().unwrap_or(0));
            }
            put(count, room.min(found.len()))
        }
    };

    cuGraphNodeGetType(node: u64, kind: *mut i32) = Initialized, |state, caller| {
        let found = state.sim.node_type(caller, node)?;
        // SAFETY: the caller's pointer.
        unsafe { put(kind, found) }
    };

    cuStreamGetCaptureInfo_v2(
        stream: u64, status: *mut i32, id: *mut u64, graph: *mut u64, nodes: *mut *const c_void, count: *mut usize
    ) = Initialized, |state, caller| {
        // The graph that is being made has no handle here: nobody may add to it.
        if !graph.is_null() || !nodes.is_null() || !count.is_null() {
            return Err(Code::NOT_SUPPORTED);
        }
        let stream = state.sim.stream_of(caller, stream)?;
        let (found, number) = state.sim.capture_status(stream)?;
        // SAFETY: the caller's pointers; the second may be null.
        unsafe { put(status, found).and_then(|()| if id.is_null() { Ok(()) } else { put(id, number) }) }
    };

    cuStreamGetCaptureInfo_v3(
        stream: u64, status: *mut i32, id: *mut u64, graph: *mut u64, nodes: *mut *const c_void,
        edges: *mut *const c_void, count: *mut usize
    ) = Initialized, |state, caller| {
        if !graph.is_null() || !nodes.is_null() || !edges.is_null() || !count.is_null() {
            return Err(Code::NOT_SUPPORTED);
        }
        let stream = state.sim.stream_of(caller, stream)?;
        let (found, number) = state.sim.capture_status(stream)?;
        // SAFETY: the caller's pointers; the second may be null.
        unsafe { put(status, found).and_then(|()| if id.is_null() { Ok(()) } else { put(id, number) }) }
    };
}
