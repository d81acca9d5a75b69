//! The ranks have a GPU each, in one process or several, on one machine or several, and NVIDIA's NCCL carries the bytes. Written after its
//! documentation and run on the simulated driver only: it has met neither the library nor a GPU yet.
//!
//! NCCL adds up in an order of its own choice. So that is not asked of it: ranks send each other slices, each adds up the slice that is
//! its in the order of the ranks, by this project's kernel, and slices of sums go to everybody.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use granule_bank::{Bank, Charge, Owner};
use granule_device::{
    Buffer, Bytes, Device, DevicePtr, DeviceSlice, DeviceSliceMut, Nccl, NcclId, NcclPart, Pinned, Stream,
};
use granule_ops::{Kernels, ranks};

use super::host::GroupOptions;
use super::slices::{all_reduce_elements, slice};
use super::wire::Wire;
use super::{Communicator, Traffic, rendezvous, unsupported};
use crate::error::{Error, Result};
use crate::plan::MAX_RANKS;

const WORD: usize = size_of::<f32>();
/// Elements of the host's memory that go through the device at a time.
const PIECE: usize = 1 << 18;
/// Places in scratch begin at multiples of so many bytes.
const ALIGN: usize = 16;
/// Between two looks at a stream that is waited for.
const POLL: Duration = Duration::from_micros(50);

/// One rank of a group over NCCL.
///
/// Where a rank is gone or stays away, the others' [`Communicator::wait_on`] and calls fail with [`Error::TimedOut`] within the time-out, or with
/// NCCL's own error where it notices first; a rank that failed or was aborted is of no use any more, and cannot tell the others so. Dropping
/// one ends what its streams have not passed: wait for them first.
pub struct NcclRank {
    nccl: Nccl,
    kernels: Kernels,
    device: Device,
    rank: usize,
    ranks: usize,
    timeout: Duration,
    room: Mutex<Room>,
    charge: Mutex<Option<Charge>>,
    failed: Mutex<Option<Failure>>,
    calls: AtomicU64,
    sent: AtomicU64,
}

/// What numbers of the host go through.
struct Room {
    /// [`PIECE`] elements, and behind them what an all-reduce of as many needs.
    memory: Buffer,
    pinned: Pinned,
    stream: Stream,
}

