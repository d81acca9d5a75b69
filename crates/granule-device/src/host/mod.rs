//! The host device: a complete device made of this process's memory.
//!
//! Reservations are `mmap(PROT_NONE)`; granules are places in a memfd, mapped `MAP_SHARED | MAP_FIXED`, so that growth,
//! aliasing and unmapping behave as on a GPU. A granule is backed by `fallocate` when it is made, so that running out is an
//! error there and not a signal later; a hole punched in the file gives it back.

mod capacity;
mod queue;
mod sigbus;
mod sys;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::queue::Queue;
use crate::backend::{Backend, GranulePlace, MapFailure, MemoryKind, RawGranule, RawStream, ReplaceFailure};
use crate::fault::Faults;
use crate::{
    Access, Bytes, Device, DeviceKind, DevicePtr, DeviceSlice, DeviceSliceMut, Error, Features, HostOptions,
    MemoryInfo,
};

pub(crate) use sigbus::Guard;

const DEFAULT_GRANULE: Bytes = Bytes::mib(2);

/// Opens the host device.
pub(crate) fn open(options: HostOptions, faults: Arc<Faults>) -> Result<Box<dyn Backend>, Error> {
    Ok(Box::new(new(options, faults)?))
}

fn new(options: HostOptions, faults: Arc<Faults>) -> Result<Host, Error> {
    let page = Bytes::from_usize(sys::page_size());
    let granule = options.granule.unwrap_or(DEFAULT_GRANULE);
    if !granule.get().is_power_of_two() || granule < page || granule.get() > 1 << 40 {
        return Err(Error::GranuleSize { granule, page });
    }
    let capacity = options.capacity.unwrap_or_else(capacity::detect);
    let name = options.number.map_or_else(|| "host".to_owned(), |number| format!("host:{number}"));
    faults.gate("memfd_create")?;
    let file = sys::memfd().map_err(|source| Error::Os { call: "memfd_create", source })?;
    let whole = |huge: &Bytes| granule.get().is_multiple_of(huge.get());
    let huge = sys::huge_page_size().map(Bytes::new).filter(whole);
    Ok(Host {
        name,
        file,
        granule,
        page,
        huge,
        capacity,
        faults,
        state: Mutex::default(),
        execution: Arc::default(),
    })
}

fn no_peers() -> Error {
    Error::Unsupported { what: "access between devices", why: "the host device has no peers" }
}

/// Reads bytes of a mapped file into memory and keeps them there.
pub(crate) fn lock_bytes(bytes: &[u8]) -> Result<(), Error> {
    let at = DevicePtr::new(bytes.as_ptr().expose_provenance() as u64);
    // SAFETY: the bytes are mapped for as long as they are borrowed.
    unsafe { sys::lock(at, bytes.len()) }
        .map_err(|source| lock_refused(Bytes::from_usize(bytes.len()), source))
}

/// Gives back the memory behind the whole pages of some bytes of a mapped file that is only read.
pub(crate) fn let_go(map: &memmap2::Mmap, range: std::ops::Range<usize>) {
    let page = sys::page_size();
    let start = range.start.saturating_add(page - 1) / page * page;
    // The last page is whole where the file ends in it.
    let end = if range.end >= map.len() { map.len() } else { range.end / page * page };
    if start < end {
        // SAFETY: the bytes are those of a file and only read, so what is given back is what will be read there again. A refusal
        // leaves everything as it was, and costs memory at most.
        let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, end - start) };
    }
}

fn lock_refused(requested: Bytes, source: std::io::Error) -> Error {
    Error::LockLimit { requested, limit: Bytes::new(sys::lock_limit()), source }
}

#[derive(Debug)]
struct Host {
    name: String,
    file: OwnedFd,
    granule: Bytes,
    page: Bytes,
    /// The system's huge page, where a granule is whole ones.
    huge: Option<Bytes>,
    capacity: Bytes,
    faults: Arc<Faults>,
    state: Mutex<State>,
    /// Held by the stream whose turn it is to touch memory.
    execution: Arc<Mutex<()>>,
}

#[derive(Debug, Default)]
struct State {
    /// What granules, buffers and pinned memory hold together; never more than the capacity.
    used: Bytes,
    /// Places of the file that were used and are holes again.
    /// The lowest is used first: neighbours in the file that are neighbours in memory are one mapping of the system's.
    free_places: BinaryHeap<Reverse<u64>>,
    /// The first place that was never used.
    next_place: u64,
    /// What the system did not take back yet.
    unsettled: Vec<Leftover>,
}

