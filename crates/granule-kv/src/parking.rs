//! Parking: the ranges of sequences that are gone, kept with what is mapped behind them, for the next sequence.

use std::ops::Range as Span;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use granule_bank::Range;
use granule_device::{Bytes, Event};

/// One range for each group, and what device work may still do with them.
#[derive(Debug)]
pub(crate) struct Set {
    pub(crate) ranges: Vec<Range>,
    pub(crate) busy: Option<Event>,
    /// Rows that the ranges have addresses for.
    pub(crate) rows: usize,
    /// How many places have memory, once it is parked.
    granules: usize,
}

impl Set {
    pub(crate) fn new(ranges: Vec<Range>, rows: usize, busy: Option<Event>) -> Set {
        Set { ranges, busy, rows, granules: 0 }
    }

    pub(crate) fn granules(&self) -> usize {
        self.granules
    }

    /// Takes away what is shared, and what is further from the start than the first `keep` places, and counts the rest; false
    /// where the system refuses.
    fn cut(&mut self, keep: usize) -> bool {
        let busy = self.busy.as_ref();
        self.granules = 0;
        self.ranges.iter_mut().all(|range| {
            let pieces = range.pieces();
            // What was shared until the others let go is read only still.
            let mut is_ours = |place| range.writable_to(place) > place || range.make_private(place).is_ok();
            let gone =
                pieces.iter().filter(|&&(place, _, shared)| shared || place >= keep || !is_ours(place));
            let gone = runs(gone.map(|&(place, ..)| place));
            self.granules += pieces.len() - gone.iter().map(Span::len).sum::<usize>();
            gone.into_iter().all(|places| clear(range, places, busy))
        })
    }
}

/// Places in rising order as runs.
fn runs(places: impl Iterator<Item = usize>) -> Vec<Span<usize>> {
    let mut runs: Vec<Span<usize>> = Vec::new();
    for place in places {
        match runs.last_mut() {
            Some(run) if run.end == place => run.end += 1,
            _ => runs.push(place..place + 1),
        }
    }
    runs
}

/// Takes the memory away from behind places, once the work is done; false where the system refuses.
pub(crate) fn clear(range: &mut Range, places: Span<usize>, busy: Option<&Event>) -> bool {
    match busy {
        Some(event) => range.clear_after(places, event).is_ok(),
        None => range.clear(places).is_ok(),
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

/// The sets, oldest first, up to a limit.
#[derive(Debug)]
pub(crate) struct Parking {
    granule: Bytes,
    limit: Bytes,
    sets: Mutex<Vec<Set>>,
}

impl Parking {
    pub(crate) fn new(granule: Bytes, limit: Bytes) -> Parking {
        Parking { granule, limit, sets: Mutex::default() }
    }

    /// Keeps a sequence's ranges, with as much of what is behind them as the limit allows, from the start on.
    pub(crate) fn park(&self, mut set: Set) {
        let groups = set.ranges.len().max(1);
        let limit = usize::try_from(self.limit.get() / self.granule.get().max(1)).unwrap_or(usize::MAX);
        if limit / groups == 0 || !set.cut(limit / groups) || set.granules == 0 {
            return;
        }
        let mut sets = self.lock();
        sets.push(set);
        let excess = count(&sets).saturating_sub(limit);
        let gone = oldest(&mut sets, excess);
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

    /// Lets go of all of them; answers how many granules that was.
    pub(crate) fn empty(&self) -> usize {
        let sets = std::mem::take(&mut *self.lock());
        count(&sets)
    }

    /// The oldest ones, with so many granules together if there are as many; `leaving` counts them before anybody can find them gone.
    pub(crate) fn give(&self, wanted: usize, leaving: &AtomicUsize) -> Vec<Set> {
        let mut sets = self.lock();
        let gone = oldest(&mut sets, wanted);
        leaving.fetch_add(count(&gone), Ordering::AcqRel);
        gone
    }

    /// How many granules are parked.
    pub(crate) fn granules(&self) -> usize {
        count(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Set>> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn count(sets: &[Set]) -> usize {
    sets.iter().map(Set::granules).sum()
}

/// Takes the oldest ones out, as many as have so many granules together.
fn oldest(sets: &mut Vec<Set>, granules: usize) -> Vec<Set> {
    let mut sum = 0;
    let end = sets.iter().position(|set| {
        let is_enough = sum >= granules;
        sum += set.granules;
        is_enough
    });
    sets.drain(..end.unwrap_or(sets.len())).collect()
}
