//! The ranks are processes that an MPI library started, on one machine or several, and what they reduce lies in the host's memory.
//!
//! Of the library only messages from rank to rank are used, that do not wait, and are asked whether they are done until the time is
//! up: its own collectives add in an order of their own, and wait for a dead rank for ever. Numbers are added in the
//! order of the ranks, so that the bits are those of [`host_group`](super::host_group).
//!
//! A message's memory must stay until the library is done with it, which after a failure may be never. So numbers go by way of memory of
//! the link's own, which is left to the library then; it is a copy more, in the cache.

mod link;
mod universe;

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use half::bf16;

use self::link::{Asked, Link, Number};
use self::universe::Begun;
use super::slices::{all_reduce_elements, slice};
use super::{Communicator, GroupOptions, Traffic, Wire};
use crate::error::{Error, Result};

const ALL_REDUCE: usize = 0;
const ALL_GATHER: usize = 1;
const REDUCE_SCATTER: usize = 2;
const BROADCAST: usize = 3;
const THE_END: usize = 4;

/// This process as a rank of those that `mpirun` started.
///
/// A rank that is dropped waits for the others to be dropped too, for no longer than [`GroupOptions::timeout`], and then ends MPI; after a
/// failure it leaves MPI as it is, since ending it would wait for ranks that may be dead. The process should then end with
/// a status that is not 0: `mpirun` stops those that are left.
pub struct MpiRank {
    link: Mutex<Link>,
    asked: Asked,
    rank: usize,
    ranks: usize,
    wire: Wire,
    calls: AtomicU64,
    sent: AtomicU64,
    /// Taken by the drop.
    begun: Option<Begun>,
}

impl fmt::Debug for MpiRank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MpiRank").field("rank", &self.rank).field("ranks", &self.ranks).finish()
    }
}

impl MpiRank {
    /// Begins MPI, waits for all ranks to have begun, and is one of them. A process that no `mpirun` started is the only one.
    ///
    /// Once in a process, and not where something else has begun MPI.
    ///
    /// # Errors
    /// [`Error::Mpi`] where MPI has been begun, refuses, or not all ranks come within the time-out; [`Error::Unsupported`]
    /// of a library that only one thread may call.
    pub fn new(options: GroupOptions) -> Result<MpiRank> {
        let GroupOptions { timeout, wire } = options;
        let (begun, world) = universe::begin(timeout)?;
        let (rank, ranks) = (world.rank, world.ranks);
        Ok(MpiRank {
            link: Mutex::new(Link::new(world, timeout)),
            asked: Asked::default(),
            rank,
            ranks,
            wire,
            calls: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            begun: Some(begun),
        })
    }

