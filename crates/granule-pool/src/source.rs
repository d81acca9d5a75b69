//! Where a pool's memory comes from: granules behind a range, or whole allocations where there are none.

use std::ops::Range as Span;

use granule_bank::{Bank, Charge, Owner, PinnedBlock, Range, Stock};
use granule_device::{Buffer, Bytes, DevicePtr, Event, Home};

use crate::Error;
use crate::ladder::Ask;

/// The kind of memory that a pool is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Granules: memory comes and goes without an address changing.
    Granules,
    /// Plain allocations, on a device without virtual memory. One is given back when nothing in it is used.
    Plain,
    /// Pinned memory of the host, in whole allocations too.
    Pinned,
}

/// The smallest plain allocation: a driver rounds smaller ones up to this anyway.
const SEGMENT: Bytes = Bytes::mib(2);

impl Source {
    /// The source of device memory.
    pub(crate) fn of(bank: &Bank) -> Source {
        if bank.granule().is_zero() { Source::Plain } else { Source::Granules }
    }

    /// What its memory is, to whom it is handed out.
    pub(crate) fn home(self, bank: &Bank) -> Home {
        match self {
            Source::Granules | Source::Plain => Home::on(bank.device()),
            Source::Pinned => Home::beside(bank.device()),
        }
    }

    /// How large an allocation should be that a request of `size` is cut from.
    pub(crate) fn segment(size: u64) -> Bytes {
        let size = Bytes::new(size);
        size.checked_next_multiple_of(SEGMENT).unwrap_or(size)
    }

    /// An allocation of its own.
    pub(crate) fn allocate(self, bank: &Bank, owner: &Owner, size: Bytes, ask: Ask) -> Result<Memory, Error> {
        match (self, ask) {
            (Source::Pinned, Ask::Bank) => Ok(Memory::Pinned(bank.pinned_block_now(owner, size)?)),
            (Source::Pinned, Ask::Everybody) => Ok(Memory::Pinned(bank.pinned_block(owner, size)?)),
            (Source::Granules | Source::Plain, Ask::Bank) => {
                Memory::plain(bank.charge_now(owner, size)?, bank)
            }
            (Source::Granules | Source::Plain, Ask::Everybody) => {
                Memory::plain(bank.charge(owner, size)?, bank)
            }
        }
    }
}

/// What stands behind one span of an arena.
#[derive(Debug)]
pub(crate) enum Memory {
    Granules(Range),
    // Given back to the driver before it goes off the books.
    Plain { buffer: Buffer, _charge: Charge },
    Pinned(PinnedBlock),
}

impl Memory {
    fn plain(charge: Charge, bank: &Bank) -> Result<Memory, Error> {
        Ok(Memory::Plain { buffer: bank.device().alloc(charge.size())?, _charge: charge })
    }

    pub(crate) fn base(&self) -> DevicePtr {
        match self {
            Memory::Granules(range) => range.base(),
            Memory::Plain { buffer, .. } => buffer.ptr(),
            Memory::Pinned(block) => block.ptr(),
        }
    }

    /// The size of a place in bytes, and how many there are.
    pub(crate) fn places(&self) -> (u64, usize) {
        match self {
            Memory::Granules(range) => (range.bank().granule().get(), range.places()),
            Memory::Plain { buffer, .. } => (buffer.len().get(), 1),
            Memory::Pinned(block) => (block.len().get(), 1),
        }
    }

    /// Puts memory behind places that have none.
    pub(crate) fn fill(&mut self, places: Span<usize>, stock: &mut Stock) -> Result<(), Error> {
        match self {
            Memory::Granules(range) => Ok(range.fill_from(places, stock)?),
            Memory::Plain { .. } | Memory::Pinned(_) => Ok(()),
        }
    }

    /// Takes the memory of places away, now or after an event. What is anybody's now comes to be in `out`.
    pub(crate) fn clear(
        &mut self,
        places: Span<usize>,
        after: Option<&Event>,
        out: &mut Stock,
    ) -> Result<(), Error> {
        match (self, after) {
            (Memory::Granules(range), Some(event)) => Ok(range.clear_after_into(places, event, out)?),
            (Memory::Granules(range), None) => Ok(range.clear_into(places, out)?),
            (Memory::Plain { .. } | Memory::Pinned(_), _) => Ok(()),
        }
    }

    /// Whether memory stands behind the place.
    pub(crate) fn is_backed(&self, place: usize) -> bool {
        match self {
            Memory::Granules(range) => range.is_mapped(place),
            Memory::Plain { .. } | Memory::Pinned(_) => true,
        }
    }
}
