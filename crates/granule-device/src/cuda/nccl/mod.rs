//! What ranks with a GPU each send each other by NVIDIA's NCCL, where it is installed: the library is found when a group is first asked
//! for, as the driver is. Written after its documentation; nothing here has met the library itself yet.

mod library;
mod status;

use std::ffi::{c_char, c_int, c_void};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUstream;

use self::library::{Config, Functions, UniqueId};
use self::status::{IN_PROGRESS, check};
use super::context::{Context, Raw, lock};
use super::release::Leftover;
use super::stream::{Relaxed, Resource};
use crate::live::{Counted, Thing};
use crate::{Device, DeviceKind, DeviceSlice, DeviceSliceMut, Error, Stream};

/// `ncclUint8`: everything is sent as bytes.
const BYTES: c_int = 1;

/// What all ranks of a group are made with: one of them makes it and tells the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NcclId([u8; NcclId::BYTES]);

impl NcclId {
    /// How many bytes it has.
    pub const BYTES: usize = 128;

    /// A new one, for one group. From now on this process listens for the group's ranks, at an address of NCCL's choice
    /// (`NCCL_SOCKET_IFNAME` has a say in it).
    ///
    /// # Errors
    /// [`Error::NoNccl`] where the library is not installed, or broken; [`Error::Nccl`].
    pub fn new() -> Result<NcclId, Error> {
        let functions = library::functions()?;
        let mut id = UniqueId([0; NcclId::BYTES]);
        // SAFETY: it is written into a local.
        check("ncclGetUniqueId", unsafe { (functions.ncclGetUniqueId)(&raw mut id) })?;
        Ok(NcclId(id.0.map(c_char::cast_unsigned)))
    }

    /// The bytes, to be sent to the other ranks.
    pub fn bytes(&self) -> &[u8; NcclId::BYTES] {
        &self.0
    }

    /// One that another rank has made.
    pub fn from_bytes(bytes: [u8; NcclId::BYTES]) -> NcclId {
        NcclId(bytes)
    }
}

/// One rank's end of a group of NCCL's: a device, for all of its streams. Cheap to clone.
///
/// Its calls do not block: where the library needs the other ranks, it is asked again until a time-out. Memory of the device and the
/// host, and threads, are the library's own. Its work cannot be captured. The last clone, and the last work that uses it, end it: without
/// a word to the other ranks, and without waiting for them.
#[derive(Clone)]
pub struct Nccl {
    inner: Arc<Handle>,
}

struct Handle {
    /// `None` once it was aborted. Held during each call: the library's handle is gone with an abort.
    raw: Mutex<Option<Raw<c_void>>>,
    functions: &'static Functions,
    context: Arc<Context>,
    owner: Counted,
}

/// A part of an [exchange](Nccl::exchange).
#[derive(Debug)]
pub enum NcclPart<'a> {
    /// Bytes for another rank, which gets as many.
    Send {
        /// Whom.
        to: usize,
        /// What.
        bytes: DeviceSlice<'a>,
    },
    /// Bytes of another rank, which sends as many.
    Receive {
        /// Whose.
        from: usize,
        /// Where they go.
        bytes: DeviceSliceMut<'a>,
    },
}

impl Nccl {
    /// The library's version: 2.20.5 is 22005.
    ///
    /// # Errors
    /// As [`NcclId::new`].
    pub fn version() -> Result<u32, Error> {
        let functions = library::functions()?;
        let mut version: c_int = 0;
        // SAFETY: it is written into a local.
        check("ncclGetVersion", unsafe { (functions.ncclGetVersion)(&raw mut version) })?;
        Ok(u32::try_from(version).unwrap_or(0))
    }

    /// Begins to join a group, as rank `rank` of `ranks`, with a device that no other rank of it has. All ranks must join; ask
    /// [`Nccl::is_ready`] until they have, and use it then.
    ///
    /// # Errors
    /// [`Error::NoNccl`] where the library is not installed, or broken; [`Error::Nccl`] where it refuses; [`Error::Unsupported`] on the
    /// host; [`Error::Capturing`].
    pub fn join(device: &Device, id: &NcclId, rank: usize, ranks: usize) -> Result<Nccl, Error> {
        const MAKING: &str = "joining a group of NCCL's";
        let context = device.cuda_context("NCCL")?;
        let functions = library::functions()?;
        context.refuse_in_capture(MAKING)?;
        let (rank, ranks) = (number(rank)?, number(ranks)?);
        let _bound = context.bind()?;
        // It allocates, and may wait for the device: beside others' captures in the mode that they forbid the least.
        let _none = context.hold_captures_off(MAKING)?;
        let _relaxed = Relaxed::enter(&context.driver);
        let (mut raw, config) = (std::ptr::null_mut(), Config::NON_BLOCKING);
        let id = UniqueId(id.0.map(u8::cast_signed));
        context.driver.gate("ncclCommInitRankConfig")?;
        // SAFETY: it is written into a local, and the configuration is read by the call; the context is current, and alive as long as the
        // handle.
        let code =
            unsafe { (functions.ncclCommInitRankConfig)(&raw mut raw, ranks, id, rank, &raw const config) };
        check("ncclCommInitRankConfig", code)?;
        let inner = Handle {
            raw: Mutex::new(Some(Raw(raw))),
            functions,
            context: Arc::clone(context),
            owner: Counted::new(device, Thing::Nccl),
        };
        Ok(Nccl { inner: Arc::new(inner) })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        self.inner.owner.device()
    }