/// A release that failed, to be tried again. It keeps its share of the capacity until then.
#[derive(Debug)]
enum Leftover {
    Place(u64),
    Addresses { at: DevicePtr, len: usize, charged: Bytes },
}

impl Host {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is whole between any two statements that could panic, so a poisoned lock is as good as any.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Passes the fault gate, makes the call, names it in the error.
    fn call(&self, name: &'static str, call: impl FnOnce() -> std::io::Result<()>) -> Result<(), Error> {
        self.faults.gate(name)?;
        call().map_err(|source| Error::Os { call: name, source })
    }

    fn length(&self, len: Bytes) -> Result<usize, Error> {
        len.to_usize().ok_or_else(|| self.too_large(len))
    }

    fn too_large(&self, requested: Bytes) -> Error {
        Error::TooLarge { device: self.name.clone(), requested, capacity: self.capacity }
    }

    fn out_of_memory(&self, requested: Bytes, used: Bytes) -> Error {
        let free = self.capacity.saturating_sub(used);
        Error::OutOfMemory { device: self.name.clone(), requested, free, capacity: self.capacity }
    }

    /// Takes a share of the capacity.
    fn charge(&self, state: &mut State, len: Bytes) -> Result<(), Error> {
        if len > self.capacity {
            return Err(self.too_large(len));
        }
        let fits = |used: Bytes| used.checked_add(len).filter(|&sum| sum <= self.capacity);
        if fits(state.used).is_none() {
            self.settle_all(state);
        }
        state.used = fits(state.used).ok_or_else(|| self.out_of_memory(len, state.used))?;
        Ok(())
    }

    /// The system's own "no memory" is the device's.
    fn as_out_of_memory(&self, error: Error, requested: Bytes, used: Bytes) -> Error {
        match error {
            Error::Os { source, .. }
                if matches!(source.raw_os_error(), Some(libc::ENOMEM | libc::ENOSPC)) =>
            {
                self.out_of_memory(requested, used)
            }
            other => other,
        }
    }

    fn settle_all(&self, state: &mut State) {
        for leftover in std::mem::take(&mut state.unsettled) {
            self.settle_one(state, leftover);
        }
    }

    /// Gives one thing back, or puts it on the list.
    fn settle_one(&self, state: &mut State, leftover: Leftover) {
        let (done, charged) = match leftover {
            Leftover::Place(place) => {
                let (offset, len) = (place * self.granule.get(), self.granule.get());
                (
                    self.call("fallocate(PUNCH_HOLE)", || sys::punch_hole(&self.file, offset, len)),
                    self.granule,
                )
            }
            Leftover::Addresses { at, len, charged } => {
                // SAFETY: a leftover's addresses were given back by their owner, who is done with them.
                (self.call("munmap", || unsafe { sys::release(at, len) }), charged)
            }
        };
        match (done, leftover) {
            (Err(_), leftover) => state.unsettled.push(leftover),
            (Ok(()), Leftover::Place(place)) => {
                state.free_places.push(Reverse(place));
                state.used = state.used.saturating_sub(charged);
            }
            (Ok(()), Leftover::Addresses { .. }) => state.used = state.used.saturating_sub(charged),
        }
    }

    fn whole_pages(&self, len: Bytes) -> Result<Bytes, Error> {
        len.checked_next_multiple_of(self.page).ok_or_else(|| self.too_large(len))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // The granules' memory goes with the file; what the system refused to take back is tried a last time.
        self.settle();
    }
}

// SAFETY: `reserve` and `allocate` answer addresses of new mappings, which nobody else knows; `map` puts the granule's
// piece of the file behind them with the protection that the access says.
unsafe impl Backend for Host {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Host
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn granularity(&self) -> Bytes {
        self.granule
    }

    fn memory(&self) -> Result<MemoryInfo, Error> {
        let free = self.capacity.saturating_sub(self.state().used);
        Ok(MemoryInfo { total: self.capacity, free })
    }

    fn features(&self) -> Result<Features, Error> {
        Ok(Features {
            virtual_memory: true,
            read_only: true,
            host_granules: true,
            managed: true,
            stream_ordered: true,
            ..Features::default()
        })
    }

