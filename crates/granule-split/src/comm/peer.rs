//! The ranks are GPUs of one process that reach each other's memory, and what they reduce stays where it is.
//!
//! An all-reduce is two kernels on each rank's stream: it adds up its slice of all ranks' numbers, read from where they lie, over its own;
//! then it copies the other slices from those who have them. Before each, and once more at the end, streams wait for one
//! another by events, which the ranks' threads hand over where they meet. So no stream ever waits for work that has not been given yet,
//! and a rank that is missing leaves no GPU waiting.
//!
//! Where a call fails, kernels of others that were given may still read this rank's memory: its stream is made to wait for
//! them, so that the memory is free when the stream has passed, as where it goes well.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use granule_device::{Bytes, Device, DeviceKind, DevicePtr, DeviceSlice, DeviceSliceMut, Event, Stream};
use granule_ops::{Kernels, ranks};

use super::host::{ALL_GATHER_ON, ALL_REDUCE_ON, BROADCAST_ON, GroupOptions, HostRank, Visit, host_group};
use super::slices::{all_reduce_elements, slice};
use super::wire::Wire;
use super::{Communicator, Traffic, unsupported};
use crate::error::{Error, Result};

const WORD: usize = size_of::<f32>();

/// Points of a rank's stream in a call.
const MARKS: usize = 3;
/// What it has is there.
const GIVEN: usize = 0;
/// Its slice is added up.
const SUMMED: usize = 1;
/// It reads others' memory no more.
const PASSED: usize = 2;

/// What a rank shows the others.
#[derive(Debug, Default)]
struct Side {
    at: Option<DevicePtr>,
    marks: [Option<Event>; MARKS],
}

/// One rank of a group of GPUs in one process: see [`peer_group`].
#[derive(Debug)]
pub struct PeerRank {
    host: HostRank,
    kernels: Kernels,
    sides: Arc<[Mutex<Side>]>,
}

/// Whether all of them are GPUs, several, that reach each other.
pub(super) fn reach_each_other(devices: &[&Device]) -> Result<bool> {
    for a in devices {
        for b in devices {
            if a.kind() != DeviceKind::Cuda || !a.can_access_peer(b)? {
                return Ok(false);
            }
        }
    }
    Ok(devices.len() > 1)
}

/// The ranks of a new group: one for each of these CUDA devices, which are made to reach each other's memory. The halves for the
/// host's memory are those of [`host_group`]; between devices numbers go as they are.
///
/// ```no_run
/// use granule_device::Device;
/// use granule_split::comm::{Communicator, GroupOptions, peer_group};
///
/// let (a, b) = (Device::cuda(0)?, Device::cuda(1)?);
/// let ranks = peer_group(&[&a, &b], GroupOptions::default())?;
/// assert_eq!(ranks[1].describe(), "between GPUs that reach each other");
/// # Ok::<(), granule_split::Error>(())
/// ```
///
/// # Errors
/// [`Error::Device`] where two of them do not reach each other, or one is none of CUDA's; [`Error::Unsupported`] of another wire than
/// [`Wire::F32`]; as [`host_group`].
pub fn peer_group(devices: &[&Device], options: GroupOptions) -> Result<Vec<PeerRank>> {
    if options.wire != Wire::F32 {
        return Err(unsupported("another format than f32 between GPUs that reach each other"));
    }
    for a in devices {
        for b in devices.iter().filter(|b| !b.is_same(a)) {
            a.enable_peer_access(b)?;
        }
    }
    let sides: Arc<[Mutex<Side>]> = devices.iter().map(|_| Mutex::default()).collect();
    let hosts = host_group(devices.len(), options)?.into_iter().zip(devices);
    hosts
        .map(|(host, device)| {
            Ok(PeerRank { host, kernels: Kernels::new(device)?, sides: Arc::clone(&sides) })
        })
        .collect()
}

impl PeerRank {
    fn side(&self, rank: usize) -> MutexGuard<'_, Side> {
        self.sides[rank].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn others(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.ranks()).filter(|rank| *rank != self.rank())
    }

    /// Where all ranks' memory is, once all have told.
    fn places(&self) -> Result<Vec<DevicePtr>> {
        let places = (0..self.ranks()).map(|rank| self.side(rank).at);
        places.collect::<Option<_>>().ok_or_else(|| unsupported("a rank that has told of no memory"))
    }

    /// Puts a point behind what the stream was given. Where that fails the stream is waited for: nobody could.
    fn mark(&self, stream: &Stream, mark: usize) -> Result<()> {
        match stream.record() {
            Ok(event) => {
                self.side(self.rank()).marks[mark] = Some(event);
                Ok(())
            }
            Err(error) => {
                stream.wait_out()?;
                Err(error.into())
            }
        }
    }

    /// Has the stream wait for the others to have come to a point of this call.
    fn wait(&self, stream: &Stream, mark: usize) -> Result<()> {
        for rank in self.others() {
            let event = self.side(rank).marks[mark].clone();
            stream.wait_for_peer(&event.ok_or_else(|| unsupported("a point that was not reached"))?)?;
        }
        Ok(())
    }

    /// Has the stream wait for all that others were given in this call, or earlier; in the host where it cannot.
    fn settle(&self, stream: &Stream) {
        for rank in self.others() {
            let marks = self.side(rank).marks.clone();
            for event in marks.into_iter().flatten() {
                if stream.wait_for_peer(&event).is_err() {
                    event.synchronize();
                }
            }
        }
    }

    /// Tells the others of what this rank alone knows to be wrong.
    fn told<T>(&self, checked: Result<T>) -> Result<T> {
        checked.inspect_err(|error| self.abort(&error.to_string()))
    }

    /// Runs a collective in which this rank has something of `elements` f32 at `at`, and `part` is each rank's own part of them.
    fn run(
        &self,
        (call, sent): (usize, usize),
        stream: &Stream,
        (at, elements): (DevicePtr, usize),
        part: impl Fn(usize) -> std::ops::Range<usize>,
        run: impl FnOnce(&mut Visit<'_>) -> Result<()>,
    ) -> Result<()> {
        let begin = |visit: &mut Visit<'_>| {
            if !stream.device().is_same(self.kernels.device()) {
                return Err(granule_device::Error::OtherDevice { what: "a stream" }.into());
            }
            self.side(self.rank()).at = Some(at);
            self.mark(stream, GIVEN)?;
            self.host.tell(visit, call, std::ptr::null_mut(), elements, part)?;
            run(visit)?;
            visit.meet()?;
            // What was read may be written again from here on.
            self.wait(stream, PASSED)
        };
        self.host.collective_or(call, sent, begin, || self.settle(stream))
    }

    /// One step of a collective: something that is given to the stream when the others' streams have come to a point, and a point
    /// behind it.
    fn step(
        &self,
        visit: &Visit<'_>,
        stream: &Stream,
        (after, mark): (usize, usize),
        give: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        visit.read(|| {
            self.wait(stream, after)?;
            give()?;
            self.mark(stream, mark)
        })?
    }
}