#[derive(Clone, Debug)]
enum Failure {
    Aborted(String),
    Late(&'static str),
}

impl NcclRank {
    /// Rank `rank` of `ranks`, 1 to [`MAX_RANKS`], on a device that no other rank has. Rank 0 listens at `rendezvous`, host and port, until
    /// the others have come, which all do within the time-out. All memory that it ever takes of the device it takes here:
    /// [`NcclRank::bytes`]; NCCL's own is beside it.
    ///
    /// # Errors
    /// [`Error::Rendezvous`] where the ranks do not find each other; [`Error::Device`], also where NCCL is not installed or refuses;
    /// [`Error::TimedOut`] where they found each other and NCCL does not connect them; [`Error::Unsupported`] of another wire
    /// than [`Wire::F32`]; [`Error::Ops`], [`Error::Ranks`], [`Error::NoRank`].
    pub fn new(
        device: &Device,
        rank: usize,
        ranks: usize,
        rendezvous: &str,
        options: GroupOptions,
    ) -> Result<NcclRank> {
        let begun = Instant::now();
        if !(1..=MAX_RANKS).contains(&ranks) {
            return Err(Error::Ranks { ranks, most: MAX_RANKS });
        }
        if rank >= ranks {
            return Err(Error::NoRank { rank, ranks });
        }
        if options.wire != Wire::F32 {
            return Err(unsupported("another format than f32 over NCCL"));
        }
        // What can be refused without the others is asked first.
        Nccl::version()?;
        let room = Room::new(device, ranks)?;
        let kernels = Kernels::new(device)?;
        let id = match rank {
            0 => {
                let id = NcclId::new()?;
                if ranks > 1 {
                    rendezvous::lead(rendezvous, ranks, id.bytes(), options.timeout)?;
                }
                id
            }
            _ => {
                let bytes = rendezvous::follow(rendezvous, rank, ranks, options.timeout)?;
                let bytes = bytes.try_into().map_err(|_| unsupported("a rank 0 that is not NCCL's"))?;
                NcclId::from_bytes(bytes)
            }
        };
        let nccl = Nccl::join(device, &id, rank, ranks)?;
        let made = NcclRank {
            nccl,
            kernels,
            device: device.clone(),
            rank,
            ranks,
            timeout: options.timeout,
            room: Mutex::new(room),
            charge: Mutex::default(),
            failed: Mutex::default(),
            calls: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        };
        while !made.nccl.is_ready()? {
            if begun.elapsed() > options.timeout {
                return Err(made.late("joining"));
            }
            std::thread::sleep(POLL);
        }
        Ok(made)
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes of the device's memory that it took for what goes through it to and from the host.
    pub fn bytes(&self) -> Bytes {
        self.room().memory.len()
    }

    /// Has a bank of the device count these bytes, while the rank is there.
    ///
    /// # Errors
    /// [`Error::Bank`] where its budget has no room for them.
    pub fn charge_to(&self, bank: &Bank, owner: &Owner) -> Result<()> {
        let charge = bank.charge(owner, self.bytes())?;
        *self.charge.lock().unwrap_or_else(PoisonError::into_inner) = Some(charge);
        Ok(())
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failure(&self) -> MutexGuard<'_, Option<Failure>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the rank: some other has not come.
    fn late(&self, call: &'static str) -> Error {
        let failure = self.failure().get_or_insert(Failure::Late(call)).clone();
        self.nccl.abort();
        self.error(failure)
    }

    fn error(&self, failure: Failure) -> Error {
        let (rank, ranks) = (self.rank, self.ranks);
        match failure {
            Failure::Aborted(why) => Error::Aborted { rank, ranks, why },
            Failure::Late(call) => {
                Error::TimedOut { rank, ranks, waited: self.timeout, missing: "the others".to_owned(), call }
            }
        }
    }

    fn check(&self) -> Result<()> {
        let failed = self.failure().clone();
        failed.map_or(Ok(()), |failure| Err(self.error(failure)))
    }

    /// What NCCL answered. After an error of its own the group is of no use.
    fn answer(&self, call: &'static str, answer: Result<(), granule_device::Error>) -> Result<()> {
        /// `ncclInProgress`.
        const LATE: u32 = 7;
        match answer {
            Ok(()) => Ok(()),
            Err(granule_device::Error::Nccl { code: LATE, .. }) => Err(self.late(call)),
            Err(error @ granule_device::Error::Nccl { .. }) => {
                // An abort may be why.
                self.check()?;
                self.abort(&error.to_string());
                Err(error.into())
            }
            Err(error) => Err(error.into()),
        }
    }

    fn count(&self, elements: usize) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.sent.fetch_add((elements * WORD) as u64, Ordering::Relaxed);
    }

    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank;
        (0..self.ranks).filter(move |other| *other != rank)
    }

    /// Bytes from one rank's part in scratch to the next one's, where each has so many elements.
    fn stride(elements: usize) -> usize {
        (elements * WORD).next_multiple_of(ALIGN)
    }

    /// Adds up this rank's part, `own` of `data`'s elements, of all ranks, and sends each other rank its part.
    ///
    /// # Safety
    /// As of [`Communicator::all_reduce_on`]; `out` has as many elements as the own part.
    unsafe fn reduce(
        &self,
        call: &'static str,
        stream: &Stream,
        data: DeviceSlice<'_>,
        parts: &[Range<usize>],
        out: DevicePtr,
        scratch: DeviceSliceMut<'_>,
    ) -> Result<()> {
        let own = parts[self.rank].len();
        let own_at = data.ptr().add(Bytes::from_usize(parts[self.rank].start * WORD));
        let mut exchange = Vec::new();
        let mut terms = vec![own_at; self.ranks];
        let mut rest = scratch;
        for other in self.others() {
            let theirs = &parts[other];
            if !theirs.is_empty() {
                let bytes = data.subslice(theirs.start * WORD..theirs.end * WORD)?;
                exchange.push(NcclPart::Send { to: other, bytes });
            }
            if own > 0 {
                let (place, behind) = rest.split_at(Self::stride(own))?;
                rest = behind;
                terms[other] = place.ptr();
                exchange.push(NcclPart::Receive { from: other, bytes: place.subslice(..own * WORD)? });
            }
        }
        // SAFETY: the caller's promise.
        self.answer(call, unsafe { self.nccl.exchange(stream, &mut exchange, self.timeout) })?;
        if own > 0 {
            // SAFETY: the terms are in memory that the caller promised, and come before it in the stream's order.
            unsafe { ranks::sum(&self.kernels, stream, &terms, out, own) }?;
        }
        Ok(())
    }

