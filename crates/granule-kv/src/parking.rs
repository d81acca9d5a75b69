//! Parking: the ranges of sequences that are gone, kept with what is mapped behind them, for the next sequence.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use granule_bank::{Offer, Owner, Range, Reclaim};
use granule_device::{Bytes, Event};

/// One range for each group, and what device work may still do with them.
#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) ranges: Vec<Range>,
    pub(crate) busy: Option<Event>,
    /// Rows that the ranges have addresses for.
    pub(crate) rows: usize,
}

impl Set {
    /// Which places of which range have memory, and whether it is shared.
    fn places(&self) -> impl Iterator<Item = (usize, usize, bool)> + '_ {
        let of = |(group, range): (usize, &Range)| {
            let pieces = range.pieces().into_iter();
            pieces.map(move |(place, _, shared)| (group, place, shared)).collect::<Vec<_>>()
        };
        self.ranges.iter().enumerate().flat_map(of)
    }

    pub(crate) fn granules(&self) -> usize {
        self.places().count()
    }

    /// Takes away what is shared, and what is further from the start than the first `keep` places; false where the system
    /// refuses.
    fn cut(&mut self, keep: usize) -> bool {
        let gone: Vec<_> = self.places().filter(|&(_, place, shared)| shared || place >= keep).collect();
        gone.into_iter().all(|(group, place, _)| clear(&mut self.ranges[group], place, self.busy.as_ref()))
    }
}

/// Takes the memory away from behind a place, once the work is done.
pub(crate) fn clear(range: &mut Range, place: usize, busy: Option<&Event>) -> bool {
    match busy {
        Some(event) => range.clear_after(place..place + 1, event).is_ok(),
        None => range.clear(place..place + 1).is_ok(),
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        // Work that is under way goes on with memory that stays mapped until it is done.
        if let Some(event) = self.busy.take_if(|event| !event.is_done()) {
            for range in &mut self.ranges {
                let all = 0..range.places();
                if range.clear_after(all, &event).is_err() {
                    event.synchronize();
                }
            }
        }
    }
}

/// The sets, oldest first, up to a limit; the bank asks for them when memory is short.
#[derive(Debug)]
pub(crate) struct Parking {
    owner: Owner,
    granule: Bytes,
    limit: Bytes,
    sets: Mutex<Vec<Set>>,
}

impl Parking {
    pub(crate) fn new(owner: &Owner, granule: Bytes, limit: Bytes) -> Arc<Parking> {
        Arc::new(Parking { owner: owner.clone(), granule, limit, sets: Mutex::default() })
    }

    /// Keeps a sequence's ranges, with as much of what is behind them as the limit allows, from the start on.
    pub(crate) fn park(&self, mut set: Set) {
        let groups = set.ranges.len().max(1);
        let keep = self.limit.get() / self.granule.get().max(1) / groups as u64;
        if keep == 0 || !set.cut(usize::try_from(keep).unwrap_or(usize::MAX)) || set.granules() == 0 {
            return;
        }
        let mut sets = self.lock();
        sets.push(set);
        let mut excess = self.size(&sets).saturating_sub(self.limit);
        let mut gone = Vec::new();
        while !excess.is_zero() && !sets.is_empty() {
            let oldest = sets.remove(0);
            excess = excess.saturating_sub(self.size(std::slice::from_ref(&oldest)));
            gone.push(oldest);
        }
        // The driver is called without the lock.
        drop(sets);
        drop(gone);
    }

    /// The set that was parked last of those with so many rows, if no work is left on it.
    pub(crate) fn take(&self, rows: usize) -> Option<Set> {
        let mut sets = self.lock();
        let fits = |set: &Set| set.rows >= rows && set.busy.as_ref().is_none_or(Event::is_done);
        let index = sets.iter().rposition(fits)?;
        Some(sets.remove(index))
    }

    /// Lets go of all of them; answers how much that was.
    pub(crate) fn empty(&self) -> Bytes {
        let sets = std::mem::take(&mut *self.lock());
        self.size(&sets)
    }

    /// How much is parked.
    pub(crate) fn parked(&self) -> Bytes {
        self.size(&self.lock())
    }

    fn size(&self, sets: &[Set]) -> Bytes {
        self.granule.saturating_mul(sets.iter().map(Set::granules).sum::<usize>() as u64)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Set>> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reclaim for Parking {
    fn owner(&self) -> Owner {
        self.owner.clone()
    }

    fn could_give(&self) -> Vec<Offer> {
        // Mapping it again is all that is lost.
        vec![Offer::new(self.parked(), 0)]
    }

    fn reclaim(&self, want: Bytes) -> Bytes {
        // Nobody asks the bank with the lock held, so it is waited for: to give nothing would be a false out of memory.
        let mut sets = self.lock();
        let mut gone = Vec::new();
        while self.size(&gone) < want && !sets.is_empty() {
            gone.push(sets.remove(0));
        }
        drop(sets);
        let size = self.size(&gone);
        drop(gone);
        size
    }
}