/// How many f32 a memory is.
fn elements(what: &'static str, bytes: usize) -> Result<usize> {
    match bytes % WORD {
        0 => Ok(bytes / WORD),
        _ => Err(Error::Size { what, found: bytes, expected: bytes / WORD * WORD }),
    }
}

fn ahead(at: DevicePtr, elements: usize) -> DevicePtr {
    at.add(Bytes::from_usize(elements * WORD))
}

impl Communicator for PeerRank {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn ranks(&self) -> usize {
        self.host.ranks()
    }

    fn describe(&self) -> String {
        "between GPUs that reach each other".to_owned()
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
        let (at, ranks) = (data.ptr(), self.ranks());
        let n = self.told(elements("bytes to be added up", data.len()))?;
        let sent = all_reduce_elements(n, self.rank(), ranks) * WORD;
        self.run(
            (ALL_REDUCE_ON, sent),
            stream,
            (at, n),
            |_| 0..0,
            |visit| {
                let places = self.places()?;
                let begins: Vec<usize> =
                    (0..ranks).map(|rank| slice(n, rank, ranks).start).chain([n]).collect();
                let parts: Vec<_> =
                    places.iter().zip(&begins).map(|(at, begin)| ahead(*at, *begin)).collect();
                let own = slice(n, self.rank(), ranks);
                let terms: Vec<_> = places.iter().map(|at| ahead(*at, own.start)).collect();
                self.step(visit, stream, (GIVEN, SUMMED), || {
                    // SAFETY: all ranks have so many elements, which stay until their streams have passed the call, and that is not before
                    // this one has. Of all parts only this rank touches its slice now.
                    Ok(unsafe { ranks::sum(&self.kernels, stream, &terms, ahead(at, own.start), own.len()) }?)
                })?;
                visit.meet()?;
                self.step(visit, stream, (SUMMED, PASSED), || {
                    // SAFETY: as above; each rank's own slice is only read now, and the others of this rank's are read by nobody.
                    Ok(unsafe { ranks::gather(&self.kernels, stream, &parts, &begins, at) }?)
                })
            },
        )
    }

    unsafe fn all_gather_on(
        &self,
        stream: &Stream,
        own: DeviceSlice<'_>,
        counts: &[usize],
        all: DeviceSliceMut<'_>,
    ) -> Result<()> {
        let part = self.told(elements("bytes of an own part", own.len()))?;
        let whole = self.told(elements("bytes of all parts", all.len()))?;
        let begins = self.host.begins(counts, part, whole, ["the rank's own part", "all parts"]);
        let begins = self.told(begins)?;
        let begins = &begins[..=self.ranks()];
        let sent = own.len() * (self.ranks() - 1);
        let parts = |rank: usize| begins[rank]..begins[rank + 1];
        self.run((ALL_GATHER_ON, sent), stream, (own.ptr(), whole), parts, |visit| {
            let places = self.places()?;
            self.step(visit, stream, (GIVEN, PASSED), || {
                // SAFETY: all ranks have the same begins, so their parts are as long; they stay as in `all_reduce_on`, and are only
                // read. All of them together is this rank's own.
                Ok(unsafe { ranks::gather(&self.kernels, stream, &places, begins, all.ptr()) }?)
            })
        })
    }

    unsafe fn broadcast_on(&self, stream: &Stream, root: usize, data: DeviceSliceMut<'_>) -> Result<()> {
        let n = self.told(elements("bytes to be sent", data.len()))?;
        let at = data.ptr();
        if root >= self.ranks() {
            return Err(Error::Size {
                what: "ranks up to the root",
                found: root,
                expected: self.ranks() - 1,
            });
        }
        let sent = if root == self.rank() { data.len() * (self.ranks() - 1) } else { 0 };
        self.run(
            (BROADCAST_ON, sent),
            stream,
            (at, n),
            |_| root..root,
            |visit| {
                let from = self.places()?[root];
                self.step(visit, stream, (GIVEN, PASSED), || {
                    // SAFETY: the root has as many elements, which stay as in `all_reduce_on` and are only read; on the root they lie where
                    // they go.
                    Ok(unsafe { ranks::gather(&self.kernels, stream, &[from], &[0, n], at) }?)
                })
            },
        )
    }
}
