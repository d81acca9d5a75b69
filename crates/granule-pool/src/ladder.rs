//! The ladder: how a request is served that the heap's cache has nothing for, from what costs nothing to what costs most.
//!
//! ```text
//!  1  the heap's own arena                  memory that is free for its stream
//!  2  coalesce                              its cache goes back to the arenas, where it is large
//!  3  completed events                      blocks that other streams used, and what now lies together
//!  4  other streams' plenty                 what is covered already; else an event, and the heap's stream waits for it
//!  5  map granules                          what the bank has now
//!  6  other streams' memory                 all of it, caches included
//!  7  synchronize, and search again
//!  8  trim                                  idle granules back to the bank, and map
//!  9  ask                                   the bank's reclaimers, then the pool's own callback, while something comes of it
//! 10  no class                              the bytes that were asked for, without what rounding up to a class adds
//! ```
//!
//! Up to 5 nobody loses anything. *Plenty* is what keeps rungs 2 and 4 from being climbed at every miss: a cache or a neighbour's
//! free memory that is larger than 64 granules and than all that that heap has leased. With less than that, two
//! busy streams would take turns at taking blocks from each other, each time with an event, and none would ever have enough.

use std::sync::Arc;

use granule_bank::trace;
use granule_device::Bytes;

use crate::Error;
use crate::arena::{Arena, Cut, Want};
use crate::capture::Account;
use crate::heap::HeapCore;
use crate::policy::{Class, Stamp, UNIT};
use crate::pool::Neighbour;
use crate::shell::Block;
use crate::source::Source;

/// A block for a request.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) block: Block,
    /// What could still use it when it was found.
    stamp: Stamp,
    /// Whether the heap's cache had it.
    pub(crate) hit: bool,
    /// Whose it was, where it was another heap's: the stream, or none of a local one.
    pub(crate) from: Option<Option<trace::StreamId>>,
    /// The capture that it belongs to.
    pub(crate) account: Option<Arc<Account>>,
}

impl Found {
    fn new(block: Block, stamp: Stamp) -> Found {
        Found { block, stamp, hit: false, from: None, account: None }
    }

    fn cut(mut cut: Cut, class: Option<Class>) -> Found {
        let stamp = std::mem::take(&mut cut.stamp);
        Found::new(cut.block(class), stamp)
    }
}

/// How often the pool's owner is asked to give something up for one request.
const ROUNDS: usize = 8;

/// Cutting a block anew costs as much as some fast allocations: a cache is not coalesced again before it has served this many for
/// each of its blocks, unless memory is short.
pub(crate) const ALLOCS_PER_BLOCK: u64 = 32;

/// Blocks that a miss cuts ahead: as many as are in so many bytes, but one of a class of that size.
const BATCH: u64 = 64 << 10;
const BATCH_BLOCKS: u64 = 16;

/// How many more blocks of a class a miss cuts.
pub(crate) fn ahead(class: Class) -> usize {
    (BATCH / class.size()).min(BATCH_BLOCKS).saturating_sub(1) as usize
}

impl HeapCore {
    /// A block for a request.
    pub(crate) fn find(&self, want: Want, class: Option<Class>, size: Bytes) -> Result<Found, Error> {
        let state = self.shell.lock();
        if let Some(private) = &state.private {
            let account = private.account();
            drop(state);
            let block = self.find_private(&account, want, class, size)?;
            return Ok(Found { account: Some(account), ..Found::new(block, Stamp::Idle) });
        }
        drop(state);
        if let Some(block) = class.and_then(|class| self.take_cached(class, &|_| true)) {
            return Ok(Found { hit: true, ..Found::new(block.0, Stamp::Idle) });
        }
        let own = |stamp: &Stamp| self.owns(stamp);
        if let Some(cut) = self.arena.take(want, true, &own) {
            if let Some(class) = class {
                self.cut_ahead(class, &own);
            }
            return Ok(Found::cut(cut, class));
        }
        Ladder { core: self, want, class, size, failed: None, refused: None }.climb()
    }

    fn owns(&self, stamp: &Stamp) -> bool {
        match stamp {
            Stamp::Idle => true,
            Stamp::One(stream, _) => self.clock().is_some_and(|clock| clock.id() == *stream),
            Stamp::Many(_) => false,
        }
    }

