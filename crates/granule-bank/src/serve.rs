//! How requests are served: the books first, under their lock, then the driver, under none.

use std::sync::{Arc, MutexGuard, PoisonError};

use granule_device::{Bytes, Granule};

use crate::bank::{Books, Both, Goods, Inner, Tag};
use crate::ledger::Refusal;
use crate::ledger::allowance::Allowance;
use crate::piece::Piece;
use crate::trace::Event;
use crate::{Charge, Error, Owner, PieceId, Stock};

/// How often what stands in the way of a request is cleared away for it, before it counts as full. Others may put something
/// there again; a preparer does not while a request is urgent.
const CLEARINGS: u32 = 16;

impl Inner {
    pub(crate) fn take(self: &Arc<Inner>, owner: &Owner, count: usize) -> Result<Stock, Error> {
        self.check_goods(Goods::Granules)?;
        let requested = self.granule().saturating_mul(count as u64);
        let mut urgent = None;
        loop {
            let prepared = self.books().ledger.counts().prepared;
            let book = |books: &mut Books, allowance: &mut Allowance, tag: Tag| {
                let admission = books.ledger.take(allowance, tag.account, count)?;
                let dropped = books.oldest(admission.drop);
                let reused = books.newest(admission.reuse);
                Ok((admission.create, reused, dropped, books.ledger.is_low()))
            };
            let (tag, (create, reused, dropped, is_low)) = self.admit(owner, requested, book)?;
            if is_low {
                self.signal.wake();
            }
            self.release(dropped);
            let refused = match self.make(tag, create, reused) {
                Ok(pieces) => return Ok(Stock { pieces }),
                Err(error @ granule_device::Error::OutOfMemory { .. }) => error,
                Err(error) => return Err(error.into()),
            };
            // What fills the device may be a granule that was made ahead meanwhile. While this is urgent there are no more.
            urgent.get_or_insert_with(|| self.budget.urgent());
            if self.when_prepared().ledger.counts().prepared == prepared {
                return Err(self.device_refused(refused, owner, requested));
            }
        }
    }

    /// Makes so many granules beside those that are reused: all of them are booked, and all go back where one cannot be made.
    fn make(
        self: &Arc<Inner>,
        tag: Tag,
        create: usize,
        reused: Vec<Granule>,
    ) -> Result<Vec<Piece>, granule_device::Error> {
        let piece = |granule| Piece::new(Arc::clone(self), tag, granule);
        let mut pieces: Vec<Piece> = Vec::with_capacity(reused.len() + create);
        pieces.extend(reused.into_iter().map(piece));
        let reused = pieces.len();
        let mut outcome = self.leave_reserve(create);
        while outcome.is_ok() && pieces.len() < reused + create {
            outcome = self.device.create_granule().map(|granule| pieces.push(piece(granule)));
        }
        let made = pieces.len() - reused;
        self.tracer.emit_all(|| {
            let (device, owner) = (self.traced, tag.owner);
            let granules = pieces.iter().map(|piece| piece.id().get()).collect();
            let made = (made > 0).then_some(Event::Create { device, count: made as u64 });
            made.into_iter().chain((!pieces.is_empty()).then_some(Event::Take { device, owner, granules }))
        });
        if create > 0 {
            let mut both = self.both();
            both.books.ledger.made(&mut both.allowance, tag.account, made, create - made);
        }
        self.changed();
        outcome.map(|()| pieces)
    }

    pub(crate) fn charge(self: &Arc<Inner>, owner: &Owner, size: Bytes) -> Result<Charge, Error> {
        let book = |books: &mut Books, allowance: &mut Allowance, tag: Tag| {
            let drop = books.ledger.charge(allowance, tag.account, size)?;
            Ok(books.oldest(drop))
        };
        let (tag, dropped) = self.admit(owner, size, book)?;
        self.release(dropped);
        self.tracer.emit(|| Event::Charge { device: self.traced, owner: tag.owner, size });
        self.changed();
        Ok(Charge { bank: Arc::clone(self), tag, size })
    }

    /// Takes back a granule that nobody holds or maps any more.
    pub(crate) fn give_back(&self, tag: Tag, id: PieceId, granule: Granule) {
        let granules = || vec![id.get()];
        self.tracer.emit(|| Event::Give { device: self.traced, owner: tag.owner, granules: granules() });
        let mut both = self.both();
        let count = both.books.ledger.give_back(&mut both.allowance, tag.account);
        both.books.cache.push(granule);
        let dropped = both.books.oldest(count);
        drop(both);
        self.release(dropped);
        self.changed();
    }

    pub(crate) fn discharge(&self, tag: Tag, size: Bytes) {
        self.tracer.emit(|| Event::Discharge { device: self.traced, owner: tag.owner, size });
        let is_low = {
            let mut both = self.both();
            both.books.ledger.discharge(&mut both.allowance, tag.account, size);
            both.books.ledger.is_low()
        };
        if is_low {
            self.signal.wake();
        }
        self.changed();
    }

