//! The retire queue: memory that is given back once device work that may still use it is done.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, Weak};

use granule_device::{Event, Retired};

use crate::piece::Piece;
use crate::places::Places;
use crate::trace::RangeId;

/// What waits for its event. Every handle of a bank has it, granules do not: the last handle to go waits for what is left.
#[derive(Debug, Default)]
pub(crate) struct RetireQueue {
    waiting: Mutex<Waiting>,
    /// Told when nobody has anything in hand any more.
    settled: Condvar,
    /// How many places wait or are being given back at this moment; the common answer, none, is had without the lock.
    places: AtomicUsize,
    /// How many places were ever pushed, which is also where the numbers of retirees come from.
    pushed: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    retirees: Vec<Retiree>,
    /// How many threads are on the way from their places to this list, or from this list to the bank.
    hands: usize,
}

/// A thread's way to or from the list.
struct Hand<'a>(&'a RetireQueue);

impl Drop for Hand<'_> {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        waiting.hands -= 1;
        if waiting.hands == 0 {
            self.0.settled.notify_all();
        }
    }
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
        self.waiting().retirees.push(Retiree { id, range, places, first, retired, pieces, event });
    }

    /// Retires places and pushes them, so that nobody who [drains](RetireQueue::drain) finds them retiring and not here.
    pub(crate) fn push_lent(
        &self,
        range: RangeId,
        lent: granule_device::Lent,
        pieces: Vec<Piece>,
        event: &Event,
    ) {
        self.waiting().hands += 1;
        let _hand = Hand(self);
        let first = lent.first();
        self.push(range, Weak::new(), first, lent.retire(), pieces, event);
    }

    /// Gives back what has waited long enough. What the system does not unmap goes on waiting; answers whether there is any.
    pub(crate) fn poll(&self) -> bool {
        if self.places() == 0 {
            return false;
        }
        // The driver is asked, and told to unmap, without the lock.
        let events: Vec<(u64, Event)> =
            self.waiting().retirees.iter().map(|retiree| (retiree.id, retiree.event.clone())).collect();
        let done: Vec<u64> = events.iter().filter(|(_, event)| event.is_done()).map(|&(id, _)| id).collect();
        let ready: Vec<Retiree> = {
            let mut waiting = self.waiting();
            waiting.hands += 1;
            waiting.retirees.extract_if(.., |retiree| done.contains(&retiree.id)).collect()
        };
        let _hand = Hand(self);
        let mut refused = false;
        for mut retiree in ready {
            if retiree.retired.finish().is_err() {
                refused = true;
                self.waiting().retirees.push(retiree);
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

    /// Waits for everything that was pushed before, and gives it back; also for what others are pushing or giving back.
    pub(crate) fn drain(&self) {
        let events: Vec<Event> = self.settle().retirees.iter().map(|retiree| retiree.event.clone()).collect();
        events.iter().for_each(Event::synchronize);
        self.poll();
        drop(self.settle());
    }

    /// The list, once nobody has anything of it in hand.
    fn settle(&self) -> MutexGuard<'_, Waiting> {
        let waiting = self.waiting();
        self.settled.wait_while(waiting, |waiting| waiting.hands > 0).unwrap_or_else(PoisonError::into_inner)
    }

    /// How many places wait, or are being given back at this moment by whoever noticed that they can be.
    pub(crate) fn places(&self) -> usize {
        self.places.load(Ordering::Acquire)
    }

    /// Asks about everything that waits: its range, its place, its piece.
    pub(crate) fn each<T>(&self, mut ask: impl FnMut(RangeId, usize, &Piece) -> T) -> Vec<T> {
        let mut answers = Vec::new();
        for retiree in &self.waiting().retirees {
            let places = (retiree.first..).zip(&retiree.pieces);
            answers.extend(places.map(|(place, piece)| ask(retiree.range, place, piece)));
        }
        answers
    }

    /// How many places were ever pushed.
    pub(crate) fn pushed(&self) -> u64 {
        self.pushed.load(Ordering::Relaxed)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RetireQueue {
    fn drop(&mut self) {
        let waiting = self.waiting.get_mut().unwrap_or_else(PoisonError::into_inner);
        waiting.retirees.iter().for_each(|retiree| retiree.event.synchronize());
    }
}
