//! `Range`: a sparse range of addresses with granules of the bank behind any of its places. The primitive of the bank.

use std::ops::{Range as Span, RangeBounds};
use std::sync::Arc;

use granule_device::{Access, Bytes, DevicePtr, DeviceSlice, DeviceSliceMut, Event, Reservation};

use crate::piece::{Piece, PieceId, Shared};
use crate::places::Contents;
use crate::trace::RangeId;
use crate::{Bank, Error, Lent, Owner, Stock};

/// Addresses, cut into places of one granule, some of which have memory behind them. The base never changes.
///
/// A place is *shared* where its granule stands behind another range too, or somebody holds a [`Shared`] of it. A place that
/// was ever shared is read only until [`Range::make_private`].
#[derive(Debug)]
pub struct Range {
    // Dropped before the pieces: a granule is unmapped before it goes back to the bank.
    reservation: Reservation,
    contents: Contents,
    bank: Bank,
    owner: Owner,
}

/// How to take back a [`Range::privatize`].
#[derive(Debug)]
pub(crate) enum Privatized {
    /// Nobody shared the granule any more: it only became writable.
    InPlace(usize),
    /// Another granule stands there now; this one did.
    Copied(usize, Piece),
}

impl Range {
    pub(crate) fn new(bank: &Bank, owner: &Owner, reserve: Bytes) -> Result<Range, Error> {
        let reservation = bank.device().reserve(reserve)?;
        let contents = Contents::new(bank, owner, reservation.base(), reservation.places());
        Ok(Range { reservation, contents, bank: bank.clone(), owner: owner.clone() })
    }

    /// What snapshots and recordings call it.
    pub fn id(&self) -> RangeId {
        self.contents.id
    }

    /// The bank its granules come from.
    pub fn bank(&self) -> &Bank {
        &self.bank
    }

    /// Whose its granules are, except those that were shared from another range.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    /// How many places there are.
    pub fn places(&self) -> usize {
        self.reservation.places()
    }

    /// The size of the whole range, in addresses.
    pub fn reserved(&self) -> Bytes {
        self.reservation.len()
    }

    /// Where it starts.
    pub fn base(&self) -> DevicePtr {
        self.reservation.base()
    }

    /// True where memory stands behind the place.
    pub fn is_mapped(&self, place: usize) -> bool {
        self.contents.with(place, |_| ()).is_some()
    }

    /// True where the memory behind the place is somebody else's too.
    pub fn is_shared(&self, place: usize) -> bool {
        self.contents.with(place, Piece::is_shared).unwrap_or(false)
    }

    /// Which granule stands behind the place.
    pub fn piece_id(&self, place: usize) -> Option<PieceId> {
        self.contents.with(place, Piece::id)
    }

    /// Puts memory behind those of the places that have none: all or nothing. What it holds is whatever it held.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::TooLarge`], [`Error::Device`].
    pub fn fill(&mut self, places: Span<usize>) -> Result<(), Error> {
        let gaps = self.gaps(&places)?;
        let mut stock = self.bank.take(&self.owner, gaps.iter().map(Span::len).sum())?;
        self.map_gaps(&gaps, &mut stock)
    }

    /// As [`Range::fill`], with granules that were taken before: no budget is asked. What is not needed stays in the stock, and
    /// where it fails all of it does.
    ///
    /// # Errors
    /// [`Error::StockTooSmall`], [`Error::OtherBank`], [`Error::Device`].
    pub fn fill_from(&mut self, places: Span<usize>, stock: &mut Stock) -> Result<(), Error> {
        let gaps = self.gaps(&places)?;
        let (needed, stocked) = (gaps.iter().map(Span::len).sum(), stock.len());
        if stocked < needed {
            return Err(Error::StockTooSmall { needed, stocked });
        }
        if stock.pieces.iter().any(|piece| !piece.is_of(self.bank.inner())) {
            return Err(Error::OtherBank { what: "a stock of granules" });
        }
        self.map_gaps(&gaps, stock)
    }

