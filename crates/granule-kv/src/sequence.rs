//! `Sequence`: one token stream. It grows without moving, forks without copying, and writes only what is its own.

use std::sync::Arc;

use granule_bank::trace::Event::Length;
use granule_bank::{Growable, Growth, grow_together, shrink_together};
use granule_device::{Bytes, DevicePtr};
use granule_ops::{KvView, KvViewMut};

use crate::cache::Record;
use crate::{Error, KvCache, KvMemory};

/// The keys and values of one stream of tokens: rows `0..len()`, in one range of addresses for each group of layers.
///
/// Adding tokens takes three steps: [`prepare`](Sequence::prepare) makes room, [`rows_mut`](Sequence::rows_mut) is where each
/// layer writes, [`commit`](Sequence::commit) makes the rows part of the sequence. Committed rows are never written again: a
/// fork may be reading them.
#[derive(Debug)]
pub struct Sequence {
    cache: KvCache,
    record: Arc<Record>,
    groups: Vec<Growable>,
    n_ctx: usize,
    len: usize,
    /// One past the last row that may be written: `len <= prepared <= n_ctx`, and `len..prepared` is this sequence's alone.
    prepared: usize,
    copied: Bytes,
}

impl Sequence {
    pub(crate) fn new(cache: &KvCache, n_ctx: usize) -> Result<Sequence, Error> {
        let layout = cache.layout();
        let reserve = |group| layout.row_stride(group).saturating_mul(n_ctx.max(1) as u64);
        let grow = |group| cache.bank().growable(cache.owner(), reserve(group));
        let groups = (0..layout.groups()).map(grow).collect::<Result<Vec<_>, _>>()?;
        Ok(Sequence::of(cache, groups, n_ctx, 0))
    }

    fn of(cache: &KvCache, groups: Vec<Growable>, n_ctx: usize, len: usize) -> Sequence {
        let reserved = groups.iter().map(Growable::reserved).fold(Bytes::ZERO, Bytes::saturating_add);
        let record = cache.register(reserved);
        let sequence =
            Sequence { cache: cache.clone(), record, groups, n_ctx, len, prepared: len, copied: Bytes::ZERO };
        sequence.record.set_pieces(sequence.groups.iter());
        sequence.record.set_rows(len);
        sequence
    }

    /// The cache it belongs to.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }

    /// How many tokens it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True where it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many tokens it can have.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    /// One past the last row that may be written; at least `len()`.
    pub fn prepared(&self) -> usize {
        self.prepared
    }