    /// Whether what was asked for last is given, and nothing has gone wrong since: false while the library waits for other ranks.
    ///
    /// # Errors
    /// [`Error::Nccl`] where something has: another rank is gone, say, or this one was aborted.
    pub fn is_ready(&self) -> Result<bool, Error> {
        let _bound = self.inner.context.bind()?;
        self.inner.is_ready()
    }

    /// Ends it now, whatever its streams wait for: they go on, and what they were to receive may be anything. Other ranks are not told.
    /// Every call from now on fails.
    pub fn abort(&self) {
        self.inner.abort();
    }

    /// Sends and receives, all at once, when the stream's turn comes. Returns once the library has given it to the stream; it waits no
    /// longer than `timeout` for that.
    ///
    /// # Errors
    /// [`Error::OtherDevice`]; [`Error::Unsupported`] of ordinary host memory, [`Error::Capturing`] in a capture of this crate's;
    /// [`Error::Driver`]: nothing is given. [`Error::Nccl`]: some of it may have been, and the group is of no use any more.
    ///
    /// # Safety
    /// - The memory is reached by the device and stays until the stream has passed the call, or this is aborted and the stream has
    ///   passed. Until then nobody writes what is sent, or touches what is received, and the two do not overlap.
    pub unsafe fn exchange(
        &self,
        stream: &Stream,
        parts: &mut [NcclPart<'_>],
        timeout: Duration,
    ) -> Result<(), Error> {
        let mut calls = Vec::with_capacity(parts.len());
        for part in parts {
            calls.push(match part {
                NcclPart::Send { to, bytes } => {
                    Call::Send { to: number(*to)?, from: source(bytes)?, len: bytes.len() }
                }
                NcclPart::Receive { from, bytes } => {
                    Call::Receive { from: number(*from)?, to: target(bytes)?, len: bytes.len() }
                }
            });
        }
        // SAFETY: the caller's promise.
        unsafe { self.give(stream, &calls, timeout) }
    }

    /// Puts all ranks' bytes, as many of each, one behind the other, when the stream's turn comes. `own` may be this rank's place in
    /// `all`.
    ///
    /// # Errors
    /// As [`Nccl::exchange`].
    ///
    /// # Safety
    /// - As of [`Nccl::exchange`]; `all` has `own.len()` bytes for every rank.
    pub unsafe fn all_gather(
        &self,
        stream: &Stream,
        own: DeviceSlice<'_>,
        mut all: DeviceSliceMut<'_>,
        timeout: Duration,
    ) -> Result<(), Error> {
        let call = Call::Gather { from: source(&own)?, to: target(&mut all)?, len: own.len() };
        // SAFETY: the caller's promise.
        unsafe { self.give(stream, &[call], timeout) }
    }

    /// Has `bytes` be what they are on rank `root`, when the stream's turn comes.
    ///
    /// # Errors
    /// As [`Nccl::exchange`].
    ///
    /// # Safety
    /// - As of [`Nccl::exchange`].
    pub unsafe fn broadcast(
        &self,
        stream: &Stream,
        root: usize,
        mut bytes: DeviceSliceMut<'_>,
        timeout: Duration,
    ) -> Result<(), Error> {
        let call = Call::Broadcast { root: number(root)?, at: target(&mut bytes)?, len: bytes.len() };
        // SAFETY: the caller's promise.
        unsafe { self.give(stream, &[call], timeout) }
    }

    /// # Safety
    /// - As of [`Nccl::exchange`], for the memory of the calls.
    unsafe fn give(&self, stream: &Stream, calls: &[Call], timeout: Duration) -> Result<(), Error> {
        const WHAT: &str = "a collective of NCCL's";
        stream.check_device(self.device(), WHAT)?;
        let queue = stream.cuda_queue(WHAT)?;
        queue.reap();
        let _bound = queue.context().bind()?;
        let handle = Arc::clone(&self.inner) as Resource;
        let mut refused = Ok(());
        queue.give(Some(WHAT), Vec::new(), Some(handle), |stream| {
            // SAFETY: the caller's promise; the handle is kept until the stream has passed.
            match unsafe { self.inner.give(stream, calls, timeout) } {
                // Part of it may have been given, so that the handle is kept all the same.
                Err(error @ Error::Nccl { .. }) => {
                    refused = Err(error);
                    Ok(())
                }
                done => done,
            }
        })?;
        refused
    }
}

/// One call, with what was checked.
enum Call {
    Send { to: c_int, from: *const c_void, len: usize },
    Receive { from: c_int, to: *mut c_void, len: usize },
    Gather { from: *const c_void, to: *mut c_void, len: usize },
    Broadcast { root: c_int, at: *mut c_void, len: usize },
}

fn number(rank: usize) -> Result<c_int, Error> {
    c_int::try_from(rank).map_err(|_| status::error("ncclCommInitRankConfig", 4))
}

fn reached(kind: DeviceKind) -> Result<(), Error> {
    let why = "it lies in ordinary host memory";
    if kind == DeviceKind::Cuda { Ok(()) } else { Err(Error::Unsupported { what: "memory for NCCL", why }) }
}

fn source(bytes: &DeviceSlice<'_>) -> Result<*const c_void, Error> {
    reached(bytes.kind())?;
    Ok(bytes.ptr().addr() as *const c_void)
}

fn target(bytes: &mut DeviceSliceMut<'_>) -> Result<*mut c_void, Error> {
    reached(bytes.kind())?;
    Ok(bytes.ptr().addr() as *mut c_void)
}

impl Handle {
    fn is_ready(&self) -> Result<bool, Error> {
        const ASKING: &str = "ncclCommGetAsyncError";
        let raw = lock(&self.raw);
        let Some(Raw(comm)) = *raw else { return Err(aborted(ASKING)) };
        let mut state = IN_PROGRESS;
        self.context.driver.gate(ASKING)?;
        // SAFETY: the handle is alive, since it is locked; the answer goes into a local.
        check(ASKING, unsafe { (self.functions.ncclCommGetAsyncError)(comm, &raw mut state) })?;
        check(ASKING, state)
    }

