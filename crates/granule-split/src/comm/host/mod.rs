//! The ranks are threads of one process, and what they reduce lies in the host's memory.
//!
//! Nobody's numbers are copied to be sent: a rank says where they lie, and waits until all have. Of an all-reduce each rank then adds up
//! its slice of everybody's numbers, in the order of the ranks, where its own lie; all wait; each copies the other slices from
//! those who have them; and all wait once more, so that nobody goes away with memory that others still read.

mod meeting;
mod sum;
mod sync;

use std::fmt;
use std::ops::Range;
use std::slice;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use half::bf16;

pub(crate) use meeting::{Meeting, Visit};

use super::slices::{self, all_reduce_elements};
use super::wire::{self, Wire};
use super::{Communicator, Traffic};
use crate::error::{Error, Result};
use crate::plan::MAX_RANKS;

/// How the ranks of a group deal with one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupOptions {
    /// The longest that a rank waits for the others in one call: then its call fails, and all others' do. It must be longer than ranks are
    /// apart, who may be computing a long prompt's layer with uneven shares.
    pub timeout: Duration,
    /// What numbers that are added up are on their way.
    pub wire: Wire,
}

impl Default for GroupOptions {
    /// A minute, and numbers as they are.
    fn default() -> Self {
        Self { timeout: Duration::from_secs(60), wire: Wire::F32 }
    }
}

/// The ranks of a new group: one for each of as many threads, 1 to [`MAX_RANKS`].
///
/// A rank that is dropped, and so also one whose thread panics with it, is gone: the others' calls fail from then on, with
/// [`Error::Aborted`]. Where a rank only stays away, the others' fail within [`GroupOptions::timeout`].
///
/// ```
/// use granule_split::comm::{Communicator, GroupOptions, host_group};
///
/// let ranks = host_group(2, GroupOptions::default())?;
/// std::thread::scope(|scope| {
///     for rank in &ranks {
///         scope.spawn(move || {
///             let mut x = [1.0, 10.0 * rank.rank() as f32];
///             rank.all_reduce(&mut x)?;
///             assert_eq!(x, [2.0, 10.0]);
///             Ok::<(), granule_split::Error>(())
///         });
///     }
/// });
/// assert_eq!(ranks[0].traffic().sent, 8);
/// # Ok::<(), granule_split::Error>(())
/// ```
///
/// # Errors
/// [`Error::Unsupported`] of no ranks, or too many.
pub fn host_group(ranks: usize, options: GroupOptions) -> Result<Vec<HostRank>> {
    if !(1..=MAX_RANKS).contains(&ranks) {
        return Err(Error::Unsupported {
            what: format!("a group of {ranks} ranks in one process: 1 to {MAX_RANKS} are"),
        });
    }
    let group = Arc::new(Group {
        meeting: Meeting::new(ranks, options.timeout),
        wire: options.wire,
        boards: (0..ranks).map(|_| Board::default()).collect(),
    });
    Ok((0..ranks).map(|rank| HostRank::new(Arc::clone(&group), rank)).collect())
}

/// What the ranks share.
struct Group {
    meeting: Meeting,
    wire: Wire,
    boards: Box<[Board]>,
}

/// What a rank tells the others of its call; it stays until all of them are through with it.
#[repr(align(128))]
#[derive(Default)]
struct Board {
    /// Which collective, as its place in [`CALLS`].
    call: AtomicUsize,
    /// Its data, of f32, or of bf16 where that is the wire's format.
    data: AtomicPtr<u8>,
    /// How many elements.
    len: AtomicUsize,
    /// Where the rank's own part begins and ends, or who sends.
    begin: AtomicUsize,
    end: AtomicUsize,
}

