//! The CUDA device as a [`Backend`]: memory of every kind, copies that are done when they return, peers.

use std::ffi::c_int;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUdeviceptr};

use super::announce;
use super::context::{Context, attribute};
use super::errors;
use super::moment::Unrecorded;
use super::release::Leftover;
use super::stream::Queue;
use crate::backend::{
    Backend, Ending, GranulePlace, MapFailure, MemoryKind, Moment, Ordered, RawGranule, RawStream,
    ReplaceFailure,
};
use crate::{
    Access, Bytes, Device, DeviceKind, DevicePtr, DeviceSlice, DeviceSliceMut, Error, Features, MemoryInfo,
};

/// Pinned memory that every context can use.
pub(super) const PORTABLE: u32 = 1;

/// A CUDA device below a [`Device`] handle.
#[derive(Debug)]
pub(crate) struct Cuda {
    context: Arc<Context>,
}

impl Cuda {
    pub(super) fn new(context: Arc<Context>) -> Cuda {
        Cuda { context }
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(super) fn length(&self, len: Bytes) -> Result<usize, Error> {
        // What does not fit into an address does not fit on the device.
        len.to_usize().ok_or_else(|| Error::TooLarge {
            device: self.context.name.clone(),
            requested: len,
            capacity: Bytes::from_usize(usize::MAX),
        })
    }

    fn has(&self, attribute: c_int) -> Result<bool, Error> {
        self.context.driver.has(attribute, self.context.device)
    }

    /// One try at an allocation.
    fn try_allocate(&self, len: usize, kind: MemoryKind) -> Result<DevicePtr, Error> {
        let driver = &self.context.driver;
        let (mut ptr, mut host): (CUdeviceptr, _) = (0, std::ptr::null_mut());
        // SAFETY: they are written into locals.
        unsafe {
            match kind {
                MemoryKind::Plain => driver.cuMemAlloc_v2(&raw mut ptr, len)?,
                MemoryKind::Pinned => {
                    // Not write-combined: the host reads it too.
                    driver.cuMemHostAlloc(&raw mut host, len, PORTABLE)?;
                    host.cast::<u8>().write_bytes(0, len);
                    ptr = host.expose_provenance() as u64;
                }
                MemoryKind::Managed => {
                    let global = sys::CUmemAttach_flags_enum::CU_MEM_ATTACH_GLOBAL as u32;
                    driver.cuMemAllocManaged(&raw mut ptr, len, global)?;
                    DevicePtr::new(ptr).as_host_ptr().write_bytes(0, len);
                }
            }
        }
        Ok(DevicePtr::new(ptr))
    }

    /// Gives the copy to the device's own stream and waits for it.
    fn run_copy(&self, copy: impl FnOnce(sys::CUstream) -> Result<(), Error>) -> Result<(), Error> {
        self.context.refuse_in_capture("a copy that is waited for")?;
        let _bound = self.context.bind()?;
        let (driver, stream) = (&self.context.driver, self.context.copies());
        copy(stream)?;
        // SAFETY: the stream is the context's own.
        let done = unsafe { driver.cuStreamSynchronize(stream) };
        if done.is_err() {
            // The memory is only borrowed: it must not be returned while the copy may still run.
            // SAFETY: as above.
            let _ = unsafe { driver.unfailing().cuStreamSynchronize(stream) };
        }
        done
    }

    fn peer<'a>(&self, peer: &'a Device) -> Result<&'a Context, Error> {
        let why = "one of the two is not a CUDA device";
        let peer =
            peer.backend().as_cuda().ok_or(Error::Unsupported { what: "access between devices", why })?;
        Ok(peer.context())
    }

    fn check_peer_access(&self, peer: &Context) -> Result<(), Error> {
        if reaches(&self.context, peer)? {
            return Ok(());
        }
        Err(Error::NoPeerAccess { device: self.context.name.clone(), peer: peer.name.clone() })
    }
}

/// Whether `device` can reach the memory of `peer`.
fn reaches(device: &Context, peer: &Context) -> Result<bool, Error> {
    if device.device == peer.device {
        return Ok(true);
    }
    let mut can = 0;
    // SAFETY: it is written into a local.
    unsafe { device.driver.cuDeviceCanAccessPeer(&raw mut can, device.device, peer.device)? };
    Ok(can == 1)
}

