//! Collectives between the ranks of a group: one interface, whatever carries the bytes.
//!
//! All ranks of a group make the same calls in the same order, with sizes that go together. Sums are of f32, element by element in
//! the order of the ranks, `((r0 + r1) + r2) + …`: the same bits on every rank and in every run, whichever rank comes first.

mod host;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
#[cfg(feature = "cuda")]
mod peer;
pub mod rendezvous;
mod slices;
#[cfg(feature = "cuda")]
mod staged;
mod wire;

use std::fmt;
use std::sync::Arc;

use granule_device::{Device, DeviceKind, DeviceSlice, DeviceSliceMut, Stream};

use crate::error::{Error, Result};

pub use crate::plan::MAX_RANKS;
pub use host::{GroupOptions, HostRank, host_group};
#[cfg(feature = "mpi")]
pub use mpi::MpiRank;
#[cfg(feature = "nccl")]
pub use nccl::NcclRank;
#[cfg(feature = "cuda")]
pub use peer::{PeerRank, peer_group};
pub use slices::{all_reduce_elements, slice};
#[cfg(feature = "cuda")]
pub use staged::Staged;
pub use wire::Wire;

/// Elements of the pieces in which `Staged` has its group's calls done. A rank of the same group whose numbers are on the host makes as
/// many calls, of pieces of this size.
pub const STAGED_ELEMENTS: usize = 1 << 18;

/// What a rank has sent so far, in bytes of payload, and in how many calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Collectives that were called.
    pub calls: u64,
    /// Bytes that this rank sent to others, or that others read of its memory.
    pub sent: u64,
}

/// One rank's end of a group.
///
/// The first half of its calls is for the host's memory: they are done when they return. The second half, `…_on`, is for a
/// device's memory, in the order of a stream: they return once the work is given to the stream. A communicator that lacks a half refuses it
/// with [`Error::Unsupported`].
pub trait Communicator: Send + Sync + fmt::Debug {
    /// Which of the ranks this is, from 0.
    fn rank(&self) -> usize;

    /// How many there are.
    fn ranks(&self) -> usize;

    /// How numbers get from rank to rank, in a few words for a person: "between threads".
    fn describe(&self) -> String;

    /// What this rank has sent so far.
    fn traffic(&self) -> Traffic;

    /// Has the other ranks' present and further calls fail with [`Error::Aborted`], and this one's too. May be called by any thread.
    fn abort(&self, why: &str);

    /// Makes a group that was aborted, or whose call failed, as new: once all ranks are out of their calls. One call of any of its
    /// ranks is enough; it is for groups of one process.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where other ranks are other processes: such a group is over.
    fn recover(&self) -> Result<()> {
        Err(unsupported("going on after a failure with ranks of other processes"))
    }

    /// The sum of all ranks' `data`, in place.
    ///
    /// # Errors
    /// [`Error::Aborted`], [`Error::TimedOut`], [`Error::Size`], [`Error::Unsupported`].
    fn all_reduce(&self, data: &mut [f32]) -> Result<()>;

    /// All ranks' parts, one behind the other: `counts` has each one's number of elements, the own one's being `own.len()`, their sum
    /// `all.len()`.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`].
    fn all_gather(&self, own: &[f32], counts: &[usize], all: &mut [f32]) -> Result<()>;

    /// Of the sum of all ranks' `data`, this rank's part: `counts` has each one's number of elements.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`].
    fn reduce_scatter(&self, data: &[f32], counts: &[usize], own: &mut [f32]) -> Result<()>;

    /// Has `data` be what it is on rank `root`.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`].
    fn broadcast(&self, root: usize, data: &mut [f32]) -> Result<()>;

    /// Bytes of the device's memory that [`Communicator::all_reduce_on`] needs for so many elements, beside the data.
    fn scratch_bytes(&self, elements: usize) -> usize {
        let _ = elements;
        0
    }

