//! `Sequence`: one token stream. It grows without moving, forks without copying, and writes only what is its own.

mod edit;
mod exchange;
mod growth;

use std::ops::Range as Span;
use std::sync::Arc;

use granule_bank::trace::Event::Length;
use granule_bank::{PieceId, Range};
use granule_device::{Bytes, DevicePtr, Event};
use granule_ops::{KvSegment, KvView, KvViewMut};
use smallvec::SmallVec;

use crate::grid::Grid;
use crate::idle::Record;
use crate::parking::Set;
use crate::segments::{Segment, Segments};
use crate::{Error, KvCache, KvMemory};

/// The keys and values of one stream of tokens, in one range of addresses for each group of layers.
///
/// Adding tokens takes three steps: [`prepare`](Sequence::prepare) makes room, [`rows_mut`](Sequence::rows_mut) is where each
/// layer writes, [`commit`](Sequence::commit) makes the rows part of the sequence. Committed rows are never written again: a
/// fork may be reading them.
///
/// A token's row never changes and its key keeps the rotation it was stored with. The next token's is that of
/// [`position`](Sequence::position); after tokens were removed that is not the number of tokens, and
/// [`segments`](Sequence::segments) say how queries have to be turned.
#[derive(Debug)]
pub struct Sequence {
    cache: KvCache,
    record: Arc<Record>,
    /// By group. Taken out when it is dropped.
    ranges: Vec<Range>,
    n_ctx: usize,
    /// How many rows each range has addresses for.
    rows: usize,
    segments: Segments,
    /// The rows that the next tokens go to.
    room: Span<usize>,
    /// One past the last row of the room that may be written: what lies before is mapped and this sequence's alone.
    ready: usize,
    /// How many rows, from the room's start on, [`prepare`](Sequence::prepare) has promised.
    prepared: usize,
    /// One past the last row of the room that has memory, ready or spare, and how often spare had been lost when that was so.
    covered: (usize, usize),
    /// How far the room was ready when mapping ahead last failed.
    failed_at: Option<usize>,
    /// When the last device work that uses its memory is done.
    busy: Option<Event>,
    copied: Bytes,
}

impl Sequence {
    pub(crate) fn new(cache: &KvCache, n_ctx: usize) -> Result<Sequence, Error> {
        let rows = cache.layout().rows_for(n_ctx);
        if let Some(mut set) = cache.idle().parking().take(rows) {
            cache.counts().reused(set.granules());
            let (ranges, rows) = (std::mem::take(&mut set.ranges), set.rows);
            let mut sequence = Sequence::of(cache, ranges, n_ctx, rows, Segments::default());
            // It has no token yet: all of it is anybody's until one comes.
            sequence.put_away();
            return Ok(sequence);
        }
        let ranges = Sequence::reserve(cache, rows)?;
        Ok(Sequence::of(cache, ranges, n_ctx, rows, Segments::default()))
    }

    /// A range for each group, with addresses for so many rows.
    fn reserve(cache: &KvCache, rows: usize) -> Result<Vec<Range>, Error> {
        let layout = cache.layout();
        let range = |group| cache.bank().range(cache.owner(), layout.range_bytes(group, rows));
        Ok((0..layout.groups()).map(range).collect::<Result<_, _>>()?)
    }

    fn of(cache: &KvCache, ranges: Vec<Range>, n_ctx: usize, rows: usize, segments: Segments) -> Sequence {
        let mut sequence = Sequence {
            cache: cache.clone(),
            record: cache.idle().register(&ranges),
            ranges,
            n_ctx,
            rows,
            segments: Segments::default(),
            room: 0..0,
            ready: 0,
            prepared: 0,
            covered: (0, 0),
            failed_at: None,
            busy: None,
            copied: Bytes::ZERO,
        };
        sequence.set_segments(segments);
        sequence
    }

    /// The cache it belongs to.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// How many tokens it has.
    pub fn len(&self) -> usize {
        self.segments.len()
    }

    /// True where it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many tokens it can have.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// The position of the next token: what its key, and its query, have to be rotated by. It counts on when tokens are
    /// removed before it.
    pub fn position(&self) -> usize {
        self.segments.position()
    }

    /// Where the tokens are, in their order.
    pub fn segments(&self) -> &[Segment] {
        self.segments.as_slice()
    }

    /// How many tokens the last [`prepare`](Sequence::prepare) made room for, less those committed since.
    pub fn prepared(&self) -> usize {
        self.prepared
    }

