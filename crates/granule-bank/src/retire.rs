//! The retire queue: memory that is given back once device work that may still use it is done.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, Weak};

use granule_device::{Event, Retired};

use crate::piece::Piece;
use crate::places::Places;
use crate::trace::RangeId;

/// What waits for its event. Every handle of a bank has it, granules do not: the last handle to go waits for what is left.
#[derive(Debug, Default)]
pub(crate) struct RetireQueue {
    waiting: Mutex<Vec<Retiree>>,
    /// How many places wait or are being given back at this moment; the common answer, none, is had without the lock.
    places: AtomicUsize,
    /// How many places were ever pushed, which is also where the numbers of retirees come from.
    pushed: AtomicU64,
}

#[derive(Debug)]
struct Retiree {
    id: u64,
    range: RangeId,
    /// Who tells of it. Gone with its range; nobody where the range let go of the places before.
    places: Weak<Places>,
    /// The first place.
    first: usize,
    // Unmapped before the pieces go back to the bank.
    retired: Retired,
    pieces: Vec<Piece>,
    event: Event,
}

impl RetireQueue {
    pub(crate) fn push(
        &self,
        range: RangeId,
        places: Weak<Places>,
        first: usize,
        retired: Retired,
        pieces: Vec<Piece>,
        event: &Event,
    ) {
        let id = self.pushed.fetch_add(pieces.len() as u64, Ordering::Relaxed);
        self.places.fetch_add(pieces.len(), Ordering::AcqRel);
        let event = event.clone();
        self.waiting().push(Retiree { id, range, places, first, retired, pieces, event });
    }

    /// Gives back what has waited long enough. What the system does not unmap goes on waiting; answers whether there is any.
    pub(crate) fn poll(&self) -> bool {
        if self.places() == 0 {
            return false;
        }
        // The driver is asked, and told to unmap, without the lock.
        let events: Vec<(u64, Event)> =
            self.waiting().iter().map(|retiree| (retiree.id, retiree.event.clone())).collect();
        let done: Vec<u64> = events.iter().filter(|(_, event)| event.is_done()).map(|&(id, _)| id).collect();
        let ready: Vec<Retiree> =
            self.waiting().extract_if(.., |retiree| done.contains(&retiree.id)).collect();
        let mut refused = false;
        for mut retiree in ready {
            if retiree.retired.finish().is_err() {
                refused = true;
                self.waiting().push(retiree);
                continue;
            }
            let count = retiree.pieces.len();
            if let Some(places) = retiree.places.upgrade() {
                places.retired(&(retiree.first..retiree.first + count));
            }
            drop(retiree);
            self.places.fetch_sub(count, Ordering::AcqRel);
        }
        refused
    }

    /// Waits for everything that was pushed before, and gives it back.
    pub(crate) fn drain(&self) {
        let events: Vec<Event> = self.waiting().iter().map(|retiree| retiree.event.clone()).collect();
        events.iter().for_each(Event::synchronize);
        self.poll();
    }

    /// How many places wait, or are being given back at this moment by whoever noticed that they can be.
    pub(crate) fn places(&self) -> usize {
        self.places.load(Ordering::Acquire)
    }

    /// Asks about everything that waits: its range, its place, its piece.
    pub(crate) fn each<T>(&self, mut ask: impl FnMut(RangeId, usize, &Piece) -> T) -> Vec<T> {
        let mut answers = Vec::new();
        for retiree in self.waiting().iter() {
            let places = (retiree.first..).zip(&retiree.pieces);
            answers.extend(places.map(|(place, piece)| ask(retiree.range, place, piece)));
        }
        answers
    }

    /// How many places were ever pushed.
    pub(crate) fn pushed(&self) -> u64 {
        self.pushed.load(Ordering::Relaxed)
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Retiree>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RetireQueue {
    fn drop(&mut self) {
        let waiting = self.waiting.get_mut().unwrap_or_else(PoisonError::into_inner);
        waiting.iter().for_each(|retiree| retiree.event.synchronize());
    }
}
