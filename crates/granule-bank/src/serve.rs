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
        let mut tries = 0;
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
            let (refused, have) = match self.make(tag, create, reused) {
                Ok(pieces) => return Ok(Stock { pieces }),
                Err((error @ granule_device::Error::OutOfMemory { .. }, have)) => (error, have),
                Err((error, _)) => return Err(error.into()),
            };
            // What fills the device may be a granule that was made ahead meanwhile, or what other banks of the budget keep of
            // it. While this is urgent none is made ahead.
            urgent.get_or_insert_with(|| self.budget.urgent());
            let was_prepared = self.when_prepared().ledger.counts().prepared > prepared;
            let lacking = self.granule().saturating_mul((count - have) as u64);
            tries += 1;
            if !(was_prepared || self.shed_neighbours(lacking)) || tries == CLEARINGS {
                return Err(self.device_refused(refused, owner, requested, have));
            }
        }
    }

    /// Makes so many granules beside those that are reused, all of which are booked: all of them are there, or none is
    /// anybody's; then it answers how many there are in the cache for whoever asks again.
    fn make(
        self: &Arc<Inner>,
        tag: Tag,
        create: usize,
        mut granules: Vec<Granule>,
    ) -> Result<Vec<Piece>, (granule_device::Error, usize)> {
        let reused = granules.len();
        let mut outcome = self.leave_reserve(create);
        while outcome.is_ok() && granules.len() < reused + create {
            outcome = self.device.create_granule().map(|granule| granules.push(granule));
        }
        let have = granules.len();
        let (device, owner, made) = (self.traced, tag.owner, (have - reused) as u64);
        let created = (made > 0).then_some(Event::Create { device, count: made });
        if let Err(error) = outcome {
            let mut both = self.both();
            let count =
                both.books.ledger.took_nothing(&mut both.allowance, tag.account, reused + create, have);
            both.books.cache.append(&mut granules);
            let dropped = both.books.oldest(count);
            drop(both);
            self.tracer.emit_all(|| created);
            self.release(dropped);
            self.changed();
            return Err((error, have));
        }
        self.books().ledger.took(tag.account, reused, create);
        let piece = |granule| Piece::new(Arc::clone(self), tag, granule);
        let pieces: Vec<Piece> = granules.into_iter().map(piece).collect();
        self.tracer.emit_all(|| {
            let granules = pieces.iter().map(|piece| piece.id().get()).collect();
            let took = (!pieces.is_empty()).then_some(Event::Take { device, owner, granules });
            created.into_iter().chain(took)
        });
        self.changed();
        Ok(pieces)
    }

    /// Has banks of the budget that are on the same device let go of what they keep; answers whether that was anything.
    fn shed_neighbours(&self, want: Bytes) -> bool {
        let mut left = want;
        for bank in self.budget.members() {
            let same = (bank.device.kind(), bank.device.name()) == (self.device.kind(), self.device.name());
            if same && !std::ptr::eq(self, Arc::as_ptr(&bank)) && !left.is_zero() {
                drop(bank.when_prepared());
                left = left.saturating_sub(bank.shed(left));
            }
        }
        left < want
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
        if count > 0 {
            self.budget.wake();
        }
        self.release(dropped);
        self.changed();
    }

    pub(crate) fn discharge(&self, tag: Tag, size: Bytes) {
        self.tracer.emit(|| Event::Discharge { device: self.traced, owner: tag.owner, size });
        {
            let mut both = self.both();
            both.books.ledger.discharge(&mut both.allowance, tag.account, size);
        }
        self.budget.wake();
        self.changed();
    }

    /// Lets go of granules that nobody holds, at least `want` if there is so much; answers how much. That is no reason to make
    /// some ahead: whoever asks has need of the room.
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

    /// The device ran out before the budget did: its own word for it, in the bank's terms. So many granules the bank had got
    /// hold of; they are for the asking.
    pub(crate) fn device_refused(
        &self,
        error: granule_device::Error,
        owner: &Owner,
        requested: Bytes,
        have: usize,
    ) -> Error {
        let granule_device::Error::OutOfMemory { free, .. } = error else { return Error::Device(error) };
        let free = free.saturating_add(self.granule().saturating_mul(have as u64));
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
