//! NCCL's functions: what a program finds that opens this library under NCCL's name. Only what Granule calls.

use super::enter::{CALLED, Rule, State, call, put, take};
use crate::code::Code;
use crate::model::{Caller, Part, Result};
use std::ffi::{c_char, c_int, c_uint};

/// The version that is answered: 2.20.0.
const VERSION: c_int = 22000;
/// Numbers of nccl.h.
const UINT8: c_int = 1;
const MAGIC: c_uint = 0xcafe_beef;
const OLDEST_CONFIG: c_uint = 21400;

/// `ncclUniqueId`: the world's number, and a word that says whose it is.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct UniqueId([c_char; 128]);

const OURS: &[u8; 8] = b"granule!";

/// `ncclConfig_t` as of 2.14, which later versions read too.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
}

/// One call; the driver's code as an `ncclResult_t`.
fn nccl(name: &'static str, rule: Rule, work: impl FnMut(&mut State, &Caller) -> Result<()>) -> u32 {
    let answer = Code(call(name, rule, work));
    CALLED.notify_all();
    match answer {
        Code(0) => 0,
        Code::OUT_OF_MEMORY => 2,
        Code::INVALID_VALUE | Code::INVALID_HANDLE => 4,
        Code::NOT_SUPPORTED => 5,
        Code::UNKNOWN => 6,
        Code::NOT_READY => 7,
        _ => 1,
    }
}

fn rank(number: c_int) -> Result<usize> {
    usize::try_from(number).map_err(|_| Code::INVALID_VALUE)
}

/// Bytes only.
fn bytes(count: usize, kind: c_int) -> Result<u64> {
    if kind == UINT8 { Ok(count as u64) } else { Err(Code::NOT_SUPPORTED) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetVersion(version: *mut c_int) -> u32 {
    // SAFETY: the caller's pointer.
    nccl("ncclGetVersion", Rule::Always, |_, _| unsafe { put(version, VERSION) })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGetUniqueId(id: *mut UniqueId) -> u32 {
    nccl("ncclGetUniqueId", Rule::Always, |state, _| {
        let mut made = [0; 128];
        let world = state.sim.new_nccl_world().to_le_bytes();
        for (to, from) in made.iter_mut().zip(OURS.iter().chain(&world)) {
            *to = from.cast_signed();
        }
        // SAFETY: the caller's pointer.
        unsafe { put(id, UniqueId(made)) }
    })
}

/// Non-blocking only: the simulator's one lock is held during a call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommInitRankConfig(
    comm: *mut u64,
    ranks: c_int,
    id: UniqueId,
    own: c_int,
    config: *const Config,
) -> u32 {
    let mut joined = false;
    let answer = nccl("ncclCommInitRankConfig", Rule::Initialized, |state, caller| {
        // SAFETY: the caller's pointer.
        let config: Config = unsafe { take(config) }?;
        let whole = config.size >= size_of::<Config>() && config.magic == MAGIC;
        if !whole || config.version < OLDEST_CONFIG {
            return Err(Code::INVALID_VALUE);
        }
        if config.blocking != 0 {
            return Err(Code::NOT_SUPPORTED);
        }
        let id = id.0.map(c_char::cast_unsigned);
        let (ours, rest) = id.split_at(OURS.len());
        let world = rest.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).ok_or(Code::INVALID_VALUE)?;
        if ours != OURS {
            return Err(Code::INVALID_VALUE);
        }
        let made = state.sim.join_nccl(caller, world, rank(own)?, rank(ranks)?)?;
        joined = true;
        // SAFETY: the caller's pointer.
        unsafe { put(comm, made) }
    });
    // In progress, as the library is.
    if joined && answer == 0 { 7 } else { answer }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommGetAsyncError(comm: u64, state: *mut u32) -> u32 {
    nccl("ncclCommGetAsyncError", Rule::Initialized, |driver, caller| {
        let answer = match driver.sim.nccl_state(caller, comm) {
            Ok(()) => 0,
            Err(Code::NOT_READY) => 7,
            Err(other) => return Err(other),
        };
        // SAFETY: the caller's pointer.
        unsafe { put(state, answer) }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclCommAbort(comm: u64) -> u32 {
    nccl("ncclCommAbort", Rule::Release, |state, caller| state.sim.abort_nccl(caller, comm))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupStart() -> u32 {
    nccl("ncclGroupStart", Rule::Initialized, |state, caller| {
        state.sim.begin_nccl_group(caller);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclGroupEnd() -> u32 {
    nccl("ncclGroupEnd", Rule::Release, |state, caller| state.sim.end_nccl_group(caller))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclSend(
    from: u64,
    count: usize,
    kind: c_int,
    peer: c_int,
    comm: u64,
    on: u64,
) -> u32 {
    nccl("ncclSend", Rule::Initialized, |state, caller| {
        let part = Part::Send { to: rank(peer)?, at: from, len: bytes(count, kind)? };
        state.sim.nccl_call(caller, comm, on, part)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclRecv(
    to: u64,
    count: usize,
    kind: c_int,
    peer: c_int,
    comm: u64,
    on: u64,
) -> u32 {
    nccl("ncclRecv", Rule::Initialized, |state, caller| {
        let part = Part::Receive { from: rank(peer)?, at: to, len: bytes(count, kind)? };
        state.sim.nccl_call(caller, comm, on, part)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclAllGather(
    from: u64,
    to: u64,
    count: usize,
    kind: c_int,
    comm: u64,
    on: u64,
) -> u32 {
    nccl("ncclAllGather", Rule::Initialized, |state, caller| {
        let part = Part::Gather { from, to, len: bytes(count, kind)? };
        state.sim.nccl_call(caller, comm, on, part)
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ncclBroadcast(
    from: u64,
    to: u64,
    count: usize,
    kind: c_int,
    root: c_int,
    comm: u64,
    on: u64,
) -> u32 {
    nccl("ncclBroadcast", Rule::Initialized, |state, caller| {
        let part = Part::Broadcast { root: rank(root)?, from, to, len: bytes(count, kind)? };
        state.sim.nccl_call(caller, comm, on, part)
    })
}