    /// Has every rank's part of `data` be everybody's.
    ///
    /// # Safety
    /// As of [`Communicator::all_reduce_on`].
    unsafe fn spread(
        &self,
        call: &'static str,
        stream: &Stream,
        data: DeviceSliceMut<'_>,
        parts: &[Range<usize>],
    ) -> Result<()> {
        let even = parts.iter().all(|part| part.len() == parts[0].len());
        if even && !parts[0].is_empty() {
            let own = &parts[self.rank];
            // SAFETY: of this rank's place in `data`, which NCCL then leaves as it is.
            let own = unsafe {
                let at = data.ptr().add(Bytes::from_usize(own.start * WORD));
                DeviceSlice::from_raw(at, own.len() * WORD, granule_device::Home::on(&self.device))
            };
            // SAFETY: the caller's promise.
            return self.answer(call, unsafe { self.nccl.all_gather(stream, own, data, self.timeout) });
        }
        let (at, mut rest, mut exchange) = (data.ptr(), data, Vec::new());
        for (rank, part) in parts.iter().enumerate() {
            let (place, behind) = rest.split_at(part.len() * WORD)?;
            rest = behind;
            if rank != self.rank && !part.is_empty() {
                exchange.push(NcclPart::Receive { from: rank, bytes: place });
            }
        }
        let own = &parts[self.rank];
        for to in self.others().filter(|_| !own.is_empty()) {
            let at = at.add(Bytes::from_usize(own.start * WORD));
            // SAFETY: of this rank's place in `data`, where nothing is received.
            let bytes = unsafe {
                DeviceSlice::from_raw(at, own.len() * WORD, granule_device::Home::on(&self.device))
            };
            exchange.push(NcclPart::Send { to, bytes });
        }
        // SAFETY: the caller's promise.
        self.answer(call, unsafe { self.nccl.exchange(stream, &mut exchange, self.timeout) })
    }

    /// # Safety
    /// As of [`Communicator::all_reduce_on`].
    unsafe fn all_reduce_parts(
        &self,
        stream: &Stream,
        mut data: DeviceSliceMut<'_>,
        scratch: DeviceSliceMut<'_>,
    ) -> Result<()> {
        const CALL: &str = "all_reduce";
        let elements = elements(data.len())?;
        let expected = self.scratch_bytes(elements);
        if scratch.len() < expected {
            return Err(Error::Size {
                what: "scratch",
                found: scratch.len() / WORD,
                expected: expected / WORD,
            });
        }
        let parts: Vec<_> = (0..self.ranks).map(|rank| slice(elements, rank, self.ranks)).collect();
        let out = data.ptr().add(Bytes::from_usize(parts[self.rank].start * WORD));
        // SAFETY: the caller's promise; the sum goes over the own term, which is nobody else's.
        unsafe {
            self.reduce(CALL, stream, data.as_slice(), &parts, out, scratch)?;
            self.spread(CALL, stream, data.reborrow(), &parts)
        }
    }

    /// Brings a piece of the host's memory to the device, has something done to it, and brings back `back` bytes of the answer.
    fn through(
        &self,
        send: &[f32],
        back: &mut [f32],
        with: &dyn Fn(&Stream, DeviceSliceMut<'_>, DeviceSliceMut<'_>) -> Result<()>,
    ) -> Result<()> {
        self.check()?;
        let mut room = self.room();
        let Room { memory, pinned, stream } = &mut *room;
        let (there, here) = (size_of_val(send), size_of_val(back));
        if there > 0 {
            let to = pinned.slice_mut(..there)?.into_host_mut().ok_or_else(host)?;
            to.copy_from_slice(bytemuck::cast_slice(send));
        }
        let mut run = || -> Result<()> {
            let (mut data, scratch) = memory.slice_mut(..)?.split_at(PIECE * WORD)?;
            // SAFETY: both are this rank's, and the stream is waited for before anybody touches them again.
            unsafe {
                if there > 0 {
                    stream.copy_slice(pinned.slice(..there)?, data.reborrow().subslice(..there)?)?;
                }
                with(stream, data.reborrow(), scratch)?;
                if here > 0 {
                    stream.copy_slice(data.as_slice().subslice(..here)?, pinned.slice_mut(..here)?)?;
                }
            }
            Ok(())
        };
        let done = run();
        let waited = self.wait_on(stream);
        if waited.is_err() {
            stream.wait_out()?;
        }
        done.and(waited)?;
        if here > 0 {
            let from = pinned.slice(..here)?.as_host().ok_or_else(host)?;
            bytemuck::cast_slice_mut(back).copy_from_slice(from);
        }
        Ok(())
    }