    /// Takes the memory away from behind those of the places that have any. Where it is not shared it goes back to the bank.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn clear(&mut self, places: Span<usize>) -> Result<(), Error> {
        self.clear_into(places, &mut Stock::new())
    }

    /// As [`Range::clear`], but the granules come to be in the stock, which gives them back when it is dropped: for owners that
    /// hold a lock here and not there, as giving back may call the driver. One that is shared stays with its other holders.
    ///
    /// # Errors
    /// [`Error::Device`]; the stock is as it was.
    pub fn clear_into(&mut self, places: Span<usize>, stock: &mut Stock) -> Result<(), Error> {
        let runs = self.runs(&places, true)?;
        let mut out: Vec<(usize, Vec<(Piece, Access)>)> = Vec::with_capacity(runs.len());
        for run in runs {
            match self.take_out(run.clone()) {
                Ok(pieces) => out.push((run.start, pieces)),
                Err(error) => {
                    for (place, pieces) in out {
                        self.put_back(place, pieces);
                    }
                    return Err(error);
                }
            }
        }
        // What a stock has is written to: a granule that somebody else may read is not for it.
        let pieces = out.into_iter().flat_map(|(_, pieces)| pieces).map(|(piece, _)| piece);
        stock.pieces.extend(pieces.filter(|piece| !piece.is_shared()));
        Ok(())
    }

    /// As [`Range::clear`], for memory that device work may still use: the places are out of use from here on, and stay mapped
    /// until the event is done. Only then are their granules anybody's again, and the places can be filled.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn clear_after(&mut self, places: Span<usize>, event: &Event) -> Result<(), Error> {
        self.clear_after_into(places, event, &mut Stock::new())
    }

    /// As [`Range::clear_after`]; what the event turns out to be done for already comes to be in the stock, as of
    /// [`Range::clear_into`].
    ///
    /// # Errors
    /// [`Error::Device`].
    pub fn clear_after_into(
        &mut self,
        places: Span<usize>,
        event: &Event,
        stock: &mut Stock,
    ) -> Result<(), Error> {
        if event.is_done() {
            return self.clear_into(places, stock);
        }
        for run in self.runs(&places, true)? {
            let retired = self.reservation.retire(run.clone())?;
            let pieces = self.contents.retire(run.clone());
            let places = Arc::downgrade(self.contents.places());
            self.bank.retiring().push(self.id(), places, run.start, retired, pieces, event);
        }
        Ok(())
    }

    /// Lends places that have no memory, to be filled on another thread. Until they are taken back, or the loan is dropped,
    /// they can be neither used nor filled here.
    ///
    /// # Errors
    /// [`Error::Device`], also where a place has memory or is lent already.
    pub fn lend(&mut self, places: Span<usize>) -> Result<Lent, Error> {
        let lent = self.reservation.lend(places)?;
        Ok(Lent::new(lent, Vec::new(), (&self.bank, &self.owner, self.id())))
    }

    /// Lends places with the memory behind them, which is this range's alone: for memory that is nobody's at the moment, which
    /// whoever holds the loan may give back by dropping it, on any thread. It makes no call to the system.
    ///
    /// # Errors
    /// [`Error::Device`], also where a place has no memory, or may only be read.
    pub fn lend_filled(&mut self, places: Span<usize>) -> Result<Lent, Error> {
        let lent = self.reservation.lend_mapped(places.clone())?;
        let pieces = self.contents.take(places);
        Ok(Lent::new(lent, pieces, (&self.bank, &self.owner, self.id())))
    }

    /// Takes lent places back with what they were filled with; it makes no call to the system. One of another range is
    /// dropped.
    ///
    /// # Errors
    /// [`Error::Device`]: it is of another range.
    pub fn take_back(&mut self, mut lent: Lent) -> Result<(), Error> {
        let places = lent.places();
        self.take_back_first(&mut lent, places)
    }

    /// As [`Range::take_back`], of the first `count` of the places, or of all where there are fewer; the others stay lent.
    ///
    /// # Errors
    /// [`Error::Device`]: it is of another range.
    pub fn take_back_first(&mut self, lent: &mut Lent, count: usize) -> Result<(), Error> {
        let first = lent.first();
        self.reservation.take_back_first(&mut lent.lent, count)?;
        self.contents.put(first, lent.pieces.drain(..count.min(lent.pieces.len())));
        Ok(())
    }

    /// One past the last of the places from `place` on that can be written without a gap; `place` itself where it cannot.
    pub fn writable_to(&self, place: usize) -> usize {
        self.reservation.writable_to(place)
    }

    /// The first run of these places that can be written; `None` where none of them can.
    pub fn next_writable(&self, places: Span<usize>) -> Option<Span<usize>> {
        self.reservation.next_writable(places)
    }

    /// Every place that has memory, with its granule and whether that is somebody else's too, in order.
    pub fn pieces(&self) -> Vec<(usize, PieceId, bool)> {
        self.contents.each(|place, piece| (place, piece.id(), piece.is_shared()))
    }

    /// Makes the places read only here, and answers with their granules, to be put behind other ranges.
    ///
    /// # Errors
    /// [`Error::Device`], also where a place has no memory.
    pub fn share(&mut self, places: Span<usize>) -> Result<Vec<Shared>, Error> {
        self.reservation.set_access(places.clone(), Access::ReadOnly)?;
        Ok(self.contents.clones(places).into_iter().map(Shared).collect())
    }

    /// Puts granules of other ranges behind the places from `place` on, read only: all or none.
    ///
    /// # Errors
    /// [`Error::OtherBank`]; [`Error::Device`], also where a place has memory already.
    pub fn map_shared(&mut self, place: usize, shared: &[Shared]) -> Result<(), Error> {
        if shared.iter().any(|shared| !shared.0.is_of(self.bank.inner())) {
            return Err(Error::OtherBank { what: "a shared granule" });
        }
        let granules: Vec<_> = shared.iter().map(|shared| shared.0.granule().clone()).collect();
        self.reservation.map(place, &granules, Access::ReadOnly)?;
        self.contents.put(place, shared.iter().map(|shared| shared.0.clone()));
        Ok(())
    }

    /// Makes a place writable again, at the same address and with the same bytes: by a copy of its own where the granule is
    /// shared, and without one where it is not.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::TooLarge`]; [`Error::Device`], also where the place has no memory.
    pub fn make_private(&mut self, place: usize) -> Result<(), Error> {
        let granule = self.granule_len();
        self.reservation
            .slice(place.saturating_mul(granule)..place.saturating_add(1).saturating_mul(granule))?;
        let mut stock = self.bank.take(&self.owner, usize::from(self.is_shared(place)))?;
        self.privatize(place, 0..granule, &mut stock).map(|_| ())
    }

    /// The bytes at `range`, to read.
    ///
    /// # Errors
    /// [`Error::Device`]: out of range, or nothing behind some of it.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Result<DeviceSlice<'_>, Error> {
        Ok(self.reservation.slice(range)?)
    }

    /// The bytes at `range`, to write.
    ///
    /// # Errors
    /// [`Error::Device`]: out of range, nothing behind some of it, or read only because it was shared.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> Result<DeviceSliceMut<'_>, Error> {
        Ok(self.reservation.slice_mut(range)?)
    }

    pub(crate) fn is_read_only(&self, place: usize) -> bool {
        self.access(place) == Access::ReadOnly
    }

    /// The size of a granule; a reservation of it was made, so it can be addressed.
    pub(crate) fn granule_len(&self) -> usize {
        self.bank.granule().to_usize().unwrap_or(usize::MAX)
    }

    /// The places among these that have no memory, as runs.
    pub(crate) fn gaps(&self, places: &Span<usize>) -> Result<Vec<Span<usize>>, Error> {
        self.runs(places, false)
    }

    /// The places among these that have memory, as runs.
    pub(crate) fn mapped_runs(&self, places: &Span<usize>) -> Result<Vec<Span<usize>>, Error> {
        self.runs(places, true)
    }

    /// Maps granules of the stock, which has enough, behind runs of empty places: all, or none and the stock has them
    /// still.
    pub(crate) fn map_gaps(&mut self, gaps: &[Span<usize>], stock: &mut Stock) -> Result<(), Error> {
        for (index, gap) in gaps.iter().enumerate() {
            let at = stock.pieces.len().saturating_sub(gap.len());
            let granules: Vec<_> = stock.pieces[at..].iter().map(|piece| piece.granule().clone()).collect();
            if let Err(error) = self.reservation.map(gap.start, &granules, Access::ReadWrite) {
                for gap in gaps[..index].iter().rev() {
                    self.reservation.evict(gap.clone());
                    stock.pieces.extend(self.contents.take(gap.clone()));
                }
                return Err(error.into());
            }
            self.contents.put(gap.start, stock.pieces.drain(at..));
        }
        Ok(())
    }

    /// Takes memory away without a chance to fail, to undo.
    pub(crate) fn evict(&mut self, places: Span<usize>) {
        self.reservation.evict(places.clone());
        drop(self.contents.take(places));
    }

    /// Takes memory away from places that all have some, and answers with what it takes to [`Range::put_back`].
    pub(crate) fn take_out(&mut self, places: Span<usize>) -> Result<Vec<(Piece, Access)>, Error> {
        let access: Vec<Access> = places.clone().map(|place| self.access(place)).collect();
        self.reservation.unmap(places.clone())?;
        Ok(self.contents.take(places).into_iter().zip(access).collect())
    }

    /// Undoes [`Range::take_out`], as far as the system goes along; answers how many places have their memory back. The rest
    /// stays away, which is what was asked for.
    pub(crate) fn put_back(&mut self, place: usize, pieces: Vec<(Piece, Access)>) -> usize {
        let mut back = 0;
        for (place, (piece, access)) in (place..).zip(pieces) {
            if self.reservation.map(place, std::slice::from_ref(piece.granule()), access).is_err() {
                break;
            }
            self.contents.put(place, [piece]);
            back += 1;
        }
        back
    }

    /// Undoes a share that nobody made use of, as far as the system goes along: else the next growth does it.
    pub(crate) fn allow_writing(&mut self, place: usize) {
        let _ = self.reservation.set_access(place..place + 1, Access::ReadWrite);
    }

    /// Makes one read-only place writable, keeping these bytes of it. The stock has a granule where it is shared.
    pub(crate) fn privatize(
        &mut self,
        place: usize,
        keep: Span<usize>,
        stock: &mut Stock,
    ) -> Result<Privatized, Error> {
        let Some(piece) = stock.pieces.pop_if(|_| self.is_shared(place)) else {
            self.reservation.set_access(place..place + 1, Access::ReadWrite)?;
            return Ok(Privatized::InPlace(place));
        };
        if !keep.is_empty() {
            let start = place * self.granule_len();
            let device = self.bank.device();
            let mut stage = device.reserve(self.bank.granule())?;
            stage.map(0, std::slice::from_ref(piece.granule()), Access::ReadWrite)?;
            let from = self.reservation.slice(start + keep.start..start + keep.end)?;
            device.copy(from, stage.slice_mut(keep)?)?;
            stage.unmap(0..1)?;
        }
        self.reservation.replace(place, piece.granule(), Access::ReadWrite)?;
        match self.contents.replace(place, piece) {
            Some(before) => Ok(Privatized::Copied(place, before)),
            None => Ok(Privatized::InPlace(place)),
        }
    }

    /// Undoes [`Range::privatize`], as far as the system goes along: a private copy that stays has the same bytes.
    pub(crate) fn unprivatize(&mut self, done: Privatized) {
        match done {
            Privatized::InPlace(place) => {
                // Writable or not, the place is this range's alone.
                let _ = self.reservation.set_access(place..place + 1, Access::ReadOnly);
            }
            Privatized::Copied(place, before) => {
                if self.reservation.replace(place, before.granule(), Access::ReadOnly).is_ok() {
                    drop(self.contents.replace(place, before));
                }
            }
        }
    }

    fn access(&self, place: usize) -> Access {
        self.reservation.mapped(place).map_or(Access::ReadOnly, |(_, access)| access)
    }

    /// The places among these that have memory, or that have none, as runs.
    fn runs(&self, places: &Span<usize>, mapped: bool) -> Result<Vec<Span<usize>>, Error> {
        let no_such = || granule_device::Error::NoSuchPlace { range: places.clone(), places: self.places() };
        Ok(self.contents.runs(places, mapped).ok_or_else(no_such)?)
    }

    /// So much of it, from its start on, is in use: for recordings.
    pub(crate) fn tell_used(&self, used: Bytes) {
        self.contents.used(used);
    }
}
