//! What becomes of tokens that are there: cut, removed, shifted, shared. No token moves in any of it.

use std::ops::Range as Span;

use granule_bank::{Range, clear_together};
use granule_device::Bytes;

use super::Sequence;
use crate::Error;
use crate::parking::clear;
use crate::segments::Segments;

impl Sequence {
    /// Keeps the first `len` tokens. Memory is kept for what comes next; [`trim`](Sequence::trim) gives it back.
    ///
    /// # Errors
    /// [`Error::PastEnd`].
    pub fn truncate(&mut self, len: usize) -> Result<(), Error> {
        if len > self.len() {
            return Err(Error::PastEnd { to: len, len: self.len() });
        }
        self.remove(len..self.len())
    }

    /// Takes these tokens out. Those behind them are next to those before them from here on; none is copied, and the granules
    /// in which no token lies any more go back, but for those behind the last token, which are kept for what comes next.
    ///
    /// # Errors
    /// [`Error::NoSuchTokens`], [`Error::Positions`]. Memory that the system refuses to take is kept, for
    /// [`trim`](Sequence::trim) to try again.
    pub fn remove(&mut self, tokens: Span<usize>) -> Result<(), Error> {
        if tokens.start == tokens.end && tokens.end <= self.len() {
            return Ok(());
        }
        let len = self.len();
        let segments = self.segments.without(tokens.clone())?;
        let tail = if tokens.end == len { tokens } else { len..len };
        self.change(segments, tail)
    }

    /// Keeps these tokens and removes all others.
    ///
    /// # Errors
    /// As [`Sequence::remove`].
    pub fn keep(&mut self, tokens: Span<usize>) -> Result<(), Error> {
        let segments = self.segments.part(tokens.clone())?;
        self.change(segments, tokens.end..self.len())
    }

    /// Keeps the first `first` tokens and the last `last`, as a window that slides over a text does: the first few draw so
    /// much attention that the rest goes wrong without them (Xiao et al., 2023).
    ///
    /// # Errors
    /// As [`Sequence::remove`].
    pub fn slide(&mut self, first: usize, last: usize) -> Result<(), Error> {
        let end = self.len().saturating_sub(last);
        if first < end { self.remove(first..end) } else { Ok(()) }
    }

    /// Has these tokens stand `delta` positions further on than they did, or back; the next token goes on behind the last one.
    /// Their keys stay as they were rotated.
    ///
    /// # Errors
    /// [`Error::NoSuchTokens`], [`Error::Positions`].
    pub fn shift(&mut self, tokens: Span<usize>, delta: i32) -> Result<(), Error> {
        let (room, ready) = (self.room.clone(), self.ready);
        let segments = self.segments.shifted(tokens, delta)?;
        self.set_segments(segments);
        // No row has changed.
        (self.room, self.ready) = (room, ready);
        Ok(())
    }

    /// Keeps no tokens, and the memory for what comes next.
    pub fn clear(&mut self) {
        // All of its tokens are there.
        let _ = self.change(Segments::default(), 0..self.len());
    }

    /// Gives back the granules that no token lies in; answers how much less it holds.
    ///
    /// # Errors
    /// [`Error::Bank`], where the system refuses to take memory: then nothing has changed, but where device work is
    /// [under way](Sequence::busy_until) what was given back until then is.
    pub fn trim(&mut self) -> Result<Bytes, Error> {
        let before = self.memory().held;
        self.take_all();
        // Nothing is mapped ahead any more.
        (self.covered, self.failed_at) = ((0, 0), None);
        let done = self.clear_dead();
        // What is left, also of what could not be put back, is what it is: rows are ready where there is memory behind them.
        self.ready = self.find_ready();
        self.prepared = self.prepared.min(self.ready - self.room.start);
        if done.is_err() {
            self.put_away();
        }
        done?;
        Ok(before.saturating_sub(self.memory().held))
    }

    /// Takes the memory away from behind all places that no token lies in.
    fn clear_dead(&mut self) -> Result<(), granule_bank::Error> {
        let dead: Vec<Vec<Span<usize>>> = (0..self.ranges.len()).map(|group| self.dead(group)).collect();
        let mut clears: Vec<(&mut Range, Vec<Span<usize>>)> = self.ranges.iter_mut().zip(dead).collect();
        let Some(event) = &self.busy else { return clear_together(&mut clears) };
        clears.into_iter().try_for_each(|(range, dead)| {
            dead.into_iter().try_for_each(|places| range.clear_after(places, event))
        })
    }

    /// A second sequence with the same tokens, which shares all memory with this one until one of them writes: then that one
    /// gets its own copy of the granule in which the two part, and no more. Rows that were prepared here have to be prepared
    /// again.
    ///
    /// # Errors
    /// [`Error::Bank`].
    pub fn fork(&mut self) -> Result<Sequence, Error> {
        self.copy(0..self.len())
    }

    /// As [`Sequence::fork`], of these tokens alone.
    ///
    /// # Errors
    /// [`Error::NoSuchTokens`], [`Error::Positions`], [`Error::Bank`].
    pub fn copy(&mut self, tokens: Span<usize>) -> Result<Sequence, Error> {
        self.copy_within(tokens, self.n_ctx, self.rows)
    }

