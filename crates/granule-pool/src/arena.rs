//! `Arena`: addresses of a heap's own, and the policy that cuts blocks from those of them that have memory.

use std::ops::Range as Span;

use granule_bank::{Bank, Owner, Stock};
use granule_device::{Bytes, DevicePtr, Event};

use crate::Error;
use crate::policy::{self, BlockId, Class, Growth, Space, SpaceCounts, SpanId, Stamp, StreamId, Tick, UNIT};
use crate::shell::{Block, lock};
use crate::source::Memory;
use crate::sync::Mutex;

/// A block that was cut, with what may still use it.
#[derive(Debug)]
pub(crate) struct Cut {
    pub(crate) at: DevicePtr,
    pub(crate) block: BlockId,
    /// The number of its arena.
    pub(crate) arena: u32,
    /// In bytes.
    pub(crate) size: u64,
    pub(crate) stamp: Stamp,
}

impl Cut {
    /// The block, to be given back to a cache of the class, or to its arena.
    pub(crate) fn block(self, class: Option<Class>) -> Block {
        let Cut { at, block: id, arena, size: given, stamp: _ } = self;
        Block { at, id, arena, given, class }
    }
}

/// What a request wants of an arena, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Want {
    pub(crate) size: u64,
    pub(crate) align: u64,
}

/// Blocks go back to the arena that they were cut from, whichever heap has them.
#[derive(Debug)]
pub(crate) struct Arena {
    number: u32,
    ground: Mutex<Ground>,
}

#[derive(Debug)]
struct Ground {
    space: Space,
    /// By [`SpanId::index`].
    spans: Vec<Option<(SpanId, Memory)>>,
    /// Places whose memory goes back with an event.
    leaving: Vec<(SpanId, Span<usize>, Event)>,
    /// Places of the next span.
    next: usize,
    /// Kept for a captured stream: nobody else takes from it, and nothing of it is given back.
    private: bool,
}

/// What is to be dropped without the lock.
#[derive(Debug, Default)]
struct Gone {
    granules: Stock,
    /// Allocations, and ranges without memory.
    spans: Vec<Memory>,
}

/// Places of the first span of granules, and of the largest: 1 GiB and 128 GiB of addresses at 2 MiB a granule.
pub(crate) const FIRST: usize = 1 << 9;
pub(crate) const LARGEST: usize = 1 << 16;