    fn check_counts(&self, counts: &[usize], own: usize, all: usize) -> Result<()> {
        let size = |what, found, expected| {
            if found == expected { Ok(()) } else { Err(Error::Size { what, found, expected }) }
        };
        size("counts of ranks", counts.len(), self.ranks)?;
        size("a rank's own part", own, counts[self.rank])?;
        size("all ranks' parts", all, counts.iter().sum())
    }

    fn check_root(&self, root: usize) -> Result<()> {
        if root < self.ranks { Ok(()) } else { Err(Error::NoRank { rank: root, ranks: self.ranks }) }
    }

    /// # Safety
    /// As of [`Communicator::broadcast_on`].
    unsafe fn send_all(
        &self,
        call: &'static str,
        stream: &Stream,
        root: usize,
        data: DeviceSliceMut<'_>,
    ) -> Result<()> {
        // SAFETY: the caller's promise.
        self.answer(call, unsafe { self.nccl.broadcast(stream, root, data, self.timeout) })
    }

    /// A broadcast of the host's memory, a piece at a time.
    fn send_all_host(&self, call: &'static str, root: usize, data: &mut [f32]) -> Result<()> {
        for piece in data.chunks_mut(PIECE) {
            let bytes = size_of_val(piece);
            let sent = piece.to_vec();
            let (send, back): (&[f32], &mut [f32]) =
                if root == self.rank { (&sent, &mut []) } else { (&[], piece) };
            self.through(send, back, &|stream, data, _| {
                // SAFETY: `through` waits for the stream.
                unsafe { self.send_all(call, stream, root, data.subslice(..bytes)?) }
            })?;
        }
        Ok(())
    }
}

fn host() -> Error {
    unsupported("pinned memory that the host does not reach")
}

fn elements(bytes: usize) -> Result<usize> {
    if bytes.is_multiple_of(WORD) {
        return Ok(bytes / WORD);
    }
    Err(unsupported("memory that is no whole number of f32"))
}

impl Room {
    fn new(device: &Device, ranks: usize) -> Result<Room> {
        let bytes = Bytes::from_usize(PIECE * WORD + scratch_bytes(PIECE, ranks));
        let (memory, pinned) = (device.alloc(bytes)?, device.alloc_pinned(Bytes::from_usize(PIECE * WORD))?);
        Ok(Room { memory, pinned, stream: device.stream()? })
    }
}

/// The longest slice, that of rank 0, once for every other rank.
fn scratch_bytes(elements: usize, ranks: usize) -> usize {
    NcclRank::stride(slice(elements, 0, ranks).len()) * (ranks - 1)
}

impl Communicator for NcclRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn describe(&self) -> String {
        "over NCCL".to_owned()
    }

    fn traffic(&self) -> Traffic {
        Traffic { calls: self.calls.load(Ordering::Relaxed), sent: self.sent.load(Ordering::Relaxed) }
    }

    fn abort(&self, why: &str) {
        self.failure().get_or_insert_with(|| Failure::Aborted(why.to_owned()));
        self.nccl.abort();
    }

    fn all_reduce(&self, data: &mut [f32]) -> Result<()> {
        self.check()?;
        self.count(all_reduce_elements_in_pieces(data.len(), self.rank, self.ranks));
        if self.ranks == 1 {
            return Ok(());
        }
        for piece in data.chunks_mut(PIECE) {
            let bytes = size_of_val(piece);
            let sent = piece.to_vec();
            self.through(&sent, piece, &|stream, data, scratch| {
                // SAFETY: `through` waits for the stream.
                unsafe { self.all_reduce_parts(stream, data.subslice(..bytes)?, scratch) }
            })?;
        }
        Ok(())
    }

    fn all_gather(&self, own: &[f32], counts: &[usize], all: &mut [f32]) -> Result<()> {
        self.check()?;
        self.check_counts(counts, own.len(), all.len())?;
        self.count(own.len() * (self.ranks - 1));
        let mut rest = all;
        for (rank, &count) in counts.iter().enumerate() {
            let (part, behind) = rest.split_at_mut(count);
            rest = behind;
            if rank == self.rank {
                part.copy_from_slice(own);
            }
            if self.ranks > 1 {
                self.send_all_host("all_gather", rank, part)?;
            }
        }
        Ok(())
    }

