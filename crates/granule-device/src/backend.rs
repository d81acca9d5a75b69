//! What a kind of device has to be able to do: the seam between the typed handles and the system or driver below.
//!
//! The handles in this crate own, count and check; a backend only does. It trusts its callers: addresses and ids come from its
//! own earlier answers, and lengths are whole pieces.

use std::fmt;
use std::sync::Arc;

use crate::region::Ticket;
use crate::{Access, Bytes, DeviceKind, DevicePtr, Error, MemoryInfo};

/// The id a backend gave a granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawGranule(pub(crate) u64);

/// Memory that is one piece for its whole life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryKind {
    Plain,
    Pinned,
}

/// A map call that failed: so many leading places could not be taken out again and stay mapped.
pub(crate) struct MapFailure {
    pub(crate) error: Error,
    pub(crate) left_mapped: usize,
}

/// One device below a [`Device`](crate::Device) handle. A failing call leaves everything as it was. Releasing never fails
/// for the caller: what the system refuses to take back is remembered and tried again by [`Backend::settle`].
///
/// # Safety
/// - An address answered by `reserve` or `allocate` is the start of memory that belongs to the caller alone, until
///   `free_reservation` or `free`.
/// - After `map`, the memory of each place is the granule's, readable, and writable where the access says so.
pub(crate) unsafe trait Backend: fmt::Debug + Send + Sync {
    fn kind(&self) -> DeviceKind;
    fn name(&self) -> &str;
    fn granularity(&self) -> Bytes;
    fn memory(&self) -> Result<MemoryInfo, Error>;

    fn create_granule(&self) -> Result<RawGranule, Error>;
    /// # Safety
    /// - The granule is not used again, and nothing reads or writes it through a mapping.
    unsafe fn release_granule(&self, granule: RawGranule);

    fn reserve(&self, len: Bytes) -> Result<DevicePtr, Error>;
    /// # Safety
    /// - `base` and `len` are a reservation's, and nothing uses its memory any more.
    unsafe fn free_reservation(&self, base: DevicePtr, len: Bytes);
    /// Puts granules behind the places from `at` on, in one go.
    ///
    /// # Safety
    /// - The places lie in a reservation, and nothing uses their memory.
    unsafe fn map(&self, at: DevicePtr, granules: &[RawGranule], access: Access) -> Result<(), MapFailure>;
    /// Puts a granule behind a place that has another one, in one step.
    ///
    /// # Safety
    /// - The place is mapped, and nothing uses its memory.
    unsafe fn replace(&self, at: DevicePtr, granule: RawGranule, access: Access) -> Result<(), Error>;
    /// Takes away whatever stands behind `len` bytes of whole places.
    ///
    /// # Safety
    /// - The places lie in a reservation, and nothing uses their memory.
    unsafe fn unmap(&self, at: DevicePtr, len: Bytes) -> Result<(), Error>;
    /// # Safety
    /// - The places are mapped, and nothing uses their memory.
    unsafe fn set_access(&self, at: DevicePtr, len: Bytes, access: Access) -> Result<(), Error>;

    fn allocate(&self, len: Bytes, kind: MemoryKind) -> Result<DevicePtr, Error>;
    /// # Safety
    /// - `ptr`, `len` and `kind` are those of one `allocate`, and nothing uses its memory any more.
    unsafe fn free(&self, ptr: DevicePtr, len: Bytes, kind: MemoryKind);

    /// Copies `len` bytes and returns when that is done.
    ///
    /// # Safety
    /// - Both memories are this device's or this process's, `from` readable, `to` writable, and they do not overlap.
    /// - Nothing else writes either, or reads `to`, until this returns.
    unsafe fn copy(&self, from: DevicePtr, to: DevicePtr, len: usize) -> Result<(), Error>;

    /// Makes memory of this process reachable at its full speed.
    ///
    /// # Safety
    /// - The memory is mapped, and stays so until it is unregistered.
    unsafe fn register(&self, at: DevicePtr, len: Bytes) -> Result<(), Error>;
    /// # Safety
    /// - The memory was registered, and no work on it is left.
    unsafe fn unregister(&self, at: DevicePtr);

    fn stream(&self) -> Result<Arc<dyn RawStream>, Error>;

    /// Tries again what the system refused to take back; answers how many pieces are still waiting.
    fn settle(&self) -> usize;
}

/// One piece of work for a stream. The tickets keep its memory until it has run.
pub(crate) enum Op {
    Copy { from: DevicePtr, to: DevicePtr, len: usize, keep: [Ticket; 2] },
    Fill { at: DevicePtr, len: usize, value: u8, keep: Ticket },
    Call(Box<dyn FnOnce() + Send>),
    Wait(Arc<dyn Moment>),
}

/// A stream below a [`Stream`](crate::Stream). Dropping it runs what is left.
pub(crate) trait RawStream: Send + Sync {
    fn push(&self, op: Op) -> Result<(), Error>;
    fn record(&self) -> Result<Arc<dyn Moment>, Error>;
    fn synchronize(&self) -> Result<(), Error>;
}

/// A point in a stream's work.
pub(crate) trait Moment: fmt::Debug + Send + Sync {
    fn is_done(&self) -> bool;
    fn wait(&self);
}
