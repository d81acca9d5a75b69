//! The memory of steps on a device: what a step takes from its context's heaps, and what goes between host and device.

use std::sync::Arc;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, DeviceSlice, DeviceSliceMut, Stream};
use granule_plan::cuda::CudaBuffers;
use granule_pool::{Heap, Lease, Pool, PoolOptions};

use crate::error::{Error, Result};

/// A lease of one of an engine's heaps, for work that is given to the engine's stream. Its bytes are lent as they are: nothing
/// is waited for.
#[derive(Debug)]
pub(super) struct Leased(Lease);

impl Leased {
    pub(super) fn bytes(heap: &Heap, len: usize) -> Result<Self> {
        Ok(Self(heap.alloc(Bytes::from_usize(len))?))
    }

    pub(super) fn read(&self) -> DeviceSlice<'_> {
        // SAFETY: in these modules it goes into work for the heap's own stream alone, which is given while this is borrowed, or
        // (pinned) to the host once that stream was waited for.
        unsafe { self.0.stream_slice() }
    }

    pub(super) fn write(&mut self) -> DeviceSliceMut<'_> {
        // SAFETY: as above.
        unsafe { self.0.stream_slice_mut() }
    }
}

/// The heaps of an engine.
#[derive(Debug)]
pub(super) struct Heaps {
    /// What goes from operation to operation.
    pub(super) activations: Heap,
    /// What an operation needs for itself.
    pub(super) scratch: Heap,
    /// The host's side of copies. No stream has it: who leases from it waits for the copies before the lease is dropped.
    pub(super) pinned: Heap,
}

impl Heaps {
    pub(super) fn new(bank: &Bank, stream: &Arc<Stream>) -> Result<Self> {
        let pool = |owner| Pool::new(bank, PoolOptions::new().owner(owner));
        let options = BankOptions::new().tracer(bank.tracer());
        let pinned = Bank::pinned(bank.device().clone(), options)?;
        Ok(Self {
            activations: pool("activations")?.heap(stream)?,
            scratch: pool("scratch")?.heap(stream)?,
            pinned: Pool::pinned(&pinned, PoolOptions::new().owner("copies"))?.local()?,
        })
    }

    /// Gives what is not in use back to the bank.
    pub(super) fn trim(&self) -> Result<()> {
        for heap in [&self.activations, &self.scratch, &self.pinned] {
            heap.pool().trim()?;
        }
        Ok(())
    }
}

/// What a step of some tokens computes with, each a row a token.
#[derive(Debug)]
pub(super) struct Buffers {
    /// Tokens.
    pub(super) n: usize,
    /// Hidden state, n_embd wide.
    pub(super) x: Leased,
    pub(super) q: Leased,
    pub(super) k: Leased,
    pub(super) v: Leased,
    /// Attention's result.
    pub(super) attended: Leased,
    pub(super) gate: Leased,
    pub(super) up: Leased,
    /// The activations of the product at hand, in its form.
    pub(super) formed: Leased,
    /// Attention's own memory.
    pub(super) attention: Leased,
    /// What sums over all ranks need, where they need something.
    pub(super) sum: Option<Leased>,
}

impl Buffers {
    /// For `n` tokens, in these sizes; and `sum` bytes for sums over all ranks.
    pub(super) fn new(heaps: &Heaps, n: usize, sizes: &CudaBuffers, sum: usize) -> Result<Self> {
        let take = |bytes: usize| Leased::bytes(&heaps.activations, bytes);
        Ok(Self {
            n,
            x: take(sizes.x)?,
            q: take(sizes.q)?,
            k: take(sizes.k)?,
            v: take(sizes.v)?,
            attended: take(sizes.attended)?,
            gate: take(sizes.gate)?,
            up: take(sizes.up)?,
            formed: Leased::bytes(&heaps.scratch, sizes.formed)?,
            attention: Leased::bytes(&heaps.scratch, sizes.attention)?,
            sum: (sum > 0).then(|| Leased::bytes(&heaps.scratch, sum)).transpose()?,
        })
    }
}

/// A part of a parcel.
pub(super) type PartOfParcel = std::ops::Range<usize>;

/// A parcel's memory on both sides.
#[derive(Debug)]
pub(super) struct Shuttle {
    pinned: Leased,
    device: Leased,
}

impl Shuttle {
    pub(super) fn new(heaps: &Heaps, bytes: usize) -> Result<Self> {
        Ok(Self {
            pinned: Leased::bytes(&heaps.pinned, bytes)?,
            device: Leased::bytes(&heaps.scratch, bytes)?,
        })
    }

    /// The host's side, to fill: nothing is under way from it.
    pub(super) fn host(&mut self) -> Result<&mut [u8]> {
        self.pinned.write().into_host_mut().ok_or_else(not_pinned)
    }

    /// Has it brought over when the stream's turn comes; the host's side stays as it is until the stream was waited for.
    pub(super) fn send(&mut self, stream: &Stream) -> Result<()> {
        // SAFETY: both sides stay until the stream was waited for, as every user of a shuttle does before it is dropped or
        // filled again.
        Ok(unsafe { stream.copy_slice(self.pinned.read(), self.device.write()) }?)
    }

    /// A part of the device's side.
    pub(super) fn part(&self, part: &PartOfParcel) -> Result<DeviceSlice<'_>> {
        Ok(self.device.read().subslice(part.clone())?)
    }
}

pub(super) fn not_pinned() -> Error {
    Error::Unsupported { what: "pinned memory that the host cannot reach".into() }
}