    /// Cuts a few more small blocks while at it, from memory that is there.
    fn cut_ahead(&self, class: Class, own: &dyn Fn(&Stamp) -> bool) {
        let count = ahead(class);
        if count == 0 {
            return;
        }
        // The lowest on top.
        let cuts = self.arena.take_more(class.size(), count, own).into_iter().rev();
        self.welcome(
            cuts.map(|mut cut| (std::mem::take(&mut cut.stamp), cut))
                .map(|(stamp, cut)| (cut.block(Some(class)), stamp))
                .collect(),
        );
    }

    /// A block of the class out of the cache, with its stamp, if that is usable.
    fn take_cached(&self, class: Class, usable: &dyn Fn(&Stamp) -> bool) -> Option<(Block, Stamp)> {
        let mut state = self.shell.lock();
        let entry = state.cache.pop(class)?;
        let stamp = self.stamp(entry.tick(self.now()));
        if !usable(&stamp) {
            state.cache.push(class, entry);
            return None;
        }
        state.counts.owned -= 1;
        let gone = state.update();
        drop(state);
        drop(gone);
        Some((self.pool.blocks().take(entry.number(), entry.spot.at(), Some(class)), stamp))
    }

    /// Maps memory for a request.
    pub(crate) fn map(
        &self,
        want: Want,
        size: Bytes,
        ask: Ask,
        usable: &dyn Fn(&Stamp) -> bool,
    ) -> Result<Cut, Error> {
        let pool = &*self.pool;
        loop {
            let Some(count) = self.arena.plan(want, usable) else {
                if Bytes::new(want.size) > pool.budget() {
                    return Err(pool.too_large(size));
                }
                self.arena.reserve(pool.bank(), pool.owner(), want)?;
                continue;
            };
            let mut stock = pool.take(count, ask)?;
            let cut = self.arena.grow(want, &mut stock, usable)?;
            pool.count_map();
            // None where another thread was faster: then there is something new to plan with.
            if let Some(cut) = cut {
                return Ok(cut);
            }
        }
    }

    /// Allocates memory for a request where there are no granules: a segment that more can be cut from, or, where there is no room
    /// for one, just enough.
    fn allocate(
        &self,
        want: Want,
        size: Bytes,
        ask: Ask,
        usable: &dyn Fn(&Stamp) -> bool,
    ) -> Result<Cut, Error> {
        let pool = &*self.pool;
        let Some(least) = want.size.checked_add(want.align - UNIT) else { return Err(pool.too_large(size)) };
        if Bytes::new(least) > pool.budget() {
            return Err(pool.too_large(size));
        }
        loop {
            let segment = Source::segment(least);
            let memory = match pool.allocate(segment, Ask::Bank) {
                Err(error) if error.is_shortage() => pool.allocate(Bytes::new(least), ask)?,
                other => other?,
            };
            pool.count_map();
            self.arena.add(memory);
            if let Some(cut) = self.arena.take(want, true, usable) {
                return Ok(cut);
            }
        }
    }

    /// Whether the cache is larger than it should be, and its last coalescing has paid for itself: blocks that go back to the arena
    /// have to be cut again.
    fn has_plenty_cached(&self) -> bool {
        let state = self.shell.lock();
        let allocs = state.counts.hits + state.counts.misses;
        let paid = allocs - state.flushed_at >= ALLOCS_PER_BLOCK * state.cached_blocks();
        paid && state.cache.bytes() > self.pool.plenty(state.counts.given())
    }

    /// Puts blocks that other streams used, and that this heap's stream may have now, into the cache.
    fn welcome_waiting(&self) {
        let waiting = std::mem::take(&mut self.shell.lock().waiting);
        if waiting.is_empty() {
            return;
        }
        let view = self.pool.clocks().view(self.clock());
        let (ready, waiting): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|(.., stamp)| view.covers(stamp));
        self.welcome(ready.into_iter().map(|(_, block, stamp)| (block, stamp)).collect());
        let mut state = self.shell.lock();
        if state.is_cached() {
            state.waiting.extend(waiting);
        } else {
            drop(state);
            self.pool.give(waiting.into_iter().map(|(_, block, stamp)| block.home(stamp)).collect());
        }
    }
}