    /// The library's name and version, as it says.
    pub fn library() -> String {
        let name = ::mpi::environment::library_version().unwrap_or_default();
        name.trim_end_matches(['\0', '\n', ' ']).to_owned()
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a collective, counts it, and has the others know where it fails.
    fn collective(&self, bytes: usize, run: impl FnOnce(&mut Link) -> Result<()>) -> Result<()> {
        let mut link = self.link();
        let done = link.check().and_then(|()| run(&mut link));
        match &done {
            Ok(()) => {
                self.calls.fetch_add(1, Ordering::Relaxed);
                self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            Err(Error::Aborted { rank, why, .. }) if *rank == self.rank => link.end(why),
            Err(error) => link.end(&error.to_string()),
        }
        drop(link);
        self.heed();
        done
    }

    /// Ends the group if somebody asked for it. Who is in a call does so by itself, then or when it leaves.
    fn heed(&self) {
        if let (Some(why), Ok(mut link)) = (self.asked.why(), self.link.try_lock()) {
            link.end(&why);
        }
    }

    fn others(&self) -> impl Iterator<Item = usize> + Clone + use<> {
        let own = self.rank;
        (0..self.ranks).filter(move |rank| *rank != own)
    }

    /// To each other rank the part that it sums; then everybody's sums. Two ranks send each other everything, which is as much, and
    /// done at once.
    fn all_reduce_by<N: Number>(&self, link: &mut Link, data: &mut [f32]) -> Result<()> {
        let (ranks, len) = (self.ranks, data.len());
        if ranks == 2 {
            let (send, _) = link.memory::<N>(len, len);
            narrow(data, send);
            let (to, from) = (self.others().map(|rank| (rank, 0..len)), self.others());
            link.exchange::<N>(ALL_REDUCE, to, from.map(|rank| (rank, 0..len)), &self.asked)?;
            let (own, other) = link.memory::<N>(len, len);
            let (first, second) = if self.rank == 0 { (own, other) } else { (other, own) };
            for (x, (a, b)) in data.iter_mut().zip(first.iter().zip(second)) {
                *x = N::narrow(a.wide() + b.wide()).wide();
            }
            return Ok(());
        }
        let of = |rank: usize| slice(len, rank, ranks);
        let own = of(self.rank);
        self.sum_parts::<N>(link, ALL_REDUCE, data, of, own.clone())?;
        let (send, _) = link.memory::<N>(len, len);
        // Rounded twice at most: what goes to the others is what stays here.
        narrow(&data[own.clone()], &mut send[own.clone()]);
        widen(&send[own.clone()], &mut data[own.clone()]);
        let to = self.others().map(|rank| (rank, own.clone()));
        link.exchange::<N>(ALL_REDUCE, to, self.others().map(|rank| (rank, of(rank))), &self.asked)?;
        let (_, receive) = link.memory::<N>(len, len);
        for rank in self.others() {
            widen(&receive[of(rank)], &mut data[of(rank)]);
        }
        Ok(())
    }

    /// Sends each rank its part of the data, and makes `data[own]` the sum of what all sent of that.
    fn sum_parts<N: Number>(
        &self,
        link: &mut Link,
        call: usize,
        data: &mut [f32],
        part: impl Fn(usize) -> Range<usize>,
        own: Range<usize>,
    ) -> Result<()> {
        let (len, each) = (data.len(), own.len());
        let (send, _) = link.memory::<N>(len, self.ranks * each);
        narrow(data, send);
        let to = self.others().map(|rank| (rank, part(rank)));
        let from = self.others().map(|rank| (rank, rank * each..(rank + 1) * each));
        link.exchange::<N>(call, to, from, &self.asked)?;
        let (send, receive) = link.memory::<N>(len, self.ranks * each);
        let to = &mut data[own.clone()];
        for rank in 0..self.ranks {
            let from = if rank == self.rank { &send[own.clone()] } else { &receive[rank * each..][..each] };
            match rank {
                // Taken as it is: nothing was added to a zero, so that -0 stays.
                0 => widen(from, to),
                _ => to.iter_mut().zip(from).for_each(|(sum, x)| *sum += x.wide()),
            }
        }
        Ok(())
    }

    /// Where each rank's part begins, and the end; an error of counts that do not go with what this rank has.
    fn begins(&self, counts: &[usize], own: usize, all: usize) -> Result<Vec<usize>> {
        let mut begins = vec![0_usize];
        begins.extend(counts.iter().scan(0_usize, |sum, count| {
            *sum = sum.saturating_add(*count);
            Some(*sum)
        }));
        let sum = begins.last().copied().unwrap_or(0);
        for (what, found, expected) in [
            ("counts", counts.len(), self.ranks),
            ("the rank's own part", own, counts.get(self.rank).copied().unwrap_or(0)),
            ("all parts", all, sum),
        ] {
            if found != expected {
                return Err(Error::Size { what, found, expected });
            }
        }
        Ok(begins)
    }
}

fn narrow<N: Number>(from: &[f32], to: &mut [N]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = N::narrow(*from));
}

fn widen<N: Number>(from: &[N], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = from.wide());
}

impl Communicator for MpiRank {
    fn rank(&self) -> usize {
        self.rank
    }

    fn ranks(&self) -> usize {
        self.ranks
    }

    fn describe(&self) -> String {
        "between processes, by MPI".to_owned()
    }

