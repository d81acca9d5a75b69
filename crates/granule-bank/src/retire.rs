//! The retire queue: memory that is given back once device work that may still use it is done.

use std::sync::{Mutex, MutexGuard, PoisonError};

use granule_device::{Event, Retired};

use crate::piece::Piece;

/// What waits for its event. Every handle of a bank has it, granules do not: the last handle to go waits for what is left.
#[derive(Debug, Default)]
pub(crate) struct RetireQueue {
    waiting: Mutex<Vec<Retiree>>,
}

#[derive(Debug)]
struct Retiree {
    // Unmapped before the pieces go back to the bank.
    retired: Retired,
    pieces: Vec<Piece>,
    event: Event,
}

impl RetireQueue {
    pub(crate) fn push(&self, retired: Retired, pieces: Vec<Piece>, event: &Event) {
        self.waiting().push(Retiree { retired, pieces, event: event.clone() });
    }

    /// Gives back what has waited long enough. What the system does not unmap goes on waiting.
    pub(crate) fn poll(&self) {
        let ready: Vec<Retiree> = self.waiting().extract_if(.., |retiree| retiree.event.is_done()).collect();
        for mut retiree in ready {
            if retiree.retired.finish().is_err() {
                self.waiting().push(retiree);
            }
        }
    }

    /// Waits for everything that was pushed before, and gives it back.
    pub(crate) fn drain(&self) {
        let events: Vec<Event> = self.waiting().iter().map(|retiree| retiree.event.clone()).collect();
        events.iter().for_each(Event::synchronize);
        self.poll();
    }

    /// How many places wait.
    pub(crate) fn places(&self) -> usize {
        self.waiting().iter().map(|retiree| retiree.pieces.len()).sum()
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