    fn abort(&self) {
        if let Some(raw) = lock(&self.raw).take() {
            let abandoned = Abandoned { raw, functions: self.functions };
            self.context.release(Leftover::Nccl(abandoned));
        }
    }

    /// # Safety
    /// - The stream is alive, the context current; the rest as of [`Nccl::exchange`].
    unsafe fn give(&self, stream: CUstream, calls: &[Call], timeout: Duration) -> Result<(), Error> {
        let begun = Instant::now();
        // SAFETY: the caller's promise.
        let mut through = unsafe { self.group(stream, calls) }?;
        while !through {
            if begun.elapsed() > timeout {
                return Err(status::error("ncclGroupEnd", IN_PROGRESS));
            }
            std::thread::sleep(POLL);
            through = self.is_ready()?;
        }
        Ok(())
    }

    /// The calls, as one group; whether the library is through with giving them.
    ///
    /// # Safety
    /// - As of [`Handle::give`].
    unsafe fn group(&self, stream: CUstream, calls: &[Call]) -> Result<bool, Error> {
        let driver = &self.context.driver;
        let raw = lock(&self.raw);
        let Some(Raw(comm)) = *raw else { return Err(aborted("ncclGroupStart")) };
        let functions = self.functions;
        let _relaxed = Relaxed::enter(driver);
        driver.gate("ncclGroupStart")?;
        // SAFETY: it opens a group of this thread's.
        check("ncclGroupStart", unsafe { (functions.ncclGroupStart)() })?;
        let mut given = Ok(true);
        for call in calls {
            // SAFETY: the handle is alive, since it is locked, and the stream by the caller's promise, which is of the memory too.
            let (name, code) = unsafe {
                match *call {
                    Call::Send { to, from, len } => {
                        ("ncclSend", (functions.ncclSend)(from, len, BYTES, to, comm, stream))
                    }
                    Call::Receive { from, to, len } => {
                        ("ncclRecv", (functions.ncclRecv)(to, len, BYTES, from, comm, stream))
                    }
                    Call::Gather { from, to, len } => {
                        ("ncclAllGather", (functions.ncclAllGather)(from, to, len, BYTES, comm, stream))
                    }
                    Call::Broadcast { root, at, len } => {
                        ("ncclBroadcast", (functions.ncclBroadcast)(at, at, len, BYTES, root, comm, stream))
                    }
                }
            };
            given = check(name, code);
            if given.is_err() {
                break;
            }
        }
        // Whatever was answered, the thread's group is closed.
        // SAFETY: it closes the group opened above.
        let closed = check("ncclGroupEnd", unsafe { (functions.ncclGroupEnd)() });
        given.and(closed)
    }
}

/// Between two looks at what is in progress.
const POLL: Duration = Duration::from_micros(50);

fn aborted(call: &'static str) -> Error {
    let explanation = "this rank has left its group";
    Error::Nccl { call, code: 5, name: "ncclInvalidUsage", explanation }
}

/// A communicator that nobody has any more, or that is to end.
pub(super) struct Abandoned {
    raw: Raw<c_void>,
    functions: &'static Functions,
}

impl Abandoned {
    /// Ends it. It is not destroyed in the orderly way, which would wait for the other ranks to do so too.
    ///
    /// # Safety
    /// - The context is current. It is called once, and nothing uses the handle any more.
    pub(super) unsafe fn give_back(&self) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        check("ncclCommAbort", unsafe { (self.functions.ncclCommAbort)(self.raw.0) }).map(drop)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.abort();
    }
}

impl fmt::Debug for Nccl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nccl({})", self.device().name())
    }
}
