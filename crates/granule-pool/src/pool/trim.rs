//! Giving memory back: what has completed, what is idle, and what is left when the pool goes.

use std::sync::Arc;

use granule_bank::trace::Event as Traced;
use granule_bank::{Offer, Owner, Reclaim};
use granule_device::{Buffer, Bytes, Event};

use super::PoolInner;
use crate::Error;
use crate::capture::Account;
use crate::heap::HeapCore;
use crate::policy::Stamp;
use crate::shell::lock;
use crate::source::Source;
use crate::stats::waiting;

impl PoolInner {
    /// Gives all caches back to the arenas.
    pub(crate) fn flush_all(&self) {
        self.heaps().iter().for_each(|core| core.flush(0));
    }

    /// Notes in every arena what has completed, and drops what waited for that.
    pub(crate) fn collect(&self) {
        let complete = self.completed();
        self.arenas().iter().for_each(|arena| arena.settle(&complete));
        let done: Vec<(Stamp, Buffer)> =
            lock(&self.apart).extract_if(.., |(stamp, _)| complete(stamp)).collect();
        drop(done);
        let late = std::mem::take(&mut *lock(&self.late));
        if !late.is_empty() {
            match self.wait_for_device() {
                Ok(()) => late.iter().for_each(|account| account.give_back(self)),
                Err(_) => lock(&self.late).extend(late),
            }
        }
    }

    /// Gives up to `want` bytes of idle places back to the bank, or as much as there is. Answers how many, and the first error.
    pub(crate) fn give_idle(&self, want: u64) -> (u64, Result<(), Error>) {
        let (mut given, mut done) = (0, Ok(()));
        for arena in self.arenas() {
            if given >= want {
                break;
            }
            let (events, waited) = self.behind(&arena.idle_stamps());
            done = done.and(waited);
            // What has completed meanwhile needs no event.
            let complete = self.completed();
            let behind =
                |stamp: &Stamp| events.iter().find(|(of, _)| of == stamp).map(|(_, event)| event.clone());
            let (freed, trimmed) = arena.trim(want - given, &complete, &behind);
            given += freed;
            done = done.and(trimmed);
        }
        self.forget_arenas();
        (given, done)
    }

    /// The event behind each of the stamps that have not completed; and the first error. Where memory cannot be given back with an
    /// event it is waited for here, without any lock: what the streams run meanwhile may give leases back.
    fn behind(&self, stamps: &[Stamp]) -> (Vec<(Stamp, Event)>, Result<(), Error>) {
        let complete = self.completed();
        let (mut events, mut done): (Vec<(Stamp, Event)>, _) = (Vec::new(), Ok(()));
        for stamp in stamps {
            if complete(stamp) || events.iter().any(|(of, _)| of == stamp) {
                continue;
            }
            match self.joined(stamp) {
                Ok(mut behind) => {
                    if let Some(last) = behind.pop() {
                        // Memory is given back with one event: others are waited for.
                        behind.iter().for_each(Event::synchronize);
                        events.push((stamp.clone(), last));
                    }
                }
                Err(error) => done = done.and(Err(error)),
            }
        }
        if self.source != Source::Granules && !events.is_empty() {
            events.drain(..).for_each(|(_, event)| event.synchronize());
            self.clocks.poll();
        }
        (events, done)
    }

    /// Events behind whatever may still use memory with this stamp: one, where one of its streams can wait for the others.
    fn joined(&self, stamp: &Stamp) -> Result<Vec<Event>, Error> {
        let view = self.clocks.view(None);
        let of = |core: &HeapCore| {
            let own = core.stream.as_ref()?;
            let (id, tick) = (own.clock.id(), own.clock.now());
            let is_one = stamp.iter().any(|(stream, _)| stream == id) && view.can_wait(&Stamp::One(id, tick));
            is_one.then(|| own.stream.upgrade())?
        };
        if let Stamp::Many(_) = stamp
            && let Some((core, stream)) = self.heaps().iter().find_map(|core| Some((core, of(core)?)))
            && let Some(clock) = core.clock()
        {
            self.clocks.wait(clock, &stream, stamp)?;
            return self.clocks.events(&Stamp::One(clock.id(), clock.now()));
        }
        self.clocks.events(stamp)
    }

    /// Takes arenas off the list that have no heap and no memory any more.
    fn forget_arenas(&self) {
        let mut arenas = lock(&self.arenas);
        let mut gone = Vec::new();
        for slot in arenas.iter_mut() {
            // Nobody else has it, and so nobody can get it but through this list.
            if let Some(arena) = slot
                && Arc::strong_count(arena) == 1
                && arena.is_empty()
            {
                gone.extend(slot.take());
            }
        }
        drop(arenas);
        drop(gone);
    }

    /// Keeps a lease's own allocation until the work on it has run.
    pub(crate) fn keep_apart(&self, buffer: Buffer, stamp: Stamp) {
        // What nobody can still use is to be seen as gone at once.
        if !stamp.is_idle() {
            lock(&self.apart).push((stamp, buffer));
        }
    }

    /// Lets go of such allocations where they have become many.
    pub(crate) fn collect_apart(&self) {
        const MANY: usize = 64;
        if lock(&self.apart).len() >= MANY {
            // What is not waited for now stays until it is.
            let _ = self.clocks.finish_all();
            self.collect();
        }
    }

    pub(crate) fn keep_for_later(&self, account: Arc<Account>) {
        lock(&self.late).push(account);
    }

    /// Waits for all work on the device.
    pub(crate) fn wait_for_device(&self) -> Result<(), Error> {
        match self.device().synchronize() {
            // It has run, and said so by its panic.
            Ok(()) | Err(granule_device::Error::HostFunction { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// What it costs to have a MiB again that was given back: mapping half a granule.
const COST: u64 = 20;

impl Reclaim for PoolInner {
    fn owner(&self) -> Owner {
        self.options.owner.clone()
    }

    fn could_give(&self) -> Vec<Offer> {
        let idle = Bytes::new(self.arenas().iter().map(|arena| arena.idle()).sum());
        let of_heap = |core: &Arc<HeapCore>| {
            let state = core.shell.lock();
            state.cache.bytes() + waiting(&state)
        };
        let cached: u64 = self.heaps().iter().map(of_heap).sum();
        // Free blocks come together to whole granules, or do not.
        vec![Offer::new(idle, COST), Offer::new(Bytes::new(cached), 2 * COST)]
    }

    fn reclaim(&self, want: Bytes) -> Bytes {
        self.clocks.poll();
        let (idle, _) = self.give_idle(want.get());
        if idle >= want.get() {
            return Bytes::new(idle);
        }
        self.flush_all();
        let (more, _) = self.give_idle(want.get() - idle);
        Bytes::new(idle + more)
    }
}

impl Drop for PoolInner {
    fn drop(&mut self) {
        // No heap and no lease is left. What device work may still use goes back with an event, or is waited for.
        self.clocks.poll();
        let (_, done) = self.give_idle(u64::MAX);
        if done.is_err() || !lock(&self.apart).is_empty() || !lock(&self.late).is_empty() {
            // An injected fault comes once; what fails again has lost the device.
            let _ = self.clocks.finish_all().or_else(|_| self.clocks.finish_all());
            self.collect();
        }
        self.tracer.retract(Traced::PoolGone { pool: self.trace.0 });
    }
}
