//! `Spare`: memory of a live sequence that no token lies in: mapped ahead of its position, or left by tokens that are gone.
//!
//! It is the sequence's as long as nobody needs it more. The places are lent (see [`Range::lend`](granule_bank::Range::lend)), so
//! whoever has the loan can give them back on any thread: the sequence takes them when it comes to them, which calls nobody; the
//! cache's reclaimer takes them when the bank is asked for more than it has; and the mapper fills those that are bare. A
//! loan that the mapper fails to fill ends: the sequence finds the places bare and maps them itself, and tells of the error if there
//! still is one.
//!
//! The lock is held for as long as it takes to move loans from one hand to another, never while a driver or the bank is called.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use granule_bank::{Lent, PieceId};
use granule_device::Event;

use crate::mapper::is_mapper;
use crate::stats::Counts;

/// Places of a group.
pub(crate) type Loan = (usize, Lent);

#[derive(Debug, Default)]
pub(crate) struct Spare {
    state: Mutex<State>,
    /// Told when the mapper is done with what it took.
    changed: Condvar,
    /// How often the sequence has less than it thought: somebody needed it more, or it was not to be had.
    lost: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    /// With memory behind them.
    filled: Vec<Loan>,
    /// Bare, until the mapper comes to them.
    asked: Vec<Loan>,
    /// Whether it has them in hand.
    filling: bool,
    /// Whether it failed to fill what it was asked for last.
    failed: bool,
    /// When the last device work that may use what is filled is done.
    busy: Option<Event>,
}

impl Spare {
    /// How many granules it is.
    pub(crate) fn granules(&self) -> usize {
        self.lock().filled.iter().map(|(_, lent)| lent.places()).sum()
    }

    /// Which granules.
    pub(crate) fn pieces(&self) -> Vec<PieceId> {
        self.lock().filled.iter().flat_map(|(_, lent)| lent.pieces()).collect()
    }

    /// How often something was lost.
    pub(crate) fn lost(&self) -> usize {
        self.lost.load(Ordering::Acquire)
    }

    pub(crate) fn set_busy(&self, event: &Event) {
        self.lock().busy = Some(event.clone());
    }

    /// Adds loans with memory behind them.
    pub(crate) fn put(&self, loans: impl IntoIterator<Item = Loan>) {
        self.lock().filled.extend(loans);
    }

    /// Takes out all that have memory behind them.
    pub(crate) fn drain(&self) -> Vec<Loan> {
        std::mem::take(&mut self.lock().filled)
    }

    /// Has the sequence do as it likes with the loans that have memory behind them, but for letting go of them.
    pub(crate) fn with<T>(&self, change: impl FnOnce(&mut Vec<Loan>) -> T) -> T {
        change(&mut self.lock().filled)
    }

    /// Where the group's loans end that follow one another from `place` on, and where the next one behind a gap begins.
    pub(crate) fn reach(&self, group: usize, place: usize) -> (usize, usize) {
        let state = self.lock();
        let of_group = || state.filled.iter().filter(|(of, _)| *of == group).map(|(_, lent)| lent);
        let mut at = place;
        while let Some(lent) = of_group().find(|lent| lent.first() == at && lent.places() > 0) {
            at += lent.places();
        }
        (at, of_group().map(Lent::first).filter(|&first| first > at).min().unwrap_or(usize::MAX))
    }

    /// Lets the mapper have bare loans, to be filled. There are none that it was asked for before and has not filled.
    pub(crate) fn ask(&self, loans: Vec<Loan>) {
        self.lock().asked = loans;
    }

    /// Whether the mapper was asked for something and is not done.
    pub(crate) fn is_asked(&self) -> bool {
        let state = self.lock();
        state.filling || !state.asked.is_empty()
    }

    /// Whether the mapper failed since this was asked last.
    pub(crate) fn has_failed(&self) -> bool {
        std::mem::take(&mut self.lock().failed)
    }

    /// Takes back what the mapper was asked for and has not begun.
    pub(crate) fn cancel(&self) {
        let asked = std::mem::take(&mut self.lock().asked);
        drop(asked);
    }

    /// As [`Spare::cancel`], and waits for what the mapper has begun; answers whether it had. On the mapper's own thread, where a
    /// reclaimer of somebody else may end up, nothing is waited for.
    pub(crate) fn finish(&self) -> bool {
        self.cancel();
        let state = self.lock();
        if !state.filling || is_mapper() {
            return false;
        }
        drop(self.changed.wait_while(state, |state| state.filling).unwrap_or_else(PoisonError::into_inner));
        true
    }

    /// Whether the mapper has places in hand.
    pub(crate) fn is_filling(&self) -> bool {
        self.lock().filling
    }

    /// Fills what the mapper was asked for; on its thread.
    pub(crate) fn fill(&self, counts: &Counts) {
        let mut loans = {
            let mut state = self.lock();
            state.filling = !state.asked.is_empty();
            std::mem::take(&mut state.asked)
        };
        if loans.is_empty() {
            return;
        }
        // Where memory is short, others' reclaimers run in here, and whoever waits for the mapper is to be told whatever they do.
        let filled =
            catch_unwind(AssertUnwindSafe(|| loans.iter_mut().try_for_each(|(_, lent)| lent.fill())));
        let is_filled = matches!(filled, Ok(Ok(())));
        if is_filled {
            counts.mapped_ahead(loans.iter().map(|(_, lent)| lent.places()).sum());
        } else {
            // All or nothing: what was filled goes back too.
            loans.clear();
        }
        let mut state = self.lock();
        state.filling = false;
        state.filled.append(&mut loans);
        if !is_filled {
            state.failed = true;
            self.lost.fetch_add(1, Ordering::Release);
        }
        drop(state);
        self.changed.notify_all();
        if let Err(panic) = filled {
            resume_unwind(panic);
        }
    }

    /// Takes all that has memory behind it from the sequence, for whoever needs it more, with the event that it is given back
    /// behind; `leaving` counts its granules before anybody can find them gone.
    pub(crate) fn surrender(&self, leaving: &AtomicUsize) -> (Vec<Loan>, Option<Event>) {
        let mut state = self.lock();
        let filled = std::mem::take(&mut state.filled);
        leaving.fetch_add(filled.iter().map(|(_, lent)| lent.places()).sum(), Ordering::AcqRel);
        if !filled.is_empty() {
            self.lost.fetch_add(1, Ordering::Release);
        }
        (filled, state.busy.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