    fn traffic(&self) -> Traffic {
        Traffic { calls: self.calls.load(Ordering::Relaxed), sent: self.sent.load(Ordering::Relaxed) }
    }

    fn abort(&self, why: &str) {
        self.asked.ask(why);
        self.heed();
    }

    fn all_reduce(&self, data: &mut [f32]) -> Result<()> {
        let elements = all_reduce_elements(data.len(), self.rank, self.ranks);
        self.collective(elements * self.wire.bytes(), |link| match (self.ranks, self.wire) {
            (1, _) => Ok(()),
            (_, Wire::F32) => self.all_reduce_by::<f32>(link, data),
            (_, Wire::Bf16) => self.all_reduce_by::<bf16>(link, data),
        })
    }

    fn all_gather(&self, own: &[f32], counts: &[usize], all: &mut [f32]) -> Result<()> {
        self.collective(size_of_val(own) * (self.ranks - 1), |link| {
            let begins = self.begins(counts, own.len(), all.len())?;
            let of = |rank: usize| begins[rank]..begins[rank + 1];
            let (send, _) = link.memory::<f32>(own.len(), all.len());
            send.copy_from_slice(own);
            let to = self.others().map(|rank| (rank, 0..own.len()));
            link.exchange::<f32>(ALL_GATHER, to, self.others().map(|rank| (rank, of(rank))), &self.asked)?;
            let (_, receive) = link.memory::<f32>(0, all.len());
            for rank in self.others() {
                all[of(rank)].copy_from_slice(&receive[of(rank)]);
            }
            all[of(self.rank)].copy_from_slice(own);
            Ok(())
        })
    }

    fn reduce_scatter(&self, data: &[f32], counts: &[usize], own: &mut [f32]) -> Result<()> {
        let sent = data.len().saturating_sub(own.len()) * self.wire.bytes();
        self.collective(sent, |link| {
            let begins = self.begins(counts, own.len(), data.len())?;
            let of = |rank: usize| begins[rank]..begins[rank + 1];
            let mut sums = data.to_vec();
            match (self.ranks, self.wire) {
                (1, _) => {}
                (_, Wire::F32) => {
                    self.sum_parts::<f32>(link, REDUCE_SCATTER, &mut sums, of, of(self.rank))?;
                }
                (_, Wire::Bf16) => {
                    self.sum_parts::<bf16>(link, REDUCE_SCATTER, &mut sums, of, of(self.rank))?;
                }
            }
            own.copy_from_slice(&sums[of(self.rank)]);
            Ok(())
        })
    }

    fn broadcast(&self, root: usize, data: &mut [f32]) -> Result<()> {
        let is_root = root == self.rank;
        let sent = if is_root { size_of_val(data) * (self.ranks - 1) } else { 0 };
        self.collective(sent, |link| {
            if root >= self.ranks {
                let expected = self.ranks - 1;
                return Err(Error::Size { what: "ranks up to the root", found: root, expected });
            }
            let len = data.len();
            let (send, _) = link.memory::<f32>(len, len);
            send.copy_from_slice(data);
            let to = self.others().filter(|_| is_root).map(|rank| (rank, 0..len));
            let from = (!is_root).then_some((root, 0..len)).into_iter();
            link.exchange::<f32>(BROADCAST, to, from, &self.asked)?;
            if !is_root {
                data.copy_from_slice(link.memory::<f32>(0, len).1);
            }
            Ok(())
        })
    }
}

impl Drop for MpiRank {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.abort("its thread panicked");
        }
        // All say that they are leaving, so that nobody waits in the library, where no time is up.
        let leave = |link: &mut Link| {
            let (send, _) = link.memory::<f32>(1, self.ranks);
            send.fill(0.0);
            let to = self.others().map(|rank| (rank, 0..1));
            link.exchange::<f32>(THE_END, to, self.others().map(|rank| (rank, rank..rank + 1)), &self.asked)
        };
        let left = self.collective(0, leave);
        if let (Ok(()), Some(begun)) = (left, self.begun.take()) {
            begun.end(self.link().timeout());
        }
    }
}