const CALLS: [&str; 7] = [
    "all_reduce",
    "all_gather",
    "reduce_scatter",
    "broadcast",
    "all_reduce_on",
    "all_gather_on",
    "broadcast_on",
];
const ALL_REDUCE: usize = 0;
const ALL_GATHER: usize = 1;
const REDUCE_SCATTER: usize = 2;
const BROADCAST: usize = 3;
/// Those in the memory of devices that reach each other.
#[cfg(feature = "cuda")]
pub(super) const ALL_REDUCE_ON: usize = 4;
#[cfg(feature = "cuda")]
pub(super) const ALL_GATHER_ON: usize = 5;
#[cfg(feature = "cuda")]
pub(super) const BROADCAST_ON: usize = 6;

/// One rank of a group in one process: see [`host_group`].
pub struct HostRank {
    group: Arc<Group>,
    rank: usize,
    calls: AtomicU64,
    sent: AtomicU64,
    /// What goes to the others rounded, kept for the next call.
    rounded: Mutex<Vec<bf16>>,
}

impl fmt::Debug for HostRank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostRank").field("rank", &self.rank).field("ranks", &self.ranks()).finish()
    }
}

impl Drop for HostRank {
    fn drop(&mut self) {
        let how = if std::thread::panicking() { "its thread panicked" } else { "it is gone" };
        self.group.meeting.end(self.rank, how);
    }
}

impl HostRank {
    fn new(group: Arc<Group>, rank: usize) -> Self {
        Self { group, rank, calls: AtomicU64::new(0), sent: AtomicU64::new(0), rounded: Mutex::default() }
    }