impl Arena {
    /// One without addresses, of a stream's heap or a local one's.
    pub(crate) fn new(number: u32, home: Option<StreamId>) -> Arena {
        let space = home.map_or_else(Space::new, Space::of);
        let ground = Ground { space, spans: Vec::new(), leaving: Vec::new(), next: FIRST, private: false };
        Arena { number, ground: Mutex::new(ground) }
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    pub(crate) fn counts(&self) -> SpaceCounts {
        lock(&self.ground).space.counts()
    }

    /// True where there is no memory in it, and none on its way out.
    pub(crate) fn is_empty(&self) -> bool {
        let ground = lock(&self.ground);
        ground.space.counts().places_backed == 0 && ground.leaving.is_empty()
    }

    /// Bytes of whole places in which no block lies, and that can be given back: none of a private arena.
    pub(crate) fn idle(&self) -> u64 {
        let ground = lock(&self.ground);
        if ground.private {
            return 0;
        }
        ground.space.idle().map(|(span, places, _)| places.len() as u64 * ground.place(span)).sum()
    }

    pub(crate) fn set_private(&self, private: bool) {
        lock(&self.ground).private = private;
    }

    /// Cuts a block from memory that is there and usable. None of a private arena, but by its own heap.
    pub(crate) fn take(&self, want: Want, own: bool, usable: &dyn Fn(&Stamp) -> bool) -> Option<Cut> {
        let mut ground = lock(&self.ground);
        if ground.private && !own {
            return None;
        }
        let (block, stamp) = ground.space.take(want.size, want.align, usable)?;
        ground.found(self.number, block, stamp)
    }

    /// As [`Arena::take`], across neighbours that are kept apart because of their stamps.
    pub(crate) fn take_joined(&self, want: Want, own: bool, usable: &dyn Fn(&Stamp) -> bool) -> Option<Cut> {
        let mut ground = lock(&self.ground);
        if ground.private && !own {
            return None;
        }
        let (block, stamp) = ground.space.take_joined(want.size, want.align, usable)?;
        ground.found(self.number, block, stamp)
    }

    /// Cuts up to `count` more blocks of a size, for those who ask next.
    pub(crate) fn take_more(&self, size: u64, count: usize, usable: &dyn Fn(&Stamp) -> bool) -> Vec<Cut> {
        let mut ground = lock(&self.ground);
        let next = || {
            let (block, stamp) = ground.space.take(size, UNIT, usable)?;
            ground.found(self.number, block, stamp)
        };
        std::iter::from_fn(next).take(count).collect()
    }

    /// Takes blocks back. Ids are the arena's own, as they were handed out once: a stale one cannot be, and would be left alone.
    pub(crate) fn free(&self, blocks: impl IntoIterator<Item = (BlockId, Stamp)>) {
        let mut ground = lock(&self.ground);
        for (block, stamp) in blocks {
            let known = ground.space.free(block, stamp);
            debug_assert!(known.is_ok(), "a block was given back twice");
        }
    }

    /// Looks which memory on its way out is gone, and what has completed.
    pub(crate) fn settle(&self, complete: &dyn Fn(&Stamp) -> bool) {
        let mut ground = lock(&self.ground);
        let Ground { space, leaving, .. } = &mut *ground;
        leaving
            .retain(|(span, places, event)| !(event.is_done() && space.bare(*span, places.clone()).is_ok()));
        space.settle(complete);
    }

    /// Makes what its stream has waited for its own, as of tick `now`.
    pub(crate) fn adopt(&self, covered: &dyn Fn(&Stamp) -> bool, now: Tick) {
        lock(&self.ground).space.adopt(covered, now);
    }

    /// How many granules it takes to serve a request at the best place, or none where there are no addresses for it.
    pub(crate) fn plan(&self, want: Want, usable: &dyn Fn(&Stamp) -> bool) -> Option<usize> {
        lock(&self.ground).space.plan(want.size, want.align, usable).map(|growth| growth.new)
    }

    /// Puts granules behind the best place for a request and cuts its block there. None where it has become more than the stock
    /// has since it was planned. The stock keeps what is not needed.
    pub(crate) fn grow(
        &self,
        want: Want,
        stock: &mut Stock,
        usable: &dyn Fn(&Stamp) -> bool,
    ) -> Result<Option<Cut>, Error> {
        let mut ground = lock(&self.ground);
        let Some(growth) = ground.space.plan(want.size, want.align, usable) else { return Ok(None) };
        if growth.new > stock.len() {
            return Ok(None);
        }
        ground.back(&growth, stock)?;
        let Some((block, stamp)) = ground.space.grow(&growth) else { return Ok(None) };
        Ok(ground.found(self.number, block, stamp))
    }

    /// Adds addresses for a request; no memory.
    pub(crate) fn reserve(&self, bank: &Bank, owner: &Owner, want: Want) -> Result<(), Error> {
        let granule = bank.granule();
        let needed = Bytes::new(want.size).pieces_of(granule).unwrap_or(usize::MAX);
        let next = lock(&self.ground).next.max(needed);
        let size = Bytes::from_usize(next).checked_mul(granule.get()).unwrap_or(Bytes::MAX);
        let range = bank.range(owner, size)?;
        let mut ground = lock(&self.ground);
        ground.next = (ground.next * 2).min(LARGEST);
        ground.add(Memory::Granules(range));
        Ok(())
    }

    /// Adds an allocation, all of it free.
    pub(crate) fn add(&self, memory: Memory) {
        let mut ground = lock(&self.ground);
        let (_, places) = memory.places();
        let span = ground.add(memory);
        ground.space.back(span, 0..places);
    }

    /// What of the memory no block lies in, with what may still use it.
    pub(crate) fn idle_stamps(&self) -> Vec<Stamp> {
        let ground = lock(&self.ground);
        if ground.private { Vec::new() } else { ground.space.idle().map(|(.., stamp)| stamp).collect() }
    }

    /// Gives up to `want` bytes of places that no block lies in back to the bank: at once where they are `complete`, else with the
    /// event that is `behind` their stamp, if there is one and the memory is granules. Answers how many bytes, and the first error.
    pub(crate) fn trim(
        &self,
        want: u64,
        complete: &dyn Fn(&Stamp) -> bool,
        behind: &dyn Fn(&Stamp) -> Option<Event>,
    ) -> (u64, Result<(), Error>) {
        let (mut given, mut done, mut gone) = (0, Ok(()), Gone::default());
        let mut ground = lock(&self.ground);
        if ground.private {
            return (0, Ok(()));
        }
        let idle: Vec<_> = ground.space.idle().collect();
        for (span, places, stamp) in idle {
            if given >= want {
                break;
            }
            let place = ground.place(span);
            let count = (want - given).div_ceil(place.max(1)).min(places.len() as u64) as usize;
            // From the end: what is used most lies low.
            let places = places.end - count..places.end;
            let after = if complete(&stamp) { None } else { behind(&stamp) };
            if after.is_none() && !complete(&stamp) {
                continue;
            }
            match ground.clear(span, places.clone(), after, &mut gone) {
                Ok(()) => given += count as u64 * place,
                Err(error) => done = done.and(Err(error)),
            }
        }
        ground.forget_empty(&mut gone.spans);
        // Freed without the lock: the bank's watches are told, and may look at the pool.
        drop(ground);
        drop(gone);
        (given, done)
    }
}

impl Ground {
    fn add(&mut self, memory: Memory) -> SpanId {
        let (place, places) = memory.places();
        let span = self.space.add_span_at(memory.base().addr(), place, places);
        if self.spans.len() <= span.index() {
            self.spans.resize_with(span.index() + 1, || None);
        }
        self.spans[span.index()] = Some((span, memory));
        span
    }

