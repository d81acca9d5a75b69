//! What stands behind the places of each range: changed by the range, seen by snapshots and recordings.

use std::collections::BTreeMap;
use std::ops::Range as Span;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use granule_device::{Bytes, DevicePtr};

use crate::bank::Inner;
use crate::piece::Piece;
use crate::trace::{Event, RangeId};
use crate::{Bank, Owner};

/// All ranges of a bank, in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct Atlas(Mutex<BTreeMap<RangeId, Weak<Places>>>);

impl Atlas {
    /// Those that are there.
    pub(crate) fn all(&self) -> Vec<Arc<Places>> {
        self.lock().values().filter_map(Weak::upgrade).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RangeId, Weak<Places>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pieces behind one range. Each change is one of these functions, and they tell of it; a piece that is let go is
/// dropped by whoever called, not under the lock.
#[derive(Debug)]
pub(crate) struct Places {
    pub(crate) id: RangeId,
    pub(crate) owner: Owner,
    pub(crate) base: DevicePtr,
    bank: Arc<Inner>,
    pieces: Mutex<Vec<Option<Piece>>>,
}

impl Places {
    fn pieces(&self) -> MutexGuard<'_, Vec<Option<Piece>>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many places there are.
    pub(crate) fn len(&self) -> usize {
        self.pieces().len()
    }

    /// Asks about the piece behind a place; `None` where there is none.
    pub(crate) fn with<T>(&self, place: usize, ask: impl FnOnce(&Piece) -> T) -> Option<T> {
        self.pieces().get(place)?.as_ref().map(ask)
    }

    /// Asks about every piece, with its place.
    pub(crate) fn each<T>(&self, mut ask: impl FnMut(usize, &Piece) -> T) -> Vec<T> {
        let pieces = self.pieces();
        pieces.iter().enumerate().filter_map(|(place, piece)| Some(ask(place, piece.as_ref()?))).collect()
    }

    /// The places among these that have memory, or that have none, as runs; `None` where there are no such places.
    pub(crate) fn runs(&self, places: &Span<usize>, mapped: bool) -> Option<Vec<Span<usize>>> {
        let all = self.pieces();
        let pieces = all.get(places.clone())?;
        let mut runs: Vec<Span<usize>> = Vec::new();
        for (place, _) in (places.start..).zip(pieces).filter(|(_, piece)| piece.is_some() == mapped) {
            match runs.last_mut() {
                Some(run) if run.end == place => run.end += 1,
                _ => runs.push(place..place + 1),
            }
        }
        Some(runs)
    }

    /// Clones of the pieces behind these places, which there are.
    pub(crate) fn clones(&self, places: Span<usize>) -> Vec<Piece> {
        self.pieces()[places].iter().flatten().cloned().collect()
    }

    /// These pieces have been mapped from `place` on, where nothing was.
    pub(crate) fn put(&self, place: usize, new: impl IntoIterator<Item = Piece>) {
        let mut pieces = self.pieces();
        let mut granules = Vec::new();
        let is_traced = self.bank.tracer.is_on();
        for (slot, piece) in pieces[place..].iter_mut().zip(new) {
            if is_traced {
                granules.push(piece.id().get());
            }
            *slot = Some(piece);
        }
        if !granules.is_empty() {
            self.bank.tracer.emit(|| Event::Map { range: self.id, place: place as u64, granules });
        }
    }

    /// Nothing is mapped behind these places any more.
    pub(crate) fn take(&self, places: Span<usize>) -> Vec<Piece> {
        self.tell(&places, |place, count| Event::Unmap { range: self.id, place, count });
        self.pieces()[places].iter_mut().filter_map(Option::take).collect()
    }

    /// These places are out of use, and stay mapped for device work.
    pub(crate) fn retire(&self, places: Span<usize>) -> Vec<Piece> {
        self.tell(&places, |place, count| Event::Retire { range: self.id, place, count });
        self.pieces()[places].iter_mut().filter_map(Option::take).collect()
    }

    /// Retired places are not mapped any more.
    pub(crate) fn retired(&self, places: &Span<usize>) {
        self.tell(places, |place, count| Event::Unmap { range: self.id, place, count });
    }

    /// Another piece has been mapped behind the place; answers the one before.
    pub(crate) fn replace(&self, place: usize, new: Piece) -> Option<Piece> {
        let id = new.id().get();
        self.tell(&(place..place + 1), |place, count| Event::Unmap { range: self.id, place, count });
        let map = || Event::Map { range: self.id, place: place as u64, granules: vec![id] };
        self.bank.tracer.emit(map);
        self.pieces()[place].replace(new)
    }

    /// So much of the range, from its start on, is in use.
    pub(crate) fn used(&self, used: Bytes) {
        self.bank.tracer.emit(|| Event::Length { range: self.id, used });
    }

    fn tell(&self, places: &Span<usize>, event: impl FnOnce(u64, u64) -> Event) {
        self.bank.tracer.emit(|| event(places.start as u64, places.len() as u64));
    }
}

/// A range's hold on its places: they are gone, and what is behind them let go, when it goes.
#[derive(Debug)]
pub(crate) struct Contents(Arc<Places>);

impl Contents {
    pub(crate) fn new(bank: &Bank, owner: &Owner, base: DevicePtr, places: usize) -> Contents {
        let inner = bank.inner();
        let id = RangeId(inner.tracer.number());
        let pieces = Mutex::new(vec![None; places]);
        let places_of = Places { id, owner: owner.clone(), base, bank: Arc::clone(inner), pieces };
        let contents = Contents(Arc::new(places_of));
        inner.ranges.lock().insert(id, Arc::downgrade(&contents.0));
        inner.tracer.declare(Event::Range {
            range: id,
            device: inner.traced,
            owner: inner.tracer.owner(owner),
            base: base.addr(),
            place: inner.granule(),
            places: places as u64,
        });
        contents
    }

    pub(crate) fn places(&self) -> &Arc<Places> {
        &self.0
    }
}

impl std::ops::Deref for Contents {
    type Target = Places;

    fn deref(&self) -> &Places {
        &self.0
    }
}

impl Drop for Contents {
    fn drop(&mut self) {
        self.bank.ranges.lock().remove(&self.id);
        self.bank.tracer.retract(Event::RangeGone { range: self.id });
        // A snapshot may have this for a moment longer; the pieces go now, after the lock is gone.
        let pieces = std::mem::take(&mut *self.pieces());
        drop(pieces);
    }
}
