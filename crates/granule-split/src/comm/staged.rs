//! `Staged`: collectives in a device's memory by way of the host's: for devices that do not reach each other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use granule_device::{Bytes, Device, DeviceSlice, DeviceSliceMut, Event, Pinned, Stream};

use super::{Communicator, STAGED_ELEMENTS, Traffic, unsupported};
use crate::error::{Error, Result};

/// Bytes that go through the host at a time.
const PIECE: usize = STAGED_ELEMENTS * size_of::<f32>();

/// A rank whose numbers are in a device's memory and whose group is one of the host's: they go through pinned memory, a MiB at a
/// time, and the stream is waited for on the way. Slow beside devices that reach each other, and works with all.
#[derive(Debug)]
pub struct Staged {
    host: Arc<dyn Communicator>,
    room: Mutex<Room>,
}

/// The pinned memory.
#[derive(Debug)]
struct Room {
    pinned: Pinned,
    /// Behind the last copy out of it.
    passed: Option<Event>,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.wait();
    }
}

impl Room {
    fn wait(&mut self) {
        if let Some(passed) = self.passed.take() {
            passed.synchronize();
        }
    }

    /// The numbers of a piece.
    fn floats(&mut self, bytes: usize) -> Result<&mut [f32]> {
        let bytes = self.pinned.slice_mut(..bytes)?.into_host_mut();
        let floats = bytes.and_then(|bytes| bytemuck::try_cast_slice_mut(bytes).ok());
        floats.ok_or_else(|| unsupported("pinned memory that the host cannot write"))
    }
}

impl Staged {
    /// A rank of `host`'s group whose numbers are on this device.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no pinned memory for it.
    pub fn new(host: Arc<dyn Communicator>, device: &Device) -> Result<Staged> {
        let pinned = device.alloc_pinned(Bytes::from_usize(PIECE))?;
        Ok(Staged { host, room: Mutex::new(Room { pinned, passed: None }) })
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings the data over piece by piece, has something done to it, and brings it back. Where that fails here the others fail too, and
    /// the stream is done with the pinned memory.
    ///
    /// # Safety
    /// As of [`Communicator::all_reduce_on`], of `data`.
    unsafe fn through(
        &self,
        stream: &Stream,
        data: DeviceSliceMut<'_>,
        with: &dyn Fn(&mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let mut room = self.room();
        // SAFETY: the caller's promise.
        let done = unsafe { self.pieces(&mut room, stream, data, with) };
        if let Err(error) = &done {
            self.host.abort(&error.to_string());
            stream.wait_out()?;
        }
        done
    }

    /// # Safety
    /// As of [`Staged::through`]; where it fails the stream may still be at the pinned memory.
    unsafe fn pieces(
        &self,
        room: &mut Room,
        stream: &Stream,
        mut data: DeviceSliceMut<'_>,
        with: &dyn Fn(&mut [f32]) -> Result<()>,
    ) -> Result<()> {
        let mut at = 0;
        while at < data.len() {
            let end = data.len().min(at + PIECE);
            room.wait();
            let from = data.as_slice().subslice(at..end)?;
            let to = room.pinned.slice_mut(..end - at)?;
            // SAFETY: the data stays by the caller's promise, and the pinned memory is this rank's, which waits for the stream now.
            unsafe { stream.copy_slice(from, to) }?;
            stream.synchronize()?;
            with(room.floats(end - at)?)?;
            let (from, to) = (room.pinned.slice(..end - at)?, data.reborrow().subslice(at..end)?);
            // SAFETY: as above; it is waited for by the event before anybody touches the pinned memory again, or it goes.
            unsafe { stream.copy_slice(from, to) }?;
            room.passed = Some(stream.record()?);
            at = end;
        }
        Ok(())
    }
}

impl Communicator for Staged {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn ranks(&self) -> usize {
        self.host.ranks()
    }

    fn describe(&self) -> String {
        format!("{}, by way of the host's memory", self.host.describe())
    }

    fn traffic(&self) -> Traffic {
        self.host.traffic()
    }

    fn abort(&self, why: &str) {
        self.host.abort(why);
    }

    fn recover(&self) -> Result<()> {
        self.host.recover()
    }

    fn all_reduce(&self, data: &mut [f32]) -> Result<()> {
        self.host.all_reduce(data)
    }

    fn all_gather(&self, own: &[f32], counts: &[usize], all: &mut [f32]) -> Result<()> {
        self.host.all_gather(own, counts, all)
    }

    fn reduce_scatter(&self, data: &[f32], counts: &[usize], own: &mut [f32]) -> Result<()> {
        self.host.reduce_scatter(data, counts, own)
    }

    fn broadcast(&self, root: usize, data: &mut [f32]) -> Result<()> {
        self.host.broadcast(root, data)
    }

    unsafe fn all_reduce_on(
        &self,
        stream: &Stream,
        data: DeviceSliceMut<'_>,
        _: DeviceSliceMut<'_>,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.through(stream, data, &|piece| self.host.all_reduce(piece)) }
    }

    unsafe fn all_gather_on(
        &self,
        stream: &Stream,
        own: DeviceSlice<'_>,
        counts: &[usize],
        mut all: DeviceSliceMut<'_>,
    ) -> Result<()> {
        let bytes = |count: usize| count * size_of::<f32>();
        let expected = counts.get(self.rank()).copied().unwrap_or(0);
        if own.len() != bytes(expected) {
            let found = own.len() / size_of::<f32>();
            return Err(Error::Size { what: "a rank's own part", found, expected });
        }
        let mut at = 0;
        for (rank, &count) in counts.iter().enumerate() {
            let mut part = all.reborrow().subslice(at..at + bytes(count))?;
            if rank == self.rank() {
                // SAFETY: the caller's promise.
                unsafe { stream.copy_slice(own, part.reborrow()) }?;
            }
            // SAFETY: as above.
            unsafe { self.broadcast_on(stream, rank, part) }?;
            at += bytes(count);
        }
        Ok(())
    }

    unsafe fn broadcast_on(&self, stream: &Stream, root: usize, data: DeviceSliceMut<'_>) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.through(stream, data, &|piece| self.host.broadcast(root, piece)) }
    }
}