    /// Lets go of granules that nobody holds, at least `want` if there is so much; answers how much.
    pub(crate) fn shed(&self, want: Bytes) -> Bytes {
        let dropped = {
            let mut both = self.both();
            let count = both.books.ledger.shed(&mut both.allowance, want);
            both.books.oldest(count)
        };
        let size = self.granule().saturating_mul(dropped.len() as u64);
        self.release(dropped);
        size
    }

    /// The driver is called, by the granules' drop. No lock is held.
    pub(crate) fn release(&self, granules: Vec<Granule>) {
        if !granules.is_empty() {
            let count = granules.len() as u64;
            self.tracer.emit(|| Event::Destroy { device: self.traced, count });
        }
    }

    /// Tells whether so many granules can be made with the reserve left free.
    pub(crate) fn leave_reserve(&self, count: usize) -> Result<(), granule_device::Error> {
        if self.reserve.is_zero() || count == 0 {
            return Ok(());
        }
        let memory = self.device.memory()?;
        let (requested, free) =
            (self.granule().saturating_mul(count as u64), memory.free.saturating_sub(self.reserve));
        if requested <= free {
            return Ok(());
        }
        let device = self.device.name().to_owned();
        Err(granule_device::Error::OutOfMemory { device, requested, free, capacity: memory.total })
    }

    /// The device ran out before the budget did: its own word for it, in the bank's terms.
    pub(crate) fn device_refused(
        &self,
        error: granule_device::Error,
        owner: &Owner,
        requested: Bytes,
    ) -> Error {
        let granule_device::Error::OutOfMemory { free, .. } = error else { return Error::Device(error) };
        let Both { allowance, books } = self.both();
        Error::OutOfMemory {
            device: self.device.name().to_owned(),
            owner: owner.clone(),
            requested,
            held: books.ledger.held(),
            free,
            budget: books.ledger.limit(&allowance),
            largest_owner: books.ledger.largest_owner(),
        }
    }

    /// Refuses what the bank does not hand out.
    pub(crate) fn check_goods(&self, goods: Goods) -> Result<(), Error> {
        if self.goods == goods {
            return Ok(());
        }
        let (what, why) = match goods {
            Goods::Granules => ("a granule", "this bank is over pinned memory"),
            Goods::Pinned => {
                ("a pinned block", "this bank is over granules; Bank::pinned makes one that is not")
            }
        };
        Err(granule_device::Error::Unsupported { what, why }.into())
    }

    /// Books a request, after making way for it where something stands there that nobody holds.
    fn admit<T>(
        &self,
        owner: &Owner,
        requested: Bytes,
        mut book: impl FnMut(&mut Books, &mut Allowance, Tag) -> Result<T, Refusal>,
    ) -> Result<(Tag, T), Error> {
        let mut urgent = None;
        for _ in 0..CLEARINGS {
            let refusal = {
                let mut both = self.both();
                let tag = self.tag(&mut both.books, owner);
                match book(&mut both.books, &mut both.allowance, tag) {
                    Ok(booked) => return Ok((tag, booked)),
                    Err(refusal) => refusal,
                }
            };
            match refusal {
                Refusal::InTheWay(bytes) => {
                    urgent.get_or_insert_with(|| self.budget.urgent());
                    self.clear_the_way(bytes);
                }
                refusal => return Err(self.refusal(refusal, owner, requested)),
            }
        }
        Err(self.refusal(Refusal::Full, owner, requested))
    }

    /// Lets what is being prepared come to its end, and other banks of the budget let go of what they keep.
    fn clear_the_way(&self, bytes: Bytes) {
        let mut left = bytes;
        for bank in self.budget.members() {
            drop(bank.when_prepared());
            if !std::ptr::eq(self, Arc::as_ptr(&bank)) && !left.is_zero() {
                left = left.saturating_sub(bank.shed(left));
            }
        }
    }

    /// The books, once no granule is being made ahead.
    fn when_prepared(&self) -> MutexGuard<'_, Books> {
        let preparing = |books: &mut Books| books.ledger.is_preparing();
        self.prepared.wait_while(self.books(), preparing).unwrap_or_else(PoisonError::into_inner)
    }

    fn refusal(&self, refusal: Refusal, owner: &Owner, requested: Bytes) -> Error {
        let (device, owner) = (self.device.name().to_owned(), owner.clone());
        let Both { allowance, books } = self.both();
        let (held, free) = (books.ledger.held(), books.ledger.free(&allowance));
        let budget = books.ledger.limit(&allowance);
        match refusal {
            Refusal::TooLarge => Error::TooLarge { device, owner, requested, held, free, budget },
            Refusal::Full | Refusal::InTheWay(_) => {
                let largest_owner = books.ledger.largest_owner();
                Error::OutOfMemory { device, owner, requested, held, free, budget, largest_owner }
            }
        }
    }
}