    fn create_granule(&self, _: GranulePlace) -> Result<RawGranule, Error> {
        let mut state = self.state();
        self.charge(&mut state, self.granule)?;
        let place = state.free_places.pop().map_or(state.next_place, |Reverse(place)| place);
        let len = self.granule.get();
        let backed = match place.checked_mul(len) {
            Some(offset) => self.call("fallocate", || sys::allocate(&self.file, offset, len)),
            None => Err(self.too_large(self.granule)),
        };
        if place == state.next_place {
            state.next_place += u64::from(backed.is_ok());
        } else if backed.is_err() {
            state.free_places.push(Reverse(place));
        }
        if let Err(error) = backed {
            state.used = state.used.saturating_sub(self.granule);
            return Err(self.as_out_of_memory(error, self.granule, state.used));
        }
        drop(state);
        if let Some((len, huge)) =
            self.huge.and_then(|huge| Some((self.granule.to_usize()?, huge.to_usize()?)))
        {
            // A favour: the granule is as good in small pages, only slower. What an attention reads lies pages apart, and the
            // tables that lead to small pages are no longer in the caches when it comes back to them.
            let _ = sys::gather_pages(&self.file, place * self.granule.get(), len, huge);
        }
        Ok(RawGranule(place))
    }

    unsafe fn release_granule(&self, granule: RawGranule) {
        let mut state = self.state();
        self.settle_one(&mut state, Leftover::Place(granule.0));
    }

    fn reserve(&self, len: Bytes, peers: &[&Device]) -> Result<DevicePtr, Error> {
        if !peers.is_empty() {
            return Err(no_peers());
        }
        let (size, align) = (self.length(len)?, self.length(self.granule)?);
        self.faults.gate("mmap(reserve)")?;
        sys::reserve(size, align).map_err(|source| Error::Os { call: "mmap(reserve)", source })
    }

    unsafe fn free_reservation(&self, base: DevicePtr, len: Bytes) {
        if let Some(len) = len.to_usize() {
            self.settle_one(&mut self.state(), Leftover::Addresses { at: base, len, charged: Bytes::ZERO });
        }
    }

    unsafe fn map(&self, at: DevicePtr, granules: &[RawGranule], access: Access) -> Result<(), MapFailure> {
        let len = self.length(self.granule).map_err(|error| MapFailure { error, left_mapped: 0 })?;
        let mut done = 0;
        // Neighbours in the file are one call, and one mapping of the system's.
        for run in granules.chunk_by(|a, b| b.0 == a.0 + 1) {
            let (place, offset) = (at.offset(done * len), run[0].0 * self.granule.get());
            // SAFETY: the caller owns the places and nothing uses them; a granule is backed from its creation on.
            let mapped = self.call("mmap", || unsafe {
                sys::map_file(place, run.len() * len, &self.file, offset, access)
            });
            if let Err(error) = mapped {
                // SAFETY: these places were mapped just now and nothing uses them.
                let undone =
                    done == 0 || self.call("mmap", || unsafe { sys::unmap_keeping(at, done * len) }).is_ok();
                return Err(MapFailure { error, left_mapped: if undone { 0 } else { done } });
            }
            done += run.len();
        }
        Ok(())
    }

    unsafe fn populate(&self, at: DevicePtr, len: Bytes) -> Result<(), Error> {
        let (len, page) = (self.length(len)?, self.length(self.page)?);
        // SAFETY: the places are mapped for writing and nothing uses them.
        self.call("madvise(populate)", || unsafe { sys::populate(at, len, page) })
    }

    unsafe fn replace(
        &self,
        at: DevicePtr,
        granule: RawGranule,
        access: Access,
    ) -> Result<(), ReplaceFailure> {
        // Mapping over a mapping is one step of the system's. Where it fails for want of kernel memory, Linux before 6.12
        // may have taken the old one away already; newer ones put it back.
        // SAFETY: the caller owns the place and nothing uses it.
        unsafe { self.map(at, &[granule], access) }
            .map_err(|failure| ReplaceFailure { error: failure.error, gone: false })
    }

    unsafe fn unmap(&self, at: DevicePtr, len: Bytes) -> Result<(), Error> {
        let len = self.length(len)?;
        // SAFETY: the caller owns the places and nothing uses them.
        self.call("mmap(unmap)", || unsafe { sys::unmap_keeping(at, len) })
    }

    unsafe fn set_access(&self, at: DevicePtr, len: Bytes, access: Access) -> Result<(), Error> {
        let len = self.length(len)?;
        // SAFETY: the places are mapped and nothing uses them.
        self.call("mprotect", || unsafe { sys::protect(at, len, access) })
    }

