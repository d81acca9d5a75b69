//! Streams, capture of them, and host functions in stream order.

use super::enter::{driver, put};
use crate::code::Code;
use crate::machine::HostFunction;
use crate::model::Mode;
use std::ffi::c_void;

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: u32 = 1;

driver! {
    cuStreamCreate(stream: *mut u64, flags: u32) = Initialized, |state, caller| {
        if stream.is_null() || flags > NON_BLOCKING {
            return Err(Code::INVALID_VALUE);
        }
        let handle = state.sim.create_stream(caller, flags == NON_BLOCKING, 0)?;
        // SAFETY: the caller's pointer.
        unsafe { put(stream, handle) }
    };

    cuStreamCreateWithPriority(stream: *mut u64, flags: u32, priority: i32) = Initialized, |state, caller| {
        if stream.is_null() || flags > NON_BLOCKING {
            return Err(Code::INVALID_VALUE);
        }
        let handle = state.sim.create_stream(caller, flags == NON_BLOCKING, priority)?;
        // SAFETY: the caller's pointer.
        unsafe { put(stream, handle) }
    };

    cuStreamDestroy_v2(stream: u64) = Release, |state, caller| {
        let stream = state.sim.stream_of(caller, stream)?;
        state.sim.destroy_stream(stream)
    };

    cuStreamSynchronize(stream: u64) = Initialized, |state, caller| {
        let stream = state.sim.stream_of(caller, stream)?;
        state.sim.synchronize_stream(stream)
    };

    cuStreamQuery(stream: u64) = Initialized, |state, caller| {
        let stream = state.sim.stream_of(caller, stream)?;
        state.sim.query_stream(stream)
    };

    cuStreamWaitEvent(stream: u64, event: u64, flags: u32) = Initialized, |state, caller| {
        // CU_EVENT_WAIT_EXTERNAL makes a node of a graph; nothing here needs it.
        if flags != 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        let stream = state.sim.stream_of(caller, stream)?;
        state.sim.wait_event(caller, stream, event)
    };

    cuStreamGetCtx(stream: u64, context: *mut u64) = Initialized, |state, caller| {
        let stream = state.sim.stream_of(caller, stream)?;
        // SAFETY: the caller's pointer.
        unsafe { put(context, state.sim.stream(stream)?.context) }
    };

    cuStreamGetFlags(stream: u64, flags: *mut u32) = Initialized, |state, caller| {
        let stream = state.sim.stream_of(caller, stream)?;
        // SAFETY: the caller's pointer.
        unsafe { put(flags, state.sim.stream(stream)?.free.into()) }
    };

    cuStreamGetPriority(stream: u64, priority: *mut i32) = Initialized, |state, caller| {
        let stream = state.sim.stream_of(caller, stream)?;
        // SAFETY: the caller's pointer.
        unsafe { put(priority, state.sim.stream(stream)?.priority) }
    };

    cuStreamGetId(stream: u64, id: *mut u64) = Initialized, |state, caller| {
        let stream = state.sim.stream_of(caller, stream)?;
        // SAFETY: the caller's pointer.
        unsafe { put(id, stream) }
    };

    cuLaunchHostFunc(stream: u64, function: Option<unsafe extern "C" fn(*mut c_void)>, data: *mut c_void) = Initialized,
    |state, caller| {
        let stream = state.sim.stream_of(caller, stream)?;
        let function = function.ok_or(Code::INVALID_VALUE)?;
        // SAFETY: the caller's promise to `cuLaunchHostFunc`.
        let function = unsafe { HostFunction::new(function, data as usize) };
        state.sim.launch_host_function(caller, stream, function)
    };

    cuStreamBeginCapture_v2(stream: u64, mode: i32) = Initialized, |state, caller| {
        let stream = state.sim.stream_of(caller, stream)?;
        state.sim.begin_capture(caller, stream, Mode::from_number(mode)?)
    };

    cuStreamIsCapturing(stream: u64, status: *mut i32) = Initialized, |state, caller| {
        let stream = state.sim.stream_of(caller, stream)?;
        // SAFETY: the caller's pointer.
        unsafe { put(status, state.sim.capture_status(stream)?.0) }
    };
}
