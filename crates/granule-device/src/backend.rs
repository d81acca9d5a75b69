//! What a kind of device has to be able to do: the seam between the typed handles and the system or driver below.
//!
//! The handles in this crate own, count and check; a backend only does. It trusts its callers: addresses and ids come from its
//! own earlier answers, and lengths are whole pieces.

use std::fmt;
use std::sync::Arc;

use crate::region::{Pending, Ticket};
use crate::{
    Access, Bytes, Device, DeviceKind, DevicePtr, DeviceSlice, DeviceSliceMut, Error, Features, MemoryInfo,
};

/// The id a backend gave a granule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawGranule(pub(crate) u64);

/// Memory that is one piece for its whole life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryKind {
    Plain,
    Pinned,
    Managed,
}

/// Where a granule's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GranulePlace {
    Device,
    Host,
}

/// A map call that failed: so many leading places could not be taken out again and stay mapped.
pub(crate) struct MapFailure {
    pub(crate) error: Error,
    pub(crate) left_mapped: usize,
}

/// A replace call that failed. Where `gone`, the old granule could not be put back either.
pub(crate) struct ReplaceFailure {
    pub(crate) error: Error,
    pub(crate) gone: bool,
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
    fn features(&self) -> Result<Features, Error>;

    fn create_granule(&self, place: GranulePlace) -> Result<RawGranule, Error>;
    /// # Safety
    /// - The granule is not used again, and nothing reads or writes it through a mapping.
    unsafe fn release_granule(&self, granule: RawGranule);

    /// Addresses that this device and its peers can reach.
    fn reserve(&self, len: Bytes, peers: &[&Device]) -> Result<DevicePtr, Error>;
    /// # Safety
    /// - `base` and `len` are a reservation's, and nothing uses its memory any more.
    unsafe fn free_reservation(&self, base: DevicePtr, len: Bytes);
    /// Puts granules behind the places from `at` on, in one go.
    ///
    /// # Safety
    /// - The places lie in a reservation, and nothing uses their memory.
    unsafe fn map(&self, at: DevicePtr, granules: &[RawGranule], access: Access) -> Result<(), MapFailure>;
    /// Does what the first touch of mapped memory would have to wait for, where that is anything. The bytes stay.
    ///
    /// # Safety
    /// - The places are mapped for writing, and nothing uses their memory.
    unsafe fn populate(&self, _at: DevicePtr, _len: Bytes) -> Result<(), Error> {
        Ok(())
    }
    /// Puts a granule behind a place that has another one, in one step.
    ///
    /// # Safety
    /// - The place is mapped, and nothing uses its memory.
    unsafe fn replace(
        &self,
        at: DevicePtr,
        granule: RawGranule,
        access: Access,
    ) -> Result<(), ReplaceFailure>;
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

    /// Copies bytes, as many as both have, and returns when that is done.
    fn copy(&self, from: DeviceSlice<'_>, to: DeviceSliceMut<'_>) -> Result<(), Error>;
    /// Copies bytes of this device onto as many of another.
    fn copy_to_peer(&self, from: DeviceSlice<'_>, peer: &Device, to: DeviceSliceMut<'_>)
    -> Result<(), Error>;
    fn can_access_peer(&self, peer: &Device) -> Result<bool, Error>;
    fn enable_peer_access(&self, peer: &Device) -> Result<(), Error>;

    /// Makes memory of this process reachable at its full speed.
    ///
    /// # Safety
    /// - The memory is mapped, and stays so until it is unregistered.
    unsafe fn register(&self, at: DevicePtr, len: Bytes) -> Result<(), Error>;
    /// # Safety
    /// - The memory was registered, and no work on it is left.
    unsafe fn unregister(&self, at: DevicePtr);

    fn stream(&self) -> Result<Arc<dyn RawStream>, Error>;
    /// Memory that may be used by work that the stream is given from now on; `None` where plain memory is as good.
    fn allocate_on(&self, _stream: &Arc<dyn RawStream>, _len: Bytes) -> Result<Option<Ordered>, Error> {
        Ok(None)
    }

    /// Tells memory checkers about a piece of a larger allocation; answers what ends that, `None` where nobody listens.
    fn announce(&self, _at: DevicePtr, _len: Bytes) -> Result<Option<Ending>, Error> {
        Ok(None)
    }

    /// Tries again what the system refused to take back; answers how many pieces are still waiting.
    fn settle(&self) -> usize;

    /// The backend itself, where it is CUDA's.
    #[cfg(feature = "cuda")]
    fn as_cuda(&self) -> Option<&crate::cuda::Cuda> {
        None
    }
}

/// Memory made by a stream, with what frees it again.
pub(crate) struct Ordered {
    pub(crate) ptr: DevicePtr,
    /// From when on other streams may use it.
    pub(crate) ready: Arc<dyn Moment>,
    pub(crate) free: Ending,
}

/// What is done once, when something is dropped.
pub(crate) type Ending = Box<dyn FnOnce() + Send + Sync>;

/// One piece of work for a stream. The tickets keep its memory until it has run.
pub(crate) enum Op {
    /// `across`: the device that has the target, where it is another one.
    Copy {
        from: DevicePtr,
        to: DevicePtr,
        len: usize,
        across: Option<Device>,
        keep: [Ticket; 2],
    },
    Fill {
        at: DevicePtr,
        len: usize,
        value: u8,
        keep: Ticket,
    },
    Call(Box<dyn FnOnce() + Send>),
    Wait(Arc<dyn Moment>),
}

/// A stream below a [`Stream`](crate::Stream). Dropping it runs what is left.
pub(crate) trait RawStream: Send + Sync {
    fn push(&self, op: Op) -> Result<(), Error>;
    fn record(&self) -> Result<Arc<dyn Moment>, Error>;
    fn synchronize(&self) -> Result<(), Error>;
    /// Waits past injected faults until all that was given has run. An error means that it may be running still.
    fn wait_out(&self) -> Result<(), Error>;
    /// When the stream is gone and all that it was given has run. It does not keep the stream.
    fn end(&self) -> Arc<dyn Moment>;
    /// Waits until nothing that was given to this stream holds the region any more. Only asked of streams that have
    /// [made themselves known](Ticket::held_by) to it. An error means that it is held still.
    fn finish(&self, _region: &Pending) -> Result<(), Error> {
        Ok(())
    }

    /// The stream itself, where it is CUDA's.
    #[cfg(feature = "cuda")]
    fn as_cuda(&self) -> Option<&crate::cuda::Queue> {
        None
    }
}

/// A point in a stream's work.
pub(crate) trait Moment: fmt::Debug + Send + Sync {
    fn is_done(&self) -> bool;
    fn wait(&self);

    /// The moment itself, where it is CUDA's.
    #[cfg(feature = "cuda")]
    fn as_cuda(&self) -> Option<&crate::cuda::CudaMoment> {
        None
    }
}
