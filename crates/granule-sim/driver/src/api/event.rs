//! The event calls: create, record, query, wait, destroy.

use super::enter::{driver, put};
use crate::code::Code;

/// `CU_EVENT_DISABLE_TIMING`.
const NO_TIMING: u32 = 2;
/// `CU_EVENT_INTERPROCESS`.
const INTERPROCESS: u32 = 4;

driver! {
    cuEventCreate(event: *mut u64, flags: u32) = Initialized, |state, caller| {
        let alone = flags & INTERPROCESS != 0 && flags & NO_TIMING == 0;
        if event.is_null() || flags > 7 || alone {
            return Err(Code::INVALID_VALUE);
        }
        let handle = state.sim.new_event(caller, flags & NO_TIMING == 0)?;
        // SAFETY: the caller's pointer.
        unsafe { put(event, handle) }
    };

    cuEventDestroy_v2(event: u64) = Release, |state, caller| state.sim.destroy_event(caller, event);

    cuEventDestroy(event: u64) = Release, |state, caller| state.sim.destroy_event(caller, event);

    cuEventRecord(event: u64, stream: u64) = Initialized, |state, caller| {
        let stream = state.sim.stream_of(caller, stream)?;
        state.sim.record_event(caller, event, stream)
    };

    cuEventRecordWithFlags(event: u64, stream: u64, flags: u32) = Initialized, |state, caller| {
        // CU_EVENT_RECORD_EXTERNAL makes a node of a graph; nothing here needs it.
        if flags != 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        let stream = state.sim.stream_of(caller, stream)?;
        state.sim.record_event(caller, event, stream)
    };

    cuEventQuery(event: u64) = Initialized, |state, caller| state.sim.query_event(caller, event);

    cuEventSynchronize(event: u64) = Initialized, |state, caller| state.sim.synchronize_event(caller, event);

    cuEventElapsedTime(milliseconds: *mut f32, from: u64, to: u64) = Initialized, |state, caller| {
        let time = state.sim.elapsed(caller, from, to)?;
        // SAFETY: the caller's pointer.
        unsafe { put(milliseconds, time) }
    };

    cuEventElapsedTime_v2(milliseconds: *mut f32, from: u64, to: u64) = Initialized, |state, caller| {
        let time = state.sim.elapsed(caller, from, to)?;
        // SAFETY: the caller's pointer.
        unsafe { put(milliseconds, time) }
    };
}
