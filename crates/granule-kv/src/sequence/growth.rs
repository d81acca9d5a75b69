//! Making room: at once where it is needed, and ahead of that by the cache's mapper.

use std::ops::Range as Span;

use granule_bank::{Claim, claim_together};
use granule_device::Bytes;

use super::Sequence;
use crate::Error;
use crate::spare::Loan;

impl Sequence {
    /// Makes room for `n` more tokens, in all groups or in none; answers for how many it did. That is `n` unless the free rows
    /// are cut up, after tokens were removed from the middle: then it is at least one of some, and the rest comes after these were
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
        if self.room.is_empty() {
            self.room = self.segments.room(self.rows, self.cache.layout().sinks());
            self.covered = (0, 0);
        }
        let rows = self.room.start..self.room.start.saturating_add(n).min(self.room.end);
        self.take_spare(&rows);
        if self.ready < rows.end {
            if self.record.spare().finish() {
                self.cache.counts().waited();
            }
            // The mapper may have been done since the first look.
            self.take_spare(&rows);
        }
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
        // What was spare is that again where it does not suffice.
        let copied = self.claim(&spans).inspect_err(|_| self.put_away())?;
        self.copied = self.copied.saturating_add(copied);
        self.cache.counts().mapped_now(bare);
        self.cache.counts().copied(shared, copied);
        self.ready = self.find_ready();
        Ok(())
    }

    /// Has memory behind rows `0..end` of all groups, for itself: of a sequence without tokens.
    pub(super) fn reserve_rows(&mut self, end: usize) -> Result<(), Error> {
        self.record.spare().finish();
        self.take_spare(&(0..end));
        let places = |group| (self.grid(group).places(&(0..end)), 0..0);
        let spans: Vec<_> = (0..self.ranges.len()).map(places).collect();
        self.claim(&spans)?;
        Ok(())
    }

    /// Memory behind these places of each group, writable, with the bytes that are to be kept.
    fn claim(&mut self, spans: &[(Span<usize>, Span<usize>)]) -> Result<Bytes, granule_bank::Error> {
        let mut claim = || {
            let of = |(range, (places, kept)): (_, &(Span<usize>, Span<usize>))| {
                Claim::new(range, places.clone(), kept.clone())
            };
            claim_together(&mut self.ranges.iter_mut().zip(spans).map(of).collect::<Vec<_>>())
        };
        let mut done = claim();
        // Places are out of reach for as long as it takes others to give back the memory that they took from here: what was spare
        // by then, and what waits for device work after that.
        use granule_device::Error::{Lent, Retiring};
        for _ in 0..2 {
            if !matches!(done, Err(granule_bank::Error::Device(Lent { .. } | Retiring { .. }))) {
                break;
            }
            self.cache.idle().await_giving();
            self.cache.bank().drain();
            done = claim();
        }
        done
    }

    /// Has memory mapped ahead where there is little left behind the position. It makes no call: places are lent to the
    /// cache's mapper, and taken back once the position comes to them.
    pub(super) fn look_ahead(&mut self) {
        let ahead = self.cache.options().ahead.min(self.n_ctx - self.len().min(self.n_ctx));
        let end = self.room.start.saturating_add(ahead).min(self.room.end);
        let (covered, lost) = self.covered;
        if self.ready >= end || (covered >= end && lost == self.record.spare().lost()) {
            return;
        }
        let cache = self.cache.clone();
        let Some(mapper) = cache.mapper().filter(|_| !self.record.spare().is_asked()) else { return };
        if self.record.spare().has_failed() {
            self.failed_at = Some(self.ready);
        }
        if self.failed_at == Some(self.ready) {
            return;
        }
        // Until it is found out anew nothing is known to be covered.
        self.covered = (0, self.record.spare().lost());
        match self.lend(end) {
            Some(loans) if loans.is_empty() => {}
            Some(loans) => {
                self.record.spare().ask(loans);
                mapper.fill(self.record.spare());
            }
            // Whoever needs the places maps them, and hears of what is wrong.
            None => self.failed_at = Some(self.ready),
        }
    }

    /// Lends, in each group, the next bare places of the room before row `end`, and notes how far there is memory. `None` where
    /// some cannot be lent.
    fn lend(&mut self, end: usize) -> Option<Vec<Loan>> {
        let next = self.room.start..end;
        let (layout, granule) = (*self.cache.layout(), self.granule());
        let (mut loans, mut covered) = (Vec::new(), usize::MAX);
        for (group, range) in self.ranges.iter_mut().enumerate() {
            let grid = layout.grid(group, granule);
            let places = grid.places(&next);
            let (first, limit) = self.record.spare().reach(group, range.writable_to(places.start));
            covered = covered.min(grid.rows_before(first));
            let bare = (first..places.end.min(limit)).take_while(|&place| !range.is_mapped(place)).count();
            if bare > 0 {
                loans.push((group, range.lend(first..first + bare).ok()?));
            }
        }
        self.covered.0 = covered;
        Some(loans)
    }

    /// Takes what is spare of the places that these rows of the room lie in, which calls nobody, and lets go of what the room has
    /// moved away from.
    fn take_spare(&mut self, rows: &Span<usize>) {
        let (layout, granule) = (*self.cache.layout(), self.granule());
        let (ranges, room) = (&mut self.ranges, &self.room);
        let gone: Vec<Loan> = self.record.spare().with(|filled| {
            for (group, lent) in filled.iter_mut() {
                let needed = layout.grid(*group, granule).places(rows);
                let (first, end) = (lent.first(), lent.first() + lent.places());
                if first < needed.end && needed.start < end {
                    // It is this range's own loan, so it does take it.
                    let _ = ranges[*group].take_back_first(lent, needed.end - first);
                }
            }
            let is_over = |(group, lent): &mut Loan| {
                let room = layout.grid(*group, granule).places(room);
                lent.places() == 0 || lent.first() >= room.end || lent.first() + lent.places() <= room.start
            };
            filled.extract_if(.., is_over).collect()
        });
        drop(gone);
        self.ready = self.find_ready();
    }

    /// Takes all that is spare, waiting for what is being mapped; false where it is on the mapper's own thread and cannot.
    pub(super) fn take_all(&mut self) -> bool {
        let spare = self.record.spare().clone();
        spare.finish();
        self.take_filled();
        !spare.is_filling()
    }

    /// Takes all that is spare, but for what is being mapped.
    pub(super) fn take_filled(&mut self) {
        for (group, lent) in self.record.spare().drain() {
            // It is this range's own loan, so it does take it.
            let _ = self.ranges[group].take_back(lent);
        }
    }

    /// Has all memory behind the room that no token lies in, nor is to, be spare.
    pub(super) fn put_away(&mut self) {
        let mut loans = Vec::new();
        for group in 0..self.ranges.len() {
            let grid = self.grid(group);
            let (room, prepared) = (&self.room, self.room.start..self.room.start + self.prepared);
            let (room, prepared) = (grid.places(room), grid.places(&prepared));
            for dead in self.dead(group) {
                let mut places = dead.start.max(room.start).max(prepared.end)..dead.end.min(room.end);
                while let Some(run) = self.ranges[group].next_writable(places.clone()) {
                    places.start = run.end;
                    // They can be written, so they can be lent.
                    loans.extend(self.ranges[group].lend_filled(run).map(|lent| (group, lent)));
                }
            }
        }
        self.record.spare().put(loans);
        self.ready = self.find_ready();
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
