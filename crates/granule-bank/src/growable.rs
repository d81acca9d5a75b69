//! `Growable`: a range filled from its start on, which grows and shrinks without moving.

use std::ops::RangeBounds;

use granule_device::{Bytes, DevicePtr, DeviceSlice, DeviceSliceMut, Event};

use crate::piece::PieceId;
use crate::trace::RangeId;
use crate::{Bank, Error, Growth, Owner, Range, grow_together, shrink_together};

/// Memory that grows at its end. The base never changes and no growth copies or moves a byte; what it costs is whole
/// granules.
#[derive(Debug)]
pub struct Growable {
    pub(crate) range: Range,
    pub(crate) len: Bytes,
}

impl Growable {
    pub(crate) fn new(bank: &Bank, owner: &Owner, reserve: Bytes) -> Result<Growable, Error> {
        Ok(Growable { range: Range::new(bank, owner, reserve)?, len: Bytes::ZERO })
    }

    /// What snapshots and recordings call its range.
    pub fn id(&self) -> RangeId {
        self.range.id()
    }

    /// The bank its granules come from.
    pub fn bank(&self) -> &Bank {
        self.range.bank()
    }

    /// How long it is.
    pub fn len(&self) -> Bytes {
        self.len
    }

    /// True where it has no length.
    pub fn is_empty(&self) -> bool {
        self.len.is_zero()
    }

    /// How long it can become.
    pub fn reserved(&self) -> Bytes {
        self.range.reserved()
    }

    /// What stands behind it: its length in whole granules, shared ones included.
    pub fn mapped(&self) -> Bytes {
        self.bank().granule().saturating_mul(self.mapped_places() as u64)
    }

    /// Where it starts, always.
    pub fn base(&self) -> DevicePtr {
        self.range.base()
    }

    /// The granules behind it, in order, and of each whether somebody else has it too.
    pub fn pieces(&self) -> impl Iterator<Item = (PieceId, bool)> + '_ {
        let id = |place| Some((self.range.piece_id(place)?, self.range.is_shared(place)));
        (0..self.mapped_places()).filter_map(id)
    }

    /// Makes it at least `len` long. What it held stays; what is new holds whatever it held.
    ///
    /// # Errors
    /// [`Error::Reserved`], [`Error::OutOfMemory`], [`Error::TooLarge`], [`Error::Device`].
    pub fn grow_to(&mut self, len: Bytes) -> Result<(), Error> {
        grow_together(&mut [Growth::of(self, len)]).map(|_| ())
    }

    /// Makes it at most `len` long and gives back the granules past that.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn shrink_to(&mut self, len: Bytes) -> Result<(), Error> {
        shrink_together(&mut [(self, len)])
    }

    /// As [`Growable::shrink_to`], for memory that device work may still use; see [`Range::clear_after`].
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn shrink_after(&mut self, len: Bytes, event: &Event) -> Result<(), Error> {
        let keep = len.pieces_of(self.bank().granule()).unwrap_or(usize::MAX);
        let places = keep.min(self.mapped_places())..self.mapped_places();
        self.range.clear_after(places, event)?;
        self.set_len(self.len.min(len));
        Ok(())
    }

    /// A second growable, with as many addresses and of the same owner, whose first `len` bytes are this one's: the granules
    /// stand behind both, and both may only read them until a [`Growth`] that writes gives one its own copy. `len` beyond the
    /// length is the length.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn alias(&mut self, len: Bytes) -> Result<Growable, Error> {
        let len = len.min(self.len);
        let places = len.pieces_of(self.bank().granule()).unwrap_or(0);
        let mut alias = Growable::new(self.range.bank(), self.range.owner(), self.reserved())?;
        let written: Vec<usize> = (0..places).filter(|&place| !self.range.is_read_only(place)).collect();
        let shared = self.range.share(0..places)?;
        if let Err(error) = alias.range.map_shared(0, &shared) {
            drop(shared);
            written.into_iter().for_each(|place| self.range.allow_writing(place));
            return Err(error);
        }
        alias.set_len(len);
        Ok(alias)
    }

    /// The bytes at `range` within the length, to read.
    ///
    /// # Errors
    /// [`Error::Device`]: past the length.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Result<DeviceSlice<'_>, Error> {
        Ok(self.range.slice(..self.usable())?.subslice(range)?)
    }

    /// The bytes at `range` within the length, to write.
    ///
    /// # Errors
    /// [`Error::Device`]: past the length, or read only because they were shared.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> Result<DeviceSliceMut<'_>, Error> {
        let range = granule_device::checked_range(range, self.usable())?;
        self.range.slice_mut(range)
    }

    pub(crate) fn set_len(&mut self, len: Bytes) {
        if self.len != len {
            self.len = len;
            self.range.tell_used(len);
        }
    }

    pub(crate) fn mapped_places(&self) -> usize {
        self.len.pieces_of(self.bank().granule()).unwrap_or(0)
    }

    /// The length; it is mapped, so it can be addressed.
    fn usable(&self) -> usize {
        self.len.to_usize().unwrap_or(usize::MAX)
    }
}