// SAFETY: `reserve` and `allocate` answer what the driver made, which nobody else knows; `map` puts the granule behind the
// places with the access asked for, or more where `features` says that less is not to be had.
unsafe impl Backend for Cuda {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Cuda
    }

    fn name(&self) -> &str {
        &self.context.name
    }

    fn granularity(&self) -> Bytes {
        Bytes::from_usize(self.context.virtual_memory.granule)
    }

    fn memory(&self) -> Result<MemoryInfo, Error> {
        let (free, total) = self.context.memory()?;
        Ok(MemoryInfo { total, free })
    }

    fn features(&self) -> Result<Features, Error> {
        let virtual_memory = self.context.virtual_memory.granule > 0;
        Ok(Features {
            virtual_memory,
            read_only: self.context.read_only(None)?,
            host_granules: virtual_memory && self.context.host_node()?.is_some(),
            managed: self.context.managed,
            stream_ordered: self.context.stream_ordered,
            register_read_only: self.has(attribute::READ_ONLY_HOST_REGISTER)?,
            capture: true,
        })
    }

    fn create_granule(&self, place: GranulePlace) -> Result<RawGranule, Error> {
        match place {
            GranulePlace::Device => self.context.create_granule(),
            GranulePlace::Host => self.context.create_host_granule(),
        }
    }

    unsafe fn release_granule(&self, granule: RawGranule) {
        self.context.release(Leftover::Granule(granule.0));
    }

    fn reserve(&self, len: Bytes, peers: &[&Device]) -> Result<DevicePtr, Error> {
        let mut devices = Vec::with_capacity(peers.len());
        for peer in peers {
            let peer = self.peer(peer)?;
            if !reaches(peer, &self.context)? {
                let (device, peer) = (peer.name.clone(), self.context.name.clone());
                return Err(Error::NoPeerAccess { device, peer });
            }
            if peer.device != self.context.device && !devices.contains(&peer.device) {
                devices.push(peer.device);
            }
        }
        self.context.reserve(len, &devices)
    }

    unsafe fn free_reservation(&self, base: DevicePtr, _: Bytes) {
        self.context.release(Leftover::Reservation(base));
    }

    unsafe fn map(&self, at: DevicePtr, granules: &[RawGranule], access: Access) -> Result<(), MapFailure> {
        // SAFETY: the caller's promise.
        unsafe { self.context.map(at, granules, access) }
    }

    unsafe fn replace(
        &self,
        at: DevicePtr,
        granule: RawGranule,
        access: Access,
    ) -> Result<(), ReplaceFailure> {
        // SAFETY: the caller's promise.
        unsafe { self.context.replace(at, granule, access) }
    }

    unsafe fn unmap(&self, at: DevicePtr, len: Bytes) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.context.unmap(at, len) }
    }

    unsafe fn set_access(&self, at: DevicePtr, len: Bytes, access: Access) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.context.set_access(at, len, access) }
    }

    fn allocate(&self, len: Bytes, kind: MemoryKind) -> Result<DevicePtr, Error> {
        if kind == MemoryKind::Managed && !self.context.managed {
            let why = "the device cannot share memory with a running host";
            return Err(Error::Unsupported { what: "managed memory", why });
        }
        self.context.refuse_in_capture("an allocation")?;
        let size = self.length(len)?;
        let bound = self.context.bind()?;
        let mut made = self.try_allocate(size, kind);
        if made.as_ref().is_err_and(|error| errors::code(error) == Some(errors::OUT_OF_MEMORY)) {
            // What was refused or put off may be just the room that is missing.
            self.context.settle();
            made = self.try_allocate(size, kind);
        }
        drop(bound);
        made.map_err(|error| self.context.explain(error, len))
    }

    unsafe fn free(&self, ptr: DevicePtr, _: Bytes, kind: MemoryKind) {
        self.context.release(match kind {
            MemoryKind::Plain | MemoryKind::Managed => Leftover::Memory(ptr),
            MemoryKind::Pinned => Leftover::Pinned(ptr),
        });
    }

    fn copy(&self, from: DeviceSlice<'_>, to: DeviceSliceMut<'_>) -> Result<(), Error> {
        let driver = &self.context.driver;
        let (source, target, len) = (from.ptr(), to.ptr(), from.len());
        let pageable = |kind: DeviceKind| kind == DeviceKind::Host;
        if from.home().host && to.home().host {
            // Both are this process's: nothing on the device uses borrowed memory.
            if let (Some(from), Some(to)) = (from.as_host(), to.into_host_mut()) {
                driver.gate("copy")?;
                to.copy_from_slice(from);
            }
            return Ok(());
        }
        let (from_pageable, to_pageable) = (pageable(from.kind()), pageable(to.kind()));
        self.run_copy(|stream| {
            // SAFETY: both memories are borrowed until the copy has run, and each is where its slice says.
            unsafe {
                if from_pageable {
                    driver.cuMemcpyHtoDAsync_v2(target.addr(), source.as_host_ptr().cast(), len, stream)
                } else if to_pageable {
                    driver.cuMemcpyDtoHAsync_v2(target.as_host_ptr().cast(), source.addr(), len, stream)
                } else {
                    driver.cuMemcpyAsync(target.addr(), source.addr(), len, stream)
                }
            }
        })
    }

    fn copy_to_peer(
        &self,
        from: DeviceSlice<'_>,
        peer: &Device,
        to: DeviceSliceMut<'_>,
    ) -> Result<(), Error> {
        if from.kind() != DeviceKind::Cuda || to.kind() != DeviceKind::Cuda {
            return Err(Error::OtherDevice { what: "a slice" });
        }
        let (own, other) = (self.context.raw(), self.peer(peer)?.raw());
        let driver = &self.context.driver;
        self.run_copy(|stream| {
            // SAFETY: both memories are borrowed until the copy has run, and each is its device's.
            unsafe {
                driver.cuMemcpyPeerAsync(to.ptr().addr(), other, from.ptr().addr(), own, from.len(), stream)
            }
        })
    }

    fn can_access_peer(&self, peer: &Device) -> Result<bool, Error> {
        match peer.backend().as_cuda() {
            Some(peer) => reaches(&self.context, &peer.context),
            None => Ok(false),
        }
    }

    fn enable_peer_access(&self, peer: &Device) -> Result<(), Error> {
        let peer = self.peer(peer)?;
        if peer.device == self.context.device {
            return Ok(());
        }
        self.check_peer_access(peer)?;
        self.context.refuse_in_capture("access between devices")?;
        let bound = self.context.bind()?;
        // SAFETY: both contexts are alive.
        match unsafe { self.context.driver.cuCtxEnablePeerAccess(peer.raw(), 0) } {
            Err(error) if errors::code(&error) == Some(errors::PEER_ACCESS_ALREADY_ENABLED) => (),
            done => done?,
        }
        drop(bound);
        peer.admit(self.context.device)
    }

    unsafe fn register(&self, at: DevicePtr, len: Bytes) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.register_read_only(at, len) }
    }

    unsafe fn unregister(&self, at: DevicePtr) {
        self.context.release(Leftover::Registered(at));
    }

    fn stream(&self) -> Result<Arc<dyn RawStream>, Error> {
        self.context.settle_put_off();
        let stream = self.context.new_stream()?;
        Ok(Queue::new(Arc::clone(&self.context), stream, true))
    }

    fn allocate_on(&self, stream: &Arc<dyn RawStream>, len: Bytes) -> Result<Option<Ordered>, Error> {
        if !self.context.stream_ordered {
            let why = "the device has no memory pools";
            return Err(Error::Unsupported { what: "stream-ordered memory", why });
        }
        let queue = stream.as_cuda().ok_or(Error::OtherDevice { what: "a stream" })?;
        self.context.refuse_in_capture("an allocation")?;
        let size = self.length(len)?;
        let bound = self.context.bind()?;
        let ready = Unrecorded::new(&self.context)?;
        let driver = &self.context.driver;
        let made = queue.outside_capture("an allocation", |raw| {
            let mut ptr = 0;
            // SAFETY: it is written into a local; the stream is alive.
            unsafe { driver.cuMemAllocAsync(&raw mut ptr, size, raw)? };
            Ok((DevicePtr::new(ptr), ready.record(driver, raw)))
        });
        let (ptr, ready) = match made {
            Ok(made) => made,
            Err(error) => {
                drop(bound);
                return Err(self.context.explain(error, len));
            }
        };
        let (context, stream) = (Arc::clone(&self.context), Some(Arc::clone(queue.cudarc())));
        let free: Ending = Box::new(move || context.release(Leftover::Ordered { ptr, stream }));
        match ready {
            Ok(ready) => Ok(Some(Ordered { ptr, ready: ready as Arc<dyn Moment>, free })),
            Err(error) => {
                free();
                Err(error)
            }
        }
    }

    fn announce(&self, at: DevicePtr, len: Bytes) -> Result<Option<Ending>, Error> {
        announce::announce(&self.context, at, len)
    }

    fn settle(&self) -> usize {
        let waiting = self.context.settle();
        self.let_go();
        waiting
    }

    fn as_cuda(&self) -> Option<&Cuda> {
        Some(self)
    }
}