    fn reduce_scatter(&self, data: &[f32], counts: &[usize], own: &mut [f32]) -> Result<()> {
        self.check()?;
        self.check_counts(counts, own.len(), data.len())?;
        self.count(data.len() - own.len());
        // A rank's sums at a time, in pieces whose terms fit into the scratch.
        let most = slice(PIECE, 0, self.ranks).len();
        let (mut begin, mut mine) = (0, own);
        for (rank, &count) in counts.iter().enumerate() {
            let part = &data[begin..begin + count];
            begin += count;
            for piece in part.chunks(most) {
                let len = piece.len();
                let parts: Vec<_> =
                    (0..self.ranks).map(|other| if other == rank { 0..len } else { 0..0 }).collect();
                let (back, behind) = mine.split_at_mut(if rank == self.rank { len } else { 0 });
                self.through(piece, back, &|stream, data, scratch| {
                    let data = data.subslice(..len * WORD)?;
                    // SAFETY: `through` waits for the stream.
                    unsafe {
                        self.reduce("reduce_scatter", stream, data.as_slice(), &parts, data.ptr(), scratch)
                    }
                })?;
                mine = behind;
            }
        }
        Ok(())
    }

    fn broadcast(&self, root: usize, data: &mut [f32]) -> Result<()> {
        self.check()?;
        self.check_root(root)?;
        self.count(if root == self.rank { data.len() * (self.ranks - 1) } else { 0 });
        if self.ranks == 1 { Ok(()) } else { self.send_all_host("broadcast", root, data) }
    }

    fn scratch_bytes(&self, elements: usize) -> usize {
        scratch_bytes(elements, self.ranks)
    }

    unsafe fn all_reduce_on(
        &self,
        stream: &Stream,
        data: DeviceSliceMut<'_>,
        scratch: DeviceSliceMut<'_>,
    ) -> Result<()> {
        self.check()?;
        self.count(all_reduce_elements(elements(data.len())?, self.rank, self.ranks));
        if self.ranks == 1 {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.all_reduce_parts(stream, data, scratch) }
    }

    unsafe fn all_gather_on(
        &self,
        stream: &Stream,
        own: DeviceSlice<'_>,
        counts: &[usize],
        mut all: DeviceSliceMut<'_>,
    ) -> Result<()> {
        self.check()?;
        self.check_counts(counts, elements(own.len())?, elements(all.len())?)?;
        self.count(elements(own.len())? * (self.ranks - 1));
        let mut parts = Vec::with_capacity(counts.len());
        let mut begin = 0;
        for count in counts {
            parts.push(begin..begin + count);
            begin += count;
        }
        let place = &parts[self.rank];
        let to = all.reborrow().subslice(place.start * WORD..place.end * WORD)?;
        if !own.is_empty() && own.ptr() != to.ptr() {
            // SAFETY: the caller's promise.
            unsafe { stream.copy_slice(own, to) }?;
        }
        // SAFETY: as above.
        if self.ranks == 1 { Ok(()) } else { unsafe { self.spread("all_gather", stream, all, &parts) } }
    }

    unsafe fn broadcast_on(&self, stream: &Stream, root: usize, data: DeviceSliceMut<'_>) -> Result<()> {
        self.check()?;
        self.check_root(root)?;
        let sent = elements(data.len())? * (self.ranks - 1);
        self.count(if root == self.rank { sent } else { 0 });
        if self.ranks == 1 || data.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller's promise.
        unsafe { self.send_all("broadcast", stream, root, data) }
    }

    fn wait_on(&self, stream: &Stream) -> Result<()> {
        let begun = Instant::now();
        let passed = stream.record()?;
        while !passed.is_done() {
            self.check()?;
            self.answer("wait", self.nccl.is_ready().map(drop))?;
            if begun.elapsed() > self.timeout {
                return Err(self.late("wait"));
            }
            std::thread::sleep(POLL);
        }
        self.check()?;
        Ok(stream.synchronize()?)
    }
}

/// What a rank sends in an all-reduce of the host's memory, which is one for every piece.
fn all_reduce_elements_in_pieces(elements: usize, rank: usize, ranks: usize) -> usize {
    let whole = elements / PIECE;
    whole * all_reduce_elements(PIECE, rank, ranks) + all_reduce_elements(elements % PIECE, rank, ranks)
}

impl Drop for NcclRank {
    /// Streams must not wait for others for ever, nor hold the group.
    fn drop(&mut self) {
        self.nccl.abort();
    }
}

impl fmt::Debug for NcclRank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NcclRank({} of {} on {})", self.rank, self.ranks, self.device.name())
    }
}