/// One request on its way up.
struct Ladder<'a> {
    core: &'a HeapCore,
    want: Want,
    class: Option<Class>,
    /// As it was asked for.
    size: Bytes,
    /// The first call that failed.
    failed: Option<Error>,
    /// What the bank last said when it gave nothing.
    refused: Option<Error>,
}

/// Who may be asked for memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// The bank, for what is free.
    Bank,
    /// The bank, and whoever can give something back to it.
    Everybody,
}

/// Whose memory is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// That of heaps which have more than enough.
    Plenty,
    All,
}

impl Ladder<'_> {
    fn climb(mut self) -> Result<Found, Error> {
        match self.rungs() {
            Some(found) => Ok(found),
            None => Err(self.error()),
        }
    }

    fn rungs(&mut self) -> Option<Found> {
        let (core, pool) = (self.core, &*self.core.pool);
        if core.has_plenty_cached() {
            core.flush(0);
        }
        pool.clocks().poll();
        core.arena.settle(&pool.completed());
        core.welcome_waiting();
        let found = self.search_own().or_else(|| self.search_others(Whose::Plenty));
        if let Some(found) = found.or_else(|| self.map(Ask::Bank)) {
            return Some(found);
        }
        if self.is_never() {
            if !self.leave_class() {
                return None;
            }
            if let Some(found) = self.map(Ask::Bank) {
                return Some(found);
            }
            if self.is_never() {
                return None;
            }
        }
        self.pressing().or_else(|| {
            // The last thing that can be spared is what rounding up to a class adds.
            self.leave_class()
                .then(|| self.search_own().or_else(|| self.search_others(Whose::All)))?
                .or_else(|| self.map(Ask::Bank))
        })
    }

    /// Whether a request fails whatever is given up for it.
    fn is_never(&mut self) -> bool {
        let pool = &*self.core.pool;
        let too_large = matches!(
            self.refused,
            Some(Error::TooLarge { .. } | Error::Bank(granule_bank::Error::TooLarge { .. }))
        );
        if !too_large && Bytes::new(self.want.size) > pool.budget() {
            self.refused = Some(pool.too_large(self.size));
        }
        too_large || Bytes::new(self.want.size) > pool.budget()
    }

    /// Asks for what was asked for and no whole class; answers whether that is less.
    fn leave_class(&mut self) -> bool {
        if self.class.take().is_none() {
            return false;
        }
        let exact = self.size.get().max(1).next_multiple_of(UNIT);
        let less = exact < self.want.size;
        if less {
            (self.want.size, self.refused) = (exact, None);
        }
        less
    }

    /// Rungs 6 to 9.
    fn pressing(&mut self) -> Option<Found> {
        let pool = &*self.core.pool;
        if let Some(found) = self.press().or_else(|| self.map(Ask::Everybody)) {
            return Some(found);
        }
        for _ in 0..ROUNDS {
            if pool.ask_owner(self.size).is_zero() {
                break;
            }
            if let Some(found) = self.press().or_else(|| self.map(Ask::Everybody)) {
                return Some(found);
            }
        }
        None
    }

    /// Rungs 6 to 8.
    fn press(&mut self) -> Option<Found> {
        let pool = &*self.core.pool;
        pool.flush_all();
        if let Some(found) = self.search_own().or_else(|| self.search_others(Whose::All)) {
            return Some(found);
        }
        let done = pool.clocks().finish_all();
        self.note(done);
        pool.collect();
        if let Some(found) = self.search_own().or_else(|| self.search_others(Whose::All)) {
            return Some(found);
        }
        let (_, done) = pool.give_idle(u64::MAX);
        self.note(done);
        self.map(Ask::Bank)
    }

    /// What the heap's own cache and arena have for its stream.
    fn search_own(&self) -> Option<Found> {
        let core = self.core;
        if let Some((block, stamp)) = self.class.and_then(|class| core.take_cached(class, &|_| true)) {
            return Some(Found::new(block, stamp));
        }
        let view = core.pool.clocks().view(core.clock());
        let covered = |stamp: &Stamp| view.covers(stamp);
        core.arena.adopt(&covered, core.now());
        let cut = core.arena.take(self.want, true, &covered);
        let cut = cut.or_else(|| core.arena.take_joined(self.want, true, &covered))?;
        Some(Found::cut(cut, self.class))
    }

    /// What others have: first what can be had at once, then what the heap's stream has to wait for.
    fn search_others(&mut self, whose: Whose) -> Option<Found> {
        let core = self.core;
        let mut neighbours = core.pool.neighbours(core);
        if whose == Whose::Plenty {
            neighbours.retain(Neighbour::has_plenty);
            neighbours.iter().for_each(Neighbour::flush);
        }
        let view = core.pool.clocks().view(core.clock());
        for neighbour in &neighbours {
            if let Some(entry) = self.cached(neighbour, &|stamp| view.covers(stamp)) {
                return Some(self.stolen(neighbour, entry));
            }
            if let Some(cut) = self.cut(&neighbour.arena, false, &|stamp| view.covers(stamp)) {
                return Some(self.stolen(neighbour, Found::cut(cut, self.class)));
            }
        }
        let own = core.stream.as_ref()?;
        let stream = own.stream.upgrade()?;
        // Its own arena too has what other streams used last.
        let ours = Neighbour { core: None, arena: Arc::clone(&core.arena) };
        for (neighbour, is_own) in neighbours.iter().map(|other| (other, false)).chain([(&ours, true)]) {
            let cached = self.cached(neighbour, &|stamp| view.can_wait(stamp));
            let found = cached.or_else(|| {
                let cut = self.cut(&neighbour.arena, is_own, &|stamp| view.can_wait(stamp))?;
                Some(Found::cut(cut, self.class))
            });
            let Some(found) = found else { continue };
            let waited = core.pool.clocks().wait(&own.clock, &stream, &found.stamp);
            match waited {
                Ok(()) if is_own => return Some(found),
                Ok(()) => return Some(self.stolen(neighbour, found)),
                Err(error) => {
                    core.pool.give(vec![found.block.home(found.stamp)]);
                    self.note(Err(error));
                }
            }
        }
        None
    }

    /// A block of the class from another heap's cache.
    fn cached(&self, neighbour: &Neighbour, usable: &dyn Fn(&Stamp) -> bool) -> Option<Found> {
        let (other, class) = (neighbour.core.as_ref()?, self.class?);
        let (block, stamp) = other.take_cached(class, usable)?;
        Some(Found::new(block, stamp))
    }

    fn cut(&self, arena: &Arena, own: bool, usable: &dyn Fn(&Stamp) -> bool) -> Option<Cut> {
        let cut = arena.take(self.want, own, usable);
        cut.or_else(|| arena.take_joined(self.want, own, usable))
    }

    fn stolen(&self, neighbour: &Neighbour, found: Found) -> Found {
        self.core.pool.count_steal();
        Found { from: Some(neighbour.core.as_ref().and_then(|core| core.trace())), ..found }
    }

    /// Memory from the bank.
    fn map(&mut self, ask: Ask) -> Option<Found> {
        let (core, pool) = (self.core, &*self.core.pool);
        let view = pool.clocks().view(core.clock());
        let covered = |stamp: &Stamp| view.covers(stamp);
        let cut = match pool.source() {
            Source::Granules => core.map(self.want, self.size, ask, &covered),
            Source::Plain | Source::Pinned => core.allocate(self.want, self.size, ask, &covered),
        };
        match cut {
            Ok(cut) => {
                if let Some(class) = self.class {
                    core.cut_ahead(class, &|stamp| core.owns(stamp));
                }
                Some(Found::cut(cut, self.class))
            }
            Err(error) => {
                self.note(Err(error));
                None
            }
        }
    }

    fn note(&mut self, done: Result<(), Error>) {
        match done {
            Ok(()) => {}
            Err(error) if error.is_shortage() => self.refused = Some(error),
            Err(error) => {
                self.failed.get_or_insert(error);
            }
        }
    }

    /// Why there is nothing.
    fn error(self) -> Error {
        let pool = &*self.core.pool;
        match (self.failed, self.refused) {
            (Some(error), _) => error,
            (None, Some(refused)) => pool.refusal(refused, self.size),
            // The bank was asked last, and would have said why.
            (None, None) => pool.too_large(self.size),
        }
    }
}
