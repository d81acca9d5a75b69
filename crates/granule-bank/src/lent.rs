//! `Lent`: places of a range in somebody else's hands, to be filled there, on another thread, or given back.

use granule_device::{Event, Granule};

use crate::piece::{Piece, PieceId};
use crate::trace::RangeId;
use crate::{Bank, Error, Owner, Stock};

/// Places that a [`Range`](crate::Range) has [lent](crate::Range::lend), bare or [with what stands behind
/// them](crate::Range::lend_filled). Whoever holds this fills them, while the range is used elsewhere; what they are filled with
/// counts as the range's owner's at once, and stands behind the range when it is [taken back](crate::Range::take_back).
/// Dropping it gives everything back.
#[must_use = "dropping it gives back what it was filled with and ends the loan"]
#[derive(Debug)]
pub struct Lent {
    // Dropped before the pieces: a granule is unmapped before it goes back to the bank.
    pub(crate) lent: granule_device::Lent,
    pub(crate) pieces: Vec<Piece>,
    bank: Bank,
    owner: Owner,
    range: RangeId,
}

impl Lent {
    pub(crate) fn new(
        lent: granule_device::Lent,
        pieces: Vec<Piece>,
        (bank, owner, range): (&Bank, &Owner, RangeId),
    ) -> Lent {
        Lent { lent, pieces, bank: bank.clone(), owner: owner.clone(), range }
    }

    /// The number of the first place.
    pub fn first(&self) -> usize {
        self.lent.first()
    }

    /// How many places they are.
    pub fn places(&self) -> usize {
        self.lent.places()
    }

    /// True once memory stands behind all of them.
    pub fn is_filled(&self) -> bool {
        self.lent.is_mapped()
    }

    /// Which granules stand behind them; none before they are filled.
    pub fn pieces(&self) -> impl Iterator<Item = PieceId> + '_ {
        self.pieces.iter().map(Piece::id)
    }

    /// Puts memory behind the places: all or nothing. Under pressure it goes as in [`Bank::take`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::TooLarge`], [`Error::Device`].
    pub fn fill(&mut self) -> Result<(), Error> {
        let mut stock = self.bank.take(&self.owner, self.places())?;
        self.fill_from(&mut stock)
    }

    /// Gives everything back, but keeps it mapped until the event is done where it is not yet: for memory that device work may
    /// still use. Only then are the places empty ones of their range.
    pub fn give_back_after(self, event: &Event) {
        if event.is_done() || self.pieces.is_empty() {
            return;
        }
        // The range said that they are gone when it lent them.
        self.bank.retiring().push_lent(self.range, self.lent, self.pieces, event);
    }

    /// As [`Lent::fill`], with granules that were taken before. What is not needed stays in the stock, and where it fails all
    /// of it does.
    ///
    /// # Errors
    /// [`Error::StockTooSmall`], [`Error::OtherBank`], [`Error::Device`].
    pub fn fill_from(&mut self, stock: &mut Stock) -> Result<(), Error> {
        let (needed, stocked) = (self.places(), stock.len());
        if stocked < needed {
            return Err(Error::StockTooSmall { needed, stocked });
        }
        if stock.pieces.iter().any(|piece| !piece.is_of(self.bank.inner())) {
            return Err(Error::OtherBank { what: "a stock of granules" });
        }
        let at = stocked - needed;
        let granules: Vec<Granule> = stock.pieces[at..].iter().map(|piece| piece.granule().clone()).collect();
        self.lent.map(&granules)?;
        self.pieces.extend(stock.pieces.drain(at..));
        Ok(())
    }
}