    /// The data as it goes to the others, where that is not as it is.
    fn rounded(&self, data: &[f32]) -> Option<MutexGuard<'_, Vec<bf16>>> {
        if self.group.wire == Wire::F32 || self.ranks() == 1 {
            return None;
        }
        let mut rounded = self.rounded.lock().unwrap_or_else(PoisonError::into_inner);
        rounded.resize(data.len(), bf16::ZERO);
        wire::narrow(data, &mut rounded);
        Some(rounded)
    }

    /// Runs a collective, counts it, and has the others know where it fails.
    fn collective(
        &self,
        call: usize,
        sent: usize,
        run: impl FnOnce(&mut Visit<'_>) -> Result<()>,
    ) -> Result<()> {
        self.collective_or(call, sent, run, || ())
    }

    /// The same with something to be done where it fails, when nobody is at this rank's memory any more.
    pub(super) fn collective_or(
        &self,
        call: usize,
        sent: usize,
        run: impl FnOnce(&mut Visit<'_>) -> Result<()>,
        failed: impl FnOnce(),
    ) -> Result<()> {
        let mut visit = self.group.meeting.enter(self.rank, CALLS[call])?;
        let done = run(&mut visit);
        if let Err(error) = &done {
            visit.fail(error);
            failed();
        } else {
            self.calls.fetch_add(1, Ordering::Relaxed);
            self.sent.fetch_add(sent as u64, Ordering::Relaxed);
        }
        visit.done();
        done
    }

    /// Tells the others of a call, waits until all have told, and sees that they go together: `part` is each rank's own part.
    pub(super) fn tell(
        &self,
        visit: &mut Visit<'_>,
        call: usize,
        data: *mut u8,
        len: usize,
        part: impl Fn(usize) -> Range<usize>,
    ) -> Result<()> {
        let own = &self.group.boards[self.rank];
        own.call.store(call, Ordering::Relaxed);
        own.data.store(data, Ordering::Relaxed);
        own.len.store(len, Ordering::Relaxed);
        own.begin.store(part(self.rank).start, Ordering::Relaxed);
        own.end.store(part(self.rank).end, Ordering::Relaxed);
        visit.meet()?;
        for (rank, board) in self.group.boards.iter().enumerate() {
            let other = board.call.load(Ordering::Relaxed);
            if other != call {
                let (own, other) = (CALLS[call], CALLS[other]);
                return Err(Error::Calls { rank: self.rank, own, other_rank: rank, other });
            }
            let sizes = [
                ("another rank's data", &board.len, len),
                ("what is before another rank's part", &board.begin, part(rank).start),
                ("what is before the end of another rank's part", &board.end, part(rank).end),
            ];
            for (what, found, expected) in sizes {
                let found = found.load(Ordering::Relaxed);
                if found != expected {
                    return Err(Error::Size { what, found, expected });
                }
            }
        }
        Ok(())
    }

    /// Where a rank's data lies, once all have told.
    fn data<T>(&self, rank: usize) -> *mut T {
        self.group.boards[rank].data.load(Ordering::Relaxed).cast()
    }

    fn parts<T>(&self) -> impl Iterator<Item = *const T> + Clone {
        (0..self.ranks()).map(|rank| self.data::<T>(rank).cast_const())
    }

    fn all_reduce_f32(&self, visit: &mut Visit<'_>, data: *mut f32, len: usize) -> Result<()> {
        self.tell(visit, ALL_REDUCE, data.cast(), len, |_| 0..0)?;
        let ranks = self.ranks();
        let own = slices::slice(len, self.rank, ranks);
        // SAFETY: all parts have `len` elements, and their ranks stay in this call while this one reads. Of these elements
        // only this rank touches anything now: each has a slice of its own, of all parts.
        visit.read(|| unsafe { sum::f32(self.parts(), own.clone(), data.add(own.start)) })?;
        visit.meet()?;
        visit.read(|| {
            for (rank, from) in self.parts::<f32>().enumerate().filter(|(rank, _)| *rank != self.rank) {
                let slice = slices::slice(len, rank, ranks);
                // SAFETY: within both, which are different ranks' memory. Of another rank's memory only the slice that it has summed is
                // read, which it leaves alone now; of this rank's that same slice is read by nobody.
                unsafe { from.add(slice.start).copy_to_nonoverlapping(data.add(slice.start), slice.len()) };
            }
        })?;
        visit.meet()
    }

    /// `sent` has as many elements as `data`.
    fn all_reduce_bf16(&self, visit: &mut Visit<'_>, data: &mut [f32], sent: *mut bf16) -> Result<()> {
        let (len, ranks) = (data.len(), self.ranks());
        self.tell(visit, ALL_REDUCE, sent.cast(), len, |_| 0..0)?;
        let own = slices::slice(len, self.rank, ranks);
        visit.read(|| {
            // SAFETY: as of f32: all parts have `len` elements and stay, and these of them are this rank's alone now. The tile that
            // is written back has been read.
            unsafe {
                sum::bf16(self.parts(), own.clone(), |at, sums| {
                    wire::narrow(sums, slice::from_raw_parts_mut(sent.add(own.start + at), sums.len()));
                });
            }
        })?;
        visit.meet()?;
        visit.read(|| {
            for (rank, from) in self.parts::<bf16>().enumerate() {
                let range = slices::slice(len, rank, ranks);
                // SAFETY: within that rank's memory, of which it leaves alone the slice that it has summed.
                let from = unsafe { slice::from_raw_parts(from.add(range.start), range.len()) };
                wire::widen(from, &mut data[range]);
            }
        })?;
        visit.meet()
    }

    /// Fails of counts that are not this group's, or do not go with what this rank has; otherwise where each rank's part begins.
    pub(super) fn begins(
        &self,
        counts: &[usize],
        own: usize,
        all: usize,
        what: [&'static str; 2],
    ) -> Result<[usize; MAX_RANKS + 1]> {
        let mut begins = [0; MAX_RANKS + 1];
        let sum = counts.iter().try_fold(0_usize, |sum, count| sum.checked_add(*count));
        let expected = [self.ranks(), *counts.get(self.rank).unwrap_or(&0), sum.unwrap_or(usize::MAX)];
        let found = [counts.len(), own, all];
        for (what, (found, expected)) in
            ["counts", what[0], what[1]].into_iter().zip(found.into_iter().zip(expected))
        {
            if found != expected {
                return Err(Error::Size { what, found, expected });
            }
        }
        for (rank, count) in counts.iter().enumerate() {
            begins[rank + 1] = begins[rank] + count;
        }
        Ok(begins)
    }
}

impl Communicator for HostRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.group.meeting.ranks()
    }

    fn describe(&self) -> String {
        "between threads".to_owned()
    }

    fn traffic(&self) -> Traffic {
        Traffic { calls: self.calls.load(Ordering::Relaxed), sent: self.sent.load(Ordering::Relaxed) }
    }

    fn abort(&self, why: &str) {
        self.group.meeting.end(self.rank, why);
    }

    fn recover(&self) -> Result<()> {
        self.group.meeting.recover();
        Ok(())
    }

    fn all_reduce(&self, data: &mut [f32]) -> Result<()> {
        let len = data.len();
        // Given back when the call is over, for all.
        let mut rounded = self.rounded(data);
        let sent = all_reduce_elements(len, self.rank, self.ranks()) * self.group.wire.bytes();
        self.collective(ALL_REDUCE, sent, |visit| match &mut rounded {
            Some(rounded) => self.all_reduce_bf16(visit, data, rounded.as_mut_ptr()),
            None => self.all_reduce_f32(visit, data.as_mut_ptr(), len),
        })
    }

    fn all_gather(&self, own: &[f32], counts: &[usize], all: &mut [f32]) -> Result<()> {
        let sent = size_of_val(own) * (self.ranks() - 1);
        self.collective(ALL_GATHER, sent, |visit| {
            let begins = self.begins(counts, own.len(), all.len(), ["the rank's own part", "all parts"])?;
            self.tell(visit, ALL_GATHER, own.as_ptr().cast_mut().cast(), all.len(), |rank| {
                begins[rank]..begins[rank + 1]
            })?;
            visit.read(|| {
                for (rank, from) in self.parts::<f32>().enumerate() {
                    let range = begins[rank]..begins[rank + 1];
                    // SAFETY: all ranks have the same begins and ends, so that one's part has as many elements; it stays, and is only
                    // read, until all have met again.
                    all[range.clone()].copy_from_slice(unsafe { slice::from_raw_parts(from, range.len()) });
                }
            })?;
            visit.meet()
        })
    }

    fn reduce_scatter(&self, data: &[f32], counts: &[usize], own: &mut [f32]) -> Result<()> {
        // Given back when the call is over, for all.
        let rounded = self.rounded(data);
        let sent = data.len().saturating_sub(own.len()) * self.group.wire.bytes();
        self.collective(REDUCE_SCATTER, sent, |visit| {
            let begins = self.begins(counts, own.len(), data.len(), ["the rank's own part", "all parts"])?;
            let range: Range<usize> = begins[self.rank]..begins[self.rank + 1];
            let sent: *const u8 =
                rounded.as_ref().map_or(data.as_ptr().cast(), |rounded| rounded.as_ptr().cast());
            self.tell(visit, REDUCE_SCATTER, sent.cast_mut(), data.len(), |rank| {
                begins[rank]..begins[rank + 1]
            })?;
            visit.read(|| {
                // SAFETY: all parts are as long, stay, and are only read until all have met again; `own` is this rank's alone.
                unsafe {
                    if rounded.is_some() {
                        sum::bf16(self.parts(), range, |at, sums| {
                            own[at..at + sums.len()].copy_from_slice(sums);
                        });
                    } else {
                        sum::f32(self.parts(), range, own.as_mut_ptr());
                    }
                }
            })?;
            visit.meet()
        })
    }

    fn broadcast(&self, root: usize, data: &mut [f32]) -> Result<()> {
        let len = data.len();
        let sent = if root == self.rank { size_of_val(data) * (self.ranks() - 1) } else { 0 };
        self.collective(BROADCAST, sent, |visit| {
            if root >= self.ranks() {
                return Err(Error::Size {
                    what: "ranks up to the root",
                    found: root,
                    expected: self.ranks() - 1,
                });
            }
            let data = data.as_mut_ptr();
            self.tell(visit, BROADCAST, data.cast(), len, |_| root..root)?;
            if root != self.rank {
                // SAFETY: the root's data has as many elements, stays, and is only read until all have met again; this rank's is
                // another, and read by nobody.
                visit.read(|| unsafe { self.data::<f32>(root).copy_to_nonoverlapping(data, len) })?;
            }
            visit.meet()
        })
    }
}