    /// Where each group's range starts. These never change.
    pub fn bases(&self) -> impl Iterator<Item = DevicePtr> + '_ {
        self.ranges.iter().map(Range::base)
    }

    /// Bytes that were ever copied to keep this sequence apart from its forks. Nothing else copies.
    pub fn bytes_copied(&self) -> Bytes {
        self.copied
    }

    /// Says until when device work uses the sequence's memory: an event behind all of it. What has to be unmapped or replaced
    /// from here on waits for that; it takes the place of an event told before. Work of the host needs none.
    pub fn busy_until(&mut self, event: &Event) {
        self.busy = Some(event.clone());
        self.record.spare().set_busy(event);
    }

    /// A layer's first `len` tokens, to read; `len` may go past the sequence's own as far as rows are prepared, so that a step
    /// can attend to what it stored just now.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`], [`Error::NotPrepared`].
    pub fn view(&self, layer: usize, len: usize) -> Result<KvView<'_>, Error> {
        let (group, row) = self.cache.layout().layer(layer)?;
        if len > self.len() + self.prepared {
            return Err(Error::NotPrepared { requested: len, prepared: self.len() + self.prepared });
        }
        let (range, grid) = (&self.ranges[group], self.grid(group));
        let mut segments: SmallVec<[KvSegment<'_>; 4]> = SmallVec::new();
        let mut left = len;
        let new = Segment { row: self.room.start, len: self.prepared, stored: 0, turn: 0 };
        for segment in self.segments().iter().chain([&new]) {
            let len = segment.len.min(left);
            left -= len;
            match segments.last_mut() {
                _ if len == 0 => break,
                // Tokens that are prepared mostly go on where the last segment ends.
                Some(last) if last.row + last.len == segment.row && last.turn == segment.turn => {
                    last.len += len;
                    last.rows = range.slice(grid.bytes(&(last.row..last.row + last.len)))?;
                }
                _ => {
                    let rows = range.slice(grid.bytes(&(segment.row..segment.row + len)))?;
                    segments.push(KvSegment { rows, row: segment.row, len, turn: segment.turn });
                }
            }
        }
        let has_sinks = segments.iter().any(|segment| segment.row < grid.sinks);
        let sinks = if has_sinks { Some(range.slice(..row.rows_at)?) } else { None };
        Ok(KvView::new(row, sinks, segments)?)
    }

    /// A layer's rows that are prepared and not committed, [`prepared`](Sequence::prepared) of them, to write.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`].
    pub fn rows_mut(&mut self, layer: usize) -> Result<KvViewMut<'_>, Error> {
        let (group, row) = self.cache.layout().layer(layer)?;
        let (grid, first, n) = (self.grid(group), self.room.start, self.prepared);
        let rows = first..first + n;
        let reach = grid.reach(&rows);
        let before = grid.bytes(&rows).start - reach.start;
        let (head, rows) = self.ranges[group].slice_mut(reach)?.split_at(before)?;
        let sinks = if n > 0 && first < grid.sinks { Some(head.subslice(..row.rows_at)?) } else { None };
        Ok(KvViewMut::new(row, sinks, rows, first, n)?)
    }

    /// Makes the next `n` prepared rows part of the sequence. Where fewer rows than [`KvOptions::ahead`](crate::KvOptions) have
    /// memory behind them, more is asked for, which another thread sees to.
    ///
    /// # Errors
    /// [`Error::NotPrepared`].
    pub fn commit(&mut self, n: usize) -> Result<(), Error> {
        if n > self.prepared {
            return Err(Error::NotPrepared { requested: n, prepared: self.prepared });
        }
        self.segments.push(self.room.start, n);
        self.room.start += n;
        self.prepared -= n;
        self.tell_len();
        self.look_ahead();
        Ok(())
    }

    /// What it has, granules shared with forks included.
    pub fn memory(&self) -> KvMemory {
        let granule = self.cache.bank().granule();
        let spare = self.record.spare().granules() as u64;
        let (mut all, mut shared) = (spare, 0);
        for (_, _, is_shared) in self.ranges.iter().flat_map(Range::pieces) {
            all += 1;
            shared += u64::from(is_shared);
        }
        KvMemory {
            held: granule.saturating_mul(all),
            shared: granule.saturating_mul(shared),
            spare: granule.saturating_mul(spare),
            used: self.cache.layout().token_bytes().saturating_mul(self.len() as u64),
            reserved: self.ranges.iter().map(Range::reserved).fold(Bytes::ZERO, Bytes::saturating_add),
        }
    }

    /// The granules behind it, and whether somebody else has them too: for reports over several sequences, in which each counts
    /// once. What is being mapped ahead at this moment is not among them.
    pub fn granules(&self) -> impl Iterator<Item = (PieceId, bool)> + '_ {
        let spare = self.record.spare().pieces().into_iter().map(|id| (id, false));
        let own = self.ranges.iter().flat_map(Range::pieces).map(|(_, id, is_shared)| (id, is_shared));
        own.chain(spare)
    }

    fn grid(&self, group: usize) -> Grid {
        self.cache.layout().grid(group, self.granule())
    }

    /// The size of a granule; a reservation of them was made, so it can be addressed.
    fn granule(&self) -> usize {
        self.cache.bank().granule().to_usize().unwrap_or(usize::MAX)
    }

    /// Has other segments from here on: where the next tokens go follows from them.
    fn set_segments(&mut self, segments: Segments) {
        self.segments = segments;
        self.room = self.segments.room(self.rows, self.cache.layout().sinks());
        self.ready = self.room.start;
        self.prepared = 0;
        self.covered = (0, 0);
        self.failed_at = None;
        self.tell_len();
    }

    /// Gives back all that it has: no other sequence begins with it.
    pub(crate) fn discard(mut self) {
        self.take_all();
        drop(Set::new(std::mem::take(&mut self.ranges), self.rows, self.busy.take()));
    }

    fn tell_len(&self) {
        self.record.set_rows(self.len());
        let (layout, len) = (self.cache.layout(), self.len() as u64);
        for (group, range) in self.ranges.iter().enumerate() {
            // Memory comes in whole granules; a recording is told how much of it holds rows.
            let used = || layout.row_stride(group).saturating_mul(len);
            self.cache.bank().tracer().emit(|| Length { range: range.id(), used: used() });
        }
    }
}

impl Drop for Sequence {
    fn drop(&mut self) {
        let whole = self.take_all();
        let (ranges, busy) = (std::mem::take(&mut self.ranges), self.busy.take());
        let set = Set::new(ranges, self.rows, busy);
        // Places that the mapper still has in hand are none for the next sequence.
        if whole {
            self.cache.idle().parking().park(set);
        }
    }
}