    fn allocate(&self, len: Bytes, kind: MemoryKind) -> Result<DevicePtr, Error> {
        let whole = self.whole_pages(len)?;
        let size = self.length(whole)?;
        let mut state = self.state();
        self.charge(&mut state, whole)?;
        let made = self.faults.gate("mmap(alloc)").and_then(|()| {
            sys::allocate_private(size).map_err(|source| Error::Os { call: "mmap(alloc)", source })
        });
        let ptr = match made {
            Ok(ptr) => ptr,
            Err(error) => {
                state.used = state.used.saturating_sub(whole);
                return Err(self.as_out_of_memory(error, whole, state.used));
            }
        };
        if kind == MemoryKind::Pinned {
            // SAFETY: the pages were mapped just now.
            if let Err(error) = self.call("mlock", || unsafe { sys::lock(ptr, size) }) {
                self.settle_one(&mut state, Leftover::Addresses { at: ptr, len: size, charged: whole });
                return Err(match error {
                    Error::Os { source, .. } => lock_refused(whole, source),
                    other => other,
                });
            }
        }
        Ok(ptr)
    }

    unsafe fn free(&self, ptr: DevicePtr, len: Bytes, _: MemoryKind) {
        // Both roundings succeeded when this was allocated.
        if let Some((whole, len)) =
            self.whole_pages(len).ok().and_then(|whole| Some((whole, whole.to_usize()?)))
        {
            self.settle_one(&mut self.state(), Leftover::Addresses { at: ptr, len, charged: whole });
        }
    }

    fn copy(&self, from: DeviceSlice<'_>, to: DeviceSliceMut<'_>) -> Result<(), Error> {
        let (Some(from), Some(to)) = (from.as_host(), to.into_host_mut()) else {
            return Err(Error::OtherDevice { what: "device memory" });
        };
        self.faults.gate("copy")?;
        to.copy_from_slice(from);
        Ok(())
    }

    fn copy_to_peer(&self, _: DeviceSlice<'_>, _: &Device, _: DeviceSliceMut<'_>) -> Result<(), Error> {
        Err(no_peers())
    }

    fn can_access_peer(&self, _: &Device) -> Result<bool, Error> {
        Ok(false)
    }

    fn enable_peer_access(&self, _: &Device) -> Result<(), Error> {
        Err(no_peers())
    }

    unsafe fn register(&self, _: DevicePtr, _: Bytes) -> Result<(), Error> {
        // A file's pages are as close to this device as its own.
        self.faults.gate("register")
    }

    unsafe fn unregister(&self, _: DevicePtr) {}

    fn stream(&self) -> Result<Arc<dyn RawStream>, Error> {
        self.faults.gate("stream")?;
        Ok(Arc::new(Queue::new(Arc::clone(&self.execution), Arc::clone(&self.faults))))
    }

    fn settle(&self) -> usize {
        let mut state = self.state();
        self.settle_all(&mut state);
        state.unsettled.len()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// What the system says the granules' file holds.
    fn held(host: &Host) -> Bytes {
        let file = std::fs::File::from(host.file.try_clone().unwrap());
        Bytes::new(file.metadata().unwrap().blocks() * 512)
    }

    #[test]
    fn memory_is_there_from_the_start_and_really_freed() {
        let granule = Bytes::mib(1);
        let options = HostOptions::new().granule(granule).capacity(Bytes::mib(8));
        let host = new(options, Arc::default()).unwrap();
        let granules: Vec<_> = (0..4).map(|_| host.create_granule(GranulePlace::Device).unwrap()).collect();
        assert_eq!(held(&host), Bytes::mib(4));
        // SAFETY: these were never mapped.
        unsafe { granules[..3].iter().for_each(|&granule| host.release_granule(granule)) };
        assert_eq!(held(&host), Bytes::mib(1));
        let again = host.create_granule(GranulePlace::Device).unwrap();
        assert_eq!(again, granules[0], "the lowest place is used first");
        assert_eq!(held(&host), Bytes::mib(2));
    }

    #[test]
    fn a_refused_release_is_settled_later() {
        let host = new(HostOptions::new().capacity(Bytes::mib(2)), Arc::default()).unwrap();
        let granule = host.create_granule(GranulePlace::Device).unwrap();
        host.faults.arm(crate::FaultPlan::nth(1));
        // SAFETY: it was never mapped.
        unsafe { host.release_granule(granule) };
        assert_eq!(held(&host), Bytes::mib(2));
        assert_eq!(host.memory().unwrap().free, Bytes::ZERO);
        // Room is needed, so it is tried again.
        host.create_granule(GranulePlace::Device).unwrap();
        assert_eq!(host.settle(), 0);
        assert_eq!(held(&host), Bytes::mib(2));
    }
}