    /// Where each group's rows start. These never change.
    pub fn bases(&self) -> impl Iterator<Item = DevicePtr> + '_ {
        self.groups.iter().map(Growable::base)
    }

    /// Bytes that were ever copied to keep this sequence apart from its forks. Nothing else copies.
    pub fn bytes_copied(&self) -> Bytes {
        self.copied
    }

    /// Makes room for at least `n` more rows, in all groups or in none, and gives the sequence its own copy of a granule that
    /// it shares and that those rows lie in. Where that much is prepared already it does nothing.
    ///
    /// # Errors
    /// [`Error::ContextFull`]; [`Error::Bank`], most often out of memory.
    pub fn prepare(&mut self, n: usize) -> Result<(), Error> {
        let end = self.len.saturating_add(n);
        if end > self.n_ctx {
            return Err(Error::ContextFull { requested: n, len: self.len, n_ctx: self.n_ctx });
        }
        if end > self.prepared {
            self.prepare_to(end)?;
        }
        Ok(())
    }

    /// A layer's rows `0..len`, to read; `len` may go past the sequence's own as far as rows are prepared, so that a step can
    /// attend to what it stored just now.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`], [`Error::NotPrepared`].
    pub fn view(&self, layer: usize, len: usize) -> Result<KvView<'_>, Error> {
        let (group, row) = self.cache.layout().layer(layer)?;
        if len > self.prepared {
            return Err(Error::NotPrepared { row: len, prepared: self.prepared });
        }
        let rows = self.groups[group].slice(..len * row.row_stride)?;
        Ok(KvView::contiguous(rows, row, len)?)
    }

    /// A layer's rows that are prepared and not committed, to write: row 0 of the view is row `len()` of the sequence, and
    /// the view has `prepared() - len()` rows.
    ///
    /// # Errors
    /// [`Error::NoSuchLayer`].
    pub fn rows_mut(&mut self, layer: usize) -> Result<KvViewMut<'_>, Error> {
        let (group, row) = self.cache.layout().layer(layer)?;
        let rows = self.groups[group].slice_mut(self.len * row.row_stride..self.prepared * row.row_stride)?;
        Ok(KvViewMut::new(row, None, rows, self.len, self.prepared - self.len)?)
    }

    /// Makes the next `n` prepared rows part of the sequence.
    ///
    /// # Errors
    /// [`Error::NotPrepared`].
    pub fn commit(&mut self, n: usize) -> Result<(), Error> {
        let row = self.len.saturating_add(n);
        if row > self.prepared {
            return Err(Error::NotPrepared { row, prepared: self.prepared });
        }
        self.set_len(row);
        Ok(())
    }

    /// Keeps the first `len` tokens. Memory is kept for what comes next; [`trim`](Sequence::trim) gives it back.
    ///
    /// # Errors
    /// [`Error::PastEnd`].
    pub fn truncate(&mut self, len: usize) -> Result<(), Error> {
        if len > self.len {
            return Err(Error::PastEnd { to: len, len: self.len });
        }
        if len < self.len {
            // The rows from `len` on may be a fork's too: `prepare` finds out.
            self.prepared = len;
            self.set_len(len);
        }
        Ok(())
    }

    /// Keeps no tokens, and the memory for what comes next.
    pub fn clear(&mut self) {
        self.prepared = 0;
        self.set_len(0);
    }

    /// Gives back the granules that no token lies in; answers how much less it holds.
    ///
    /// # Errors
    /// [`Error::Bank`].
    pub fn trim(&mut self) -> Result<Bytes, Error> {
        let before = self.memory().held;
        let (layout, len) = (*self.cache.layout(), self.len);
        let length = |group| Bytes::from_usize(layout.stride(group) * len);
        let mut shrinks: Vec<_> =
            self.groups.iter_mut().enumerate().map(|(group, growable)| (growable, length(group))).collect();
        let done = shrink_together(&mut shrinks);
        // Also where it failed: what could not be put back is gone, and no token lay in it.
        self.prepared = if done.is_ok() { self.len } else { self.prepared.min(self.mapped_rows()) };
        self.record.set_pieces(self.groups.iter());
        done?;
        Ok(before.saturating_sub(self.memory().held))
    }

    /// A second sequence with the same tokens, which shares all memory with this one until one of them writes: then that one
    /// gets its own copy of the granule in which the two part, and no more. Rows that were prepared here have to be prepared
    /// again.
    ///
    /// # Errors
    /// [`Error::Bank`].
    pub fn fork(&mut self) -> Result<Sequence, Error> {
        let (layout, len, prepared) = (*self.cache.layout(), self.len, self.prepared);
        let mut groups = Vec::with_capacity(self.groups.len());
        for (group, growable) in self.groups.iter_mut().enumerate() {
            match growable.alias(Bytes::from_usize(layout.stride(group) * len)) {
                Ok(alias) => groups.push(alias),
                Err(error) => {
                    drop(groups);
                    // The prepared rows are this sequence's alone again: let them be written again.
                    self.prepared = len;
                    if prepared > len {
                        let _ = self.prepare_to(prepared);
                    }
                    return Err(error.into());
                }
            }
        }
        self.prepared = len;
        Ok(Sequence::of(&self.cache, groups, self.n_ctx, len))
    }

    /// What it has, granules shared with forks included.
    pub fn memory(&self) -> KvMemory {
        let granule = self.cache.bank().granule();
        let (mut all, mut shared) = (0, 0);
        for (_, is_shared) in self.groups.iter().flat_map(Growable::pieces) {
            all += 1;
            shared += u64::from(is_shared);
        }
        KvMemory {
            held: granule.saturating_mul(all),
            shared: granule.saturating_mul(shared),
            used: self.cache.layout().token_bytes().saturating_mul(self.len as u64),
            reserved: self.groups.iter().map(Growable::reserved).fold(Bytes::ZERO, Bytes::saturating_add),
        }
    }

    /// Makes rows `len..end` and whatever else fits into the same granules writable.
    fn prepare_to(&mut self, end: usize) -> Result<(), Error> {
        let (layout, granule, len) = (*self.cache.layout(), self.cache.bank().granule(), self.len);
        let mut rows = self.n_ctx;
        let mut growths = Vec::with_capacity(self.groups.len());
        for (group, growable) in self.groups.iter_mut().enumerate() {
            let stride = layout.row_stride(group);
            let needed = stride.saturating_mul(end as u64);
            let whole = needed.checked_next_multiple_of(granule).unwrap_or(needed).min(growable.reserved());
            rows = rows.min(usize::try_from(whole.get() / stride.get().max(1)).unwrap_or(rows));
            growths.push(Growth::of(growable, whole).writable_from(stride.saturating_mul(len as u64)));
        }
        let copied = grow_together(&mut growths)?;
        self.copied = self.copied.saturating_add(copied);
        self.prepared = rows;
        self.record.set_pieces(self.groups.iter());
        Ok(())
    }

    /// How many rows all groups have memory for.
    fn mapped_rows(&self) -> usize {
        let rows = |(group, growable): (usize, &Growable)| {
            let stride = self.cache.layout().row_stride(group).get().max(1);
            usize::try_from(growable.len().get() / stride).unwrap_or(usize::MAX)
        };
        self.groups.iter().enumerate().map(rows).min().unwrap_or(0)
    }

    fn set_len(&mut self, len: usize) {
        self.len = len;
        self.record.set_rows(len);
        let layout = self.cache.layout();
        for (group, range) in self.groups.iter().enumerate() {
            // Memory comes in whole granules; a recording is told how much of it holds rows.
            let length =
                || Length { range: range.id(), used: layout.row_stride(group).saturating_mul(len as u64) };
            self.cache.bank().tracer().emit(length);
        }
    }
}