    /// As [`Communicator::all_reduce`], of f32 in a device's memory, in the order of `stream`.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce`], and [`Error::Device`]. The data may then be anything.
    ///
    /// # Safety
    /// `data` and `scratch` stay, and nobody else touches them, until the stream has passed the call.
    unsafe fn all_reduce_on(
        &self,
        stream: &Stream,
        data: DeviceSliceMut<'_>,
        scratch: DeviceSliceMut<'_>,
    ) -> Result<()> {
        let _ = (stream, data, scratch);
        Err(unsupported("collectives in a device's memory"))
    }

    /// As [`Communicator::all_gather`], of f32 in a device's memory, in the order of `stream`.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_on`].
    ///
    /// # Safety
    /// As [`Communicator::all_reduce_on`], of `own` and `all`.
    unsafe fn all_gather_on(
        &self,
        stream: &Stream,
        own: DeviceSlice<'_>,
        counts: &[usize],
        all: DeviceSliceMut<'_>,
    ) -> Result<()> {
        let _ = (stream, own, counts, all);
        Err(unsupported("collectives in a device's memory"))
    }

    /// As [`Communicator::broadcast`], of f32 in a device's memory, in the order of `stream`.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_on`].
    ///
    /// # Safety
    /// As [`Communicator::all_reduce_on`], of `data`.
    unsafe fn broadcast_on(&self, stream: &Stream, root: usize, data: DeviceSliceMut<'_>) -> Result<()> {
        let _ = (stream, root, data);
        Err(unsupported("collectives in a device's memory"))
    }

    /// Waits for a stream that collectives were given to, for no longer than the group waits for anything.
    ///
    /// # Errors
    /// [`Error::TimedOut`], [`Error::Aborted`], [`Error::Device`].
    fn wait_on(&self, stream: &Stream) -> Result<()> {
        Ok(stream.synchronize()?)
    }
}

/// The ranks of a new group, one for each device, with the best there is between them: the ranks of GPUs that all reach each other are
/// those of [`peer_group`], and of all other groups those of [`host_group`], with [`Staged`] for what is in a GPU's memory.
/// [`Communicator::describe`] says which it is. All of them can do both halves, but for ranks of the host, whose memory is the host's.
///
/// # Errors
/// As [`host_group`]; [`Error::Device`] where a device is not well.
pub fn group_for(devices: &[&Device], options: GroupOptions) -> Result<Vec<Arc<dyn Communicator>>> {
    #[cfg(feature = "cuda")]
    if options.wire == Wire::F32 && peer::reach_each_other(devices)? {
        let ranks = peer_group(devices, options)?;
        return Ok(ranks.into_iter().map(|rank| Arc::new(rank) as Arc<dyn Communicator>).collect());
    }
    let ranks = host_group(devices.len(), options)?.into_iter().zip(devices);
    let ranks = ranks.map(|(rank, device)| -> Result<Arc<dyn Communicator>> {
        let rank: Arc<dyn Communicator> = Arc::new(rank);
        match device.kind() {
            DeviceKind::Host => Ok(rank),
            #[cfg(feature = "cuda")]
            _ => Ok(Arc::new(Staged::new(rank, device)?)),
            #[cfg(not(feature = "cuda"))]
            _ => Err(unsupported("ranks on a GPU in a build without the feature `cuda`")),
        }
    });
    ranks.collect()
}

fn unsupported(what: &str) -> Error {
    Error::Unsupported { what: what.to_owned() }
}

/// Ranks as one says them: "rank 1", "ranks 1 and 3", "ranks 1, 3 and 4".
pub(crate) fn names(ranks: impl IntoIterator<Item = usize>) -> String {
    let names: Vec<String> = ranks.into_iter().map(|rank| rank.to_string()).collect();
    match names.split_last() {
        None => "nobody any more".to_owned(),
        Some((only, [])) => format!("rank {only}"),
        Some((last, others)) => format!("ranks {} and {last}", others.join(", ")),
    }
}
