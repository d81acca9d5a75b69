//! Lanes: what copies between this process's memory and the devices of a split, one for each, all at the same time.
//!
//! The host's lane copies from memory to memory. A GPU's goes through a ring of pinned pieces: while one is on its way the next is
//! filled, or the one before emptied. Each lane has a thread while it works, so that one device never waits for another's copy.

use std::marker::PhantomData;
use std::ops::Range;
use std::panic::resume_unwind;
use std::thread;

use granule_bank::Bank;
#[cfg(feature = "cuda")]
use granule_device::DeviceKind;
use granule_device::{Bytes, DeviceSlice, DeviceSliceMut};

use crate::plan::{BufferPlan, MAX_RANKS};
use crate::{Error, Result};

/// How lanes are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LanesOptions {
    /// Bytes that go to or from a GPU in one piece; each has three of them in pinned memory. 4 MiB.
    pub piece: Bytes,
}

impl Default for LanesOptions {
    fn default() -> Self {
        LanesOptions { piece: Bytes::mib(4) }
    }
}

impl LanesOptions {
    /// With pieces of this size.
    #[must_use]
    pub fn piece(self, piece: Bytes) -> Self {
        Self { piece }
    }
}

/// One lane for each rank of a split: made once, used for any number of buffers. Pinned memory is the host's and counts with no bank.
#[derive(Debug)]
pub struct Lanes {
    lanes: Vec<Lane>,
}

/// What copies to and from one device.
#[derive(Debug)]
pub(super) struct Lane {
    bank: Bank,
    #[cfg(feature = "cuda")]
    ring: Option<super::cuda::Ring>,
}

impl Lanes {
    /// A lane to the device of each of these banks, rank by rank. Several may be of one device.
    ///
    /// # Errors
    /// [`Error::Ranks`]; [`Error::Device`] where a device has no pinned memory or stream for it, or for pieces of nothing.
    pub fn new(banks: &[Bank], options: LanesOptions) -> Result<Lanes> {
        let ranks = banks.len();
        if !(1..=MAX_RANKS).contains(&ranks) {
            return Err(Error::Ranks { ranks, most: MAX_RANKS });
        }
        let lanes = banks.iter().map(|bank| Lane::new(bank, options)).collect::<Result<_>>()?;
        Ok(Lanes { lanes })
    }

    pub(super) fn len(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn banks(&self) -> impl Iterator<Item = &Bank> {
        self.lanes.iter().map(|lane| &lane.bank)
    }

    /// Has every lane do its piece of work, all at the same time. Of several errors it is the first rank's.
    pub(super) fn each<W: Send>(
        &mut self,
        work: Vec<W>,
        what: impl Fn(&mut Lane, W) -> Result<()> + Sync,
    ) -> Result<()> {
        let what = &what;
        let mut pairs = self.lanes.iter_mut().zip(work);
        let Some((first, own)) = pairs.next() else { return Ok(()) };
        thread::scope(|scope| {
            let begin = |(lane, work)| thread::Builder::new().spawn_scoped(scope, move || what(lane, work));
            let others: Vec<_> = pairs.map(begin).collect();
            let mut done = what(first, own);
            for other in others {
                done = done.and(match other {
                    Ok(other) => other.join().unwrap_or_else(|panic| resume_unwind(panic)),
                    Err(source) => {
                        Err(granule_device::Error::Os { call: "a thread for a lane", source }.into())
                    }
                });
            }
            done
        })
    }
}

impl Lane {
    fn new(bank: &Bank, options: LanesOptions) -> Result<Lane> {
        if options.piece.is_zero() {
            return Err(granule_device::Error::ZeroSize { what: "a lane's piece" }.into());
        }
        #[cfg(feature = "cuda")]
        let ring = match bank.device().kind() {
            DeviceKind::Cuda => Some(super::cuda::Ring::new(bank.device(), options.piece)?),
            _ => None,
        };
        Ok(Lane {
            bank: bank.clone(),
            #[cfg(feature = "cuda")]
            ring,
        })
    }

    /// Zeros a shard, all of it.
    pub(super) fn clear(&mut self, mut shard: DeviceSliceMut<'_>) -> Result<()> {
        #[cfg(feature = "cuda")]
        if let Some(ring) = &mut self.ring {
            return ring.clear(shard);
        }
        on_host(shard.as_host_mut())?.fill(0);
        Ok(())
    }

    /// Brings to `span` of a rank's shard what belongs there of the rows whose bytes are at hand, the first of which has this number.
    pub(super) fn scatter(
        &mut self,
        plan: &BufferPlan,
        rank: usize,
        span: Range<usize>,
        (first, from): (usize, &[u8]),
        mut shard: DeviceSliceMut<'_>,
    ) -> Result<()> {
        let fill = |span: Range<usize>, to: &mut [u8]| {
            for run in plan.runs(rank, span, first)? {
                to[run.here..run.here + run.len].copy_from_slice(&from[run.whole..run.whole + run.len]);
            }
            Ok(())
        };
        #[cfg(feature = "cuda")]
        if let Some(ring) = &mut self.ring {
            return ring.scatter(span, shard, plan.is_padded(rank)?, fill);
        }
        fill(span.clone(), &mut on_host(shard.as_host_mut())?[span])
    }

    /// Puts what lies at `span` of a rank's shard where it belongs in rows, the first of which has this number.
    ///
    /// # Safety
    /// - All runs of the span lie in the target, and nobody else reads or writes them there.
    pub(super) unsafe fn gather(
        &mut self,
        plan: &BufferPlan,
        rank: usize,
        span: Range<usize>,
        (first, to): (usize, &Target<'_>),
        shard: DeviceSlice<'_>,
    ) -> Result<()> {
        let empty = |span: Range<usize>, from: &[u8]| {
            for run in plan.runs(rank, span, first)? {
                // SAFETY: the caller's promise.
                unsafe { to.write(run.whole, &from[run.here..run.here + run.len]) };
            }
            Ok(())
        };
        #[cfg(feature = "cuda")]
        if let Some(ring) = &mut self.ring {
            return ring.gather(span, shard, empty);
        }
        empty(span.clone(), &on_host(shard.as_host())?[span])
    }
}

/// Memory that the host's lane can address; a device of another kind has no lane in this build.
fn on_host<T>(bytes: Option<T>) -> Result<T> {
    bytes.ok_or_else(|| Error::Unsupported { what: "copies to a GPU, in a build without `cuda`".to_owned() })
}

/// Bytes that several lanes write, each its own.
pub(super) struct Target<'a> {
    start: *mut u8,
    len: usize,
    bytes: PhantomData<&'a mut [u8]>,
}

// SAFETY: it is written through `Target::write` only, whose callers write each byte from one thread.
unsafe impl Sync for Target<'_> {}

impl<'a> Target<'a> {
    pub(super) fn new(bytes: &'a mut [u8]) -> Self {
        Target { start: bytes.as_mut_ptr(), len: bytes.len(), bytes: PhantomData }
    }

    /// Copies bytes to this place.
    ///
    /// # Safety
    /// - They fit there.
    /// - Nobody else reads or writes that place meanwhile.
    unsafe fn write(&self, at: usize, from: &[u8]) {
        debug_assert!(at + from.len() <= self.len);
        // SAFETY: the place is in the bytes that this was made of, exclusively borrowed for its lifetime, and the caller's alone; so `from`
        // is other memory.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.start.add(at), from.len()) };
    }
}