    /// As [`Sequence::copy`], with another context size, and addresses for so many rows: no fewer than the tokens reach to.
    pub(crate) fn copy_within(
        &mut self,
        tokens: Span<usize>,
        n_ctx: usize,
        rows: usize,
    ) -> Result<Sequence, Error> {
        let segments = self.segments.part(tokens)?;
        if let Some(event) = self.busy.take_if(|_| !segments.as_slice().is_empty()) {
            // Work may still write to what is shared from here on, and nobody may write to that.
            event.synchronize();
        }
        let rows = rows.max(segments.rows_end());
        let mut ranges = Sequence::reserve(&self.cache, rows)?;
        let shared = ranges.iter_mut().enumerate().try_for_each(|(group, range)| {
            self.live(group, &segments).into_iter().try_for_each(|places| {
                let first = places.start;
                let shared = self.ranges[group].share(places)?;
                range.map_shared(first, &shared)
            })
        });
        // Read only from here on, also where it failed halfway: whoever writes finds out whether anybody else has it.
        self.prepared = 0;
        self.ready = self.find_ready();
        shared?;
        Ok(Sequence::of(&self.cache, ranges, n_ctx, rows, segments))
    }

    /// Has these tokens from here on, and gives back what none of them lies in. What only the tokens of `tail` lay in, those
    /// behind the last one that stays, is spare from here on, as far as it is this sequence's alone.
    fn change(&mut self, segments: Segments, tail: Span<usize>) -> Result<(), Error> {
        let tail = self.segments.part(tail)?;
        let of = |sequence: &Sequence, segments: &Segments| -> Vec<Vec<Span<usize>>> {
            (0..sequence.ranges.len()).map(|group| sequence.live(group, segments)).collect()
        };
        let (before, kept) = (of(self, &self.segments), of(self, &tail));
        // What is spare moves with the room.
        self.record.spare().cancel();
        self.take_filled();
        self.set_segments(segments);
        for (group, (before, kept)) in before.into_iter().zip(kept).enumerate() {
            let room = self.grid(group).places(&self.room);
            let dead = self.dead(group);
            let range = &mut self.ranges[group];
            // What is refused stays, for `trim`.
            let give_back = |range: &mut Range, places| {
                let _ = clear(range, places, self.busy.as_ref());
            };
            let is_in = |spans: &[Span<usize>], place: usize| spans.iter().any(|span| span.contains(&place));
            for places in both(&before, &dead) {
                let ours = |range: &Range, place| range.writable_to(place) > place;
                let stays =
                    |range: &Range, place| ours(range, place) && room.contains(&place) && is_in(&kept, place);
                let mut from = places.start;
                while from < places.end {
                    let first = stays(range, from);
                    let to = (from..places.end).find(|&place| stays(range, place) != first);
                    let run = from..to.unwrap_or(places.end);
                    from = run.end;
                    if !first {
                        give_back(range, run);
                    }
                }
            }
            // What was spare, or was prepared, and is out of the room.
            for outside in both(&dead, &[0..room.start, room.end..range.places()]) {
                let mut places = outside;
                while let Some(run) = range.next_writable(places.clone()) {
                    places.start = run.end;
                    give_back(range, run);
                }
            }
        }
        self.put_away();
        Ok(())
    }

    /// The places of a group that tokens of these segments lie in, as runs.
    fn live(&self, group: usize, segments: &Segments) -> Vec<Span<usize>> {
        let grid = self.grid(group);
        let mut places: Vec<Span<usize>> = Vec::new();
        for segment in segments.as_slice() {
            let rows = segment.rows();
            if rows.start < grid.sinks {
                places.push(0..grid.rows_at.div_ceil(grid.granule));
            }
            let bytes = grid.bytes(&rows);
            places.push(bytes.start / grid.granule..bytes.end.div_ceil(grid.granule));
        }
        places.sort_by_key(|places| places.start);
        places.dedup_by(|next, before| {
            let joined = next.start <= before.end;
            if joined {
                before.end = before.end.max(next.end);
            }
            joined
        });
        places
    }

    /// The places of a group that no token lies in, as runs.
    pub(super) fn dead(&self, group: usize) -> Vec<Span<usize>> {
        let mut next = 0;
        let mut dead = Vec::new();
        let all = self.ranges[group].places();
        for live in self.live(group, &self.segments).into_iter().chain(std::iter::once(all..all)) {
            if next < live.start {
                dead.push(next..live.start);
            }
            next = next.max(live.end);
        }
        dead
    }
}

/// What is in both: lists of runs in rising order that do not meet.
fn both(a: &[Span<usize>], b: &[Span<usize>]) -> Vec<Span<usize>> {
    let meet = |a: &Span<usize>, b: &Span<usize>| a.start.max(b.start)..a.end.min(b.end);
    a.iter().flat_map(|a| b.iter().map(move |b| meet(a, b))).filter(|places| !places.is_empty()).collect()
}