    fn memory(&mut self, span: SpanId) -> Option<&mut Memory> {
        self.spans.get_mut(span.index())?.as_mut().filter(|(of, _)| *of == span).map(|(_, memory)| memory)
    }

    /// The size of a place.
    fn place(&self, span: SpanId) -> u64 {
        self.spans.get(span.index()).and_then(Option::as_ref).map_or(0, |(_, memory)| memory.places().0)
    }

    fn found(&mut self, arena: u32, block: policy::Block, stamp: Stamp) -> Option<Cut> {
        let base = self.memory(block.span)?.base();
        Some(Cut { at: base.add(Bytes::new(block.offset)), block: block.id, arena, size: block.size, stamp })
    }

    fn back(&mut self, growth: &Growth, stock: &mut Stock) -> Result<(), Error> {
        match self.memory(growth.span) {
            Some(memory) => memory.fill(growth.places.clone(), stock),
            None => Ok(()),
        }
    }

    /// Takes the memory of idle places away.
    fn clear(
        &mut self,
        span: SpanId,
        places: Span<usize>,
        after: Option<Event>,
        gone: &mut Gone,
    ) -> Result<(), Error> {
        let Some(memory) = self.memory(span) else { return Ok(()) };
        if !matches!(memory, Memory::Granules(_)) {
            // Nothing of it can be kept until an event: who trims has waited, without the lock.
            if after.is_none()
                && self.space.bare(span, places).is_ok()
                && self.space.remove_span(span).is_ok()
            {
                gone.spans.extend(self.spans[span.index()].take().map(|(_, memory)| memory));
            }
            return Ok(());
        }
        let cleared = memory.clear(places.clone(), after.as_ref(), &mut gone.granules);
        if cleared.is_err() {
            // Undoing may have failed too: what is gone is gone.
            let lost: Vec<usize> = places.filter(|&place| !memory.is_backed(place)).collect();
            for place in lost {
                let _ = self.space.bare(span, place..place + 1);
            }
            return cleared;
        }
        let out = match after {
            Some(event) => {
                let out = self.space.withdraw(span, places.clone());
                self.leaving.push((span, places, event));
                out
            }
            None => self.space.bare(span, places),
        };
        debug_assert!(out.is_ok(), "a block lies in an idle place");
        Ok(())
    }

    /// Takes out spans without memory, except the newest, which is the largest.
    fn forget_empty(&mut self, gone: &mut Vec<Memory>) {
        let newest = self.spans.iter().flatten().map(|(_, memory)| memory.places().1).max();
        for slot in &mut self.spans {
            let Some((span, memory)) = slot else { continue };
            let keep = Some(memory.places().1) == newest || self.leaving.iter().any(|(of, ..)| of == span);
            if !keep && self.space.remove_span(*span).is_ok() {
                gone.extend(slot.take().map(|(_, memory)| memory));
            }
        }
    }
}
