//! Making room: at once where it is needed, and ahead of that by the cache's mapper.

use std::ops::Range as Span;

use granule_bank::{Claim, Lent, claim_together};
use granule_device::Bytes;

use super::Sequence;
use crate::Error;

impl Sequence {
    /// Makes room for `n` more tokens, in all groups or in none; answers for how many it did. That is `n` unless the free rows
    /// are cut up, after tokens were removed from the middle: then it is at least one, and the rest comes after these were
    /// committed. Where a granule is shared and the new rows lie in it too, the sequence gets a copy of its own, at the same
    /// address. Where there is room already it calls nobody.
    ///
    /// # Errors
    /// [`Error::ContextFull`], [`Error::Positions`]; [`Error::Bank`], most often out of memory.
    pub fn prepare(&mut self, n: usize) -> Result<usize, Error> {
        let len = self.len();
        if n > self.n_ctx - len.min(self.n_ctx) {
            return Err(Error::ContextFull { requested: n, len, n_ctx: self.n_ctx });
        }
        // Turns are differences of positions, counted in 32 bits.
        if self.position() > i32::MAX as usize - n.min(i32::MAX as usize) {
            return Err(Error::Positions { position: self.position() });
        }
        if n > self.ready - self.room.start {
            self.grow(n)?;
        }
        self.prepared = n.min(self.ready - self.room.start);
        Ok(self.prepared)
    }

    /// Has memory behind the next `n` rows, or as many as there is room for, and has it for itself.
    fn grow(&mut self, n: usize) -> Result<(), Error> {
        if self.job.as_ref().is_some_and(|job| !job.is_done()) {
            self.cache.counts().waited();
        }
        self.take_back();
        if self.room.is_empty() {
            self.room = self.segments.room(self.rows, self.cache.layout().sinks());
        }
        self.ready = self.find_ready();
        let rows = self.room.start..self.room.start.saturating_add(n).min(self.room.end);
        if rows.end <= self.ready {
            return Ok(());
        }
        let spans: Vec<_> = (0..self.ranges.len())
            .map(|group| {
                let grid = self.grid(group);
                let rows_of = self.segments().iter().map(|segment| grid.reach(&segment.rows()));
                let kept = rows_of.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end)).unwrap_or(0..0);
                (grid.places(&rows), kept)
            })
            .collect();
        let (mut bare, mut shared, mut read_only) = (0, 0, 0);
        for (range, (places, _)) in self.ranges.iter().zip(&spans) {
            for place in places.clone() {
                let writable = range.writable_to(place) > place;
                bare += usize::from(!range.is_mapped(place));
                read_only += usize::from(range.is_mapped(place) && !writable);
                shared += usize::from(!writable && range.is_shared(place));
            }
        }
        if read_only > 0
            && let Some(event) = self.busy.take()
        {
            // Work that reads the shared granule does so at these addresses.
            event.synchronize();
        }
        let copied = match self.claim(&spans) {
            // Memory that was given back there waits for device work.
            Err(granule_bank::Error::Device(granule_device::Error::Retiring { .. })) => {
                self.cache.bank().drain();
                self.claim(&spans)?
            }
            done => done?,
        };
        self.copied = self.copied.saturating_add(copied);
        self.cache.counts().mapped_now(bare);
        self.cache.counts().copied(shared, copied);
        self.ready = self.find_ready();
        Ok(())
    }

    /// Has memory behind rows `0..end` of all groups, for itself: of a sequence without tokens.
    pub(super) fn reserve_rows(&mut self, end: usize) -> Result<(), Error> {
        self.take_back();
        let places = |group| (self.grid(group).places(&(0..end)), 0..0);
        let spans: Vec<_> = (0..self.ranges.len()).map(places).collect();
        self.claim(&spans)?;
        Ok(())
    }

    /// Memory behind these places of each group, writable, with the bytes that are to be kept.
    fn claim(&mut self, spans: &[(Span<usize>, Span<usize>)]) -> Result<Bytes, granule_bank::Error> {
        let claim = |(range, (places, kept)): (_, &(Span<usize>, Span<usize>))| {
            Claim::new(range, places.clone(), kept.clone())
        };
        claim_together(&mut self.ranges.iter_mut().zip(spans).map(claim).collect::<Vec<_>>())
    }

    /// Has memory mapped ahead where there is little left behind the position. It makes no call: places are lent to the
    /// cache's mapper, and taken back here once they are filled.
    pub(super) fn look_ahead(&mut self) {
        let ahead = self.cache.options().ahead.min(self.n_ctx - self.len().min(self.n_ctx));
        if self.job.as_ref().is_some_and(|job| job.is_done()) {
            self.take_back();
        }
        let end = self.room.start.saturating_add(ahead).min(self.room.end);
        if self.ready >= end || self.job.is_some() || self.failed_at == Some(self.ready) {
            return;
        }
        let cache = self.cache.clone();
        let Some(mapper) = cache.mapper() else { return };
        let lents = self.lend(end);
        if lents.is_empty() {
            self.failed_at = Some(self.ready);
            return;
        }
        let job = mapper.fill(lents);
        self.record.set_job(Some(job.clone()));
        self.job = Some(job);
    }

    /// Lends, in each group, the next bare places of the room before row `end`.
    fn lend(&mut self, end: usize) -> Vec<(usize, Lent)> {
        let next = self.room.start..end;
        let grids: Vec<_> = (0..self.ranges.len()).map(|group| self.grid(group)).collect();
        let mut lents = Vec::with_capacity(grids.len());
        for (group, (range, grid)) in self.ranges.iter_mut().zip(grids).enumerate() {
            let places = grid.places(&next);
            let first = range.writable_to(places.start);
            let bare = (first..places.end).take_while(|&place| !range.is_mapped(place)).count();
            if bare == 0 {
                continue;
            }
            match range.lend(first..first + bare) {
                Ok(lent) => lents.push((group, lent)),
                // Whoever needs the places maps them, and hears of what is wrong.
                Err(_) => return Vec::new(),
            }
        }
        lents
    }

    /// Ends the loan, if there is one: what was mapped ahead is the sequence's. Waits while it is being mapped.
    pub(super) fn take_back(&mut self) {
        let Some(job) = self.job.take() else { return };
        self.record.set_job(None);
        let lents = job.take();
        let mut failed = lents.is_empty();
        for (group, lent) in lents {
            failed |= !lent.is_filled();
            // It is this range's own loan, so it does take it.
            failed |= self.ranges[group].take_back(lent).is_err();
        }
        self.ready = self.find_ready().max(self.ready);
        self.failed_at = failed.then_some(self.ready);
    }

    /// How far the room can be written in all groups.
    pub(super) fn find_ready(&self) -> usize {
        let (next, end) = (self.room.start, self.room.end);
        let reached = |(group, range): (usize, &granule_bank::Range)| {
            let grid = self.grid(group);
            let first = grid.places(&(next..next + 1)).start;
            grid.rows_before(range.writable_to(first)).clamp(next, end.max(next))
        };
        self.ranges.iter().enumerate().map(reached).min().unwrap_or(next)
    }
}
