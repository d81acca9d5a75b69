//! Captures: a graph keeps the addresses of the work that was captured, so what was allocated or freed in the capture is nobody
//! else's while the graph may run.

use std::fmt;
use std::sync::Arc;

use granule_bank::trace::Event as Traced;
use granule_device::{Buffer, Bytes, Event};

use crate::Error;
use crate::arena::Want;
use crate::heap::{Heap, HeapCore};
use crate::ladder::Ask;
use crate::policy::{Class, Stamp};
use crate::pool::PoolInner;
use crate::shell::{Block, lock};
use crate::sync::Mutex;

/// A block that a capture keeps.
#[derive(Debug)]
pub(crate) struct Kept {
    pub(crate) block: Block,
    pub(crate) stamp: Stamp,
    /// The lease's own allocation, where a memory checker had it made one.
    pub(crate) apart: Option<Buffer>,
    /// Further captures that may use it: it is kept by one after the other.
    pub(crate) others: Vec<Arc<Account>>,
}

impl Kept {
    pub(crate) fn new(block: Block, stamp: Stamp) -> Kept {
        Kept { block, stamp, apart: None, others: Vec::new() }
    }

    /// One capture is done with it: to the next one, or, answered, to its arena.
    fn pass_on(mut self) -> Option<Kept> {
        match self.others.pop() {
            Some(next) => next.take_back(self, false),
            None => Some(self),
        }
    }
}

/// The blocks of one capture.
#[derive(Debug, Default)]
pub(crate) struct Account {
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    phase: Phase,
    /// Allocated and freed in the capture: the next captured work may have them.
    free: Vec<Kept>,
    held: Vec<Kept>,
    /// Allocations of leases whose blocks the next captured work has got.
    apart: Vec<(Stamp, Buffer)>,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Capturing,
    Captured,
    /// The graph is done with them once this is.
    Released(Stamp),
}

impl Account {
    /// Takes a block that is given back. Once the graph is gone it goes to its arena instead: then it is answered, stamped
    /// with the graph's last run.
    pub(crate) fn take_back(&self, mut kept: Kept, again: bool) -> Option<Kept> {
        let mut books = lock(&self.books);
        match &books.phase {
            Phase::Capturing if again => books.free.push(kept),
            Phase::Capturing | Phase::Captured => books.held.push(kept),
            Phase::Released(stamp) => {
                kept.stamp.merge(stamp);
                drop(books);
                return kept.pass_on();
            }
        }
        None
    }

    /// A block that was freed in the capture, the last one first.
    fn take(&self, want: Want, class: Option<Class>) -> Option<Block> {
        let mut books = lock(&self.books);
        let fits = |kept: &Kept| {
            let Block { at, class: of, given, .. } = &kept.block;
            *of == class && *given == want.size && at.addr().is_multiple_of(want.align)
        };
        let at = books.free.iter().rposition(fits)?;
        let Kept { block, stamp, apart, .. } = books.free.remove(at);
        books.apart.extend(apart.map(|buffer| (stamp, buffer)));
        Some(block)
    }

    fn end(&self) {
        let mut books = lock(&self.books);
        let free = std::mem::take(&mut books.free);
        books.held.extend(free);
        books.phase = Phase::Captured;
    }

    /// The graph is done with all of it once the stamp is.
    fn release(&self, pool: &PoolInner, stamp: &Stamp) {
        let (held, apart) = {
            let mut books = lock(&self.books);
            books.phase = Phase::Released(stamp.clone());
            (std::mem::take(&mut books.held), std::mem::take(&mut books.apart))
        };
        let released = held.into_iter().filter_map(|mut kept| {
            kept.stamp.merge(stamp);
            kept.pass_on()
        });
        pool.give_kept(released.collect());
        for (mut last, buffer) in apart {
            last.merge(stamp);
            pool.keep_apart(buffer, last);
        }
    }
}

/// What a heap has while its stream is captured.
#[derive(Debug)]
pub(crate) struct Private {
    account: Arc<Account>,
    stage: Stage,
}

/// How far a capture is. Other handles of the heap wait for nothing: what they may not do now is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Beginning,
    Open,
    Ending,
}

impl Private {
    pub(crate) fn account(&self) -> Arc<Account> {
        Arc::clone(&self.account)
    }
}

/// The memory that a captured graph uses, kept from everybody else. Keep it beside the graph.
///
/// It goes back to the pool with [`CapturedMemory::release_after`], or when this is dropped, which waits for the whole device: the
/// pool does not know which streams the graph ran on.
#[must_use = "dropping it gives the graph's memory to others"]
pub struct CapturedMemory {
    pool: Arc<PoolInner>,
    account: Arc<Account>,
}

impl CapturedMemory {
    /// How many bytes of blocks are kept, those that are still leased not counted.
    pub fn size(&self) -> Bytes {
        let books = lock(&self.account.books);
        Bytes::new(books.held.iter().map(|kept| kept.block.given).sum())
    }

    /// Gives the memory back, to be used by others once these events are done: they are behind the graph's last runs, one for each
    /// stream that it ran on. None where it never ran, or has run to its end.
    pub fn release_after(self, events: &[Event]) {
        let mut stamp = Stamp::Idle;
        let pending = events.iter().filter(|event| !event.is_done());
        pending.for_each(|event| stamp.merge(&self.pool.clocks().until(event)));
        self.account.release(&self.pool, &stamp);
    }
}

impl Drop for CapturedMemory {
    fn drop(&mut self) {
        if matches!(lock(&self.account.books).phase, Phase::Released(_)) {
            return;
        }
        match self.pool.wait_for_device() {
            Ok(()) => self.account.release(&self.pool, &Stamp::Idle),
            // Nobody can be told; it is tried again before the pool has to give up on a request.
            Err(_) => self.pool.keep_for_later(Arc::clone(&self.account)),
        }
    }
}

impl fmt::Debug for CapturedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CapturedMemory({})", self.size())
    }
}

impl Account {
    /// Gives back what could not be given back before.
    pub(crate) fn give_back(&self, pool: &PoolInner) {
        self.release(pool, &Stamp::Idle);
    }
}

impl Heap {
    /// Keeps what is allocated and freed from here on apart, until [`Heap::end_private`]: for work that somebody else captures on
    /// the heap's stream. [`Heap::begin_capture`] does both.
    ///
    /// Meanwhile nothing is taken from this heap by others, or by it from them. What it allocates comes from memory whose former
    /// work has completed: what lies free in this heap is waited for here. As no memory can be mapped while a stream of the device is
    /// captured, what the captured work needs should have been allocated before. That is more than the same work takes when it is
    /// not captured: a block that is freed in the capture serves only requests of its own size there, so there has to be memory for
    /// the largest number of blocks of each size that are out at a time.
    ///
    /// A lease from before that is dropped in the capture belongs to it too, whether it is of this heap or was marked with it
    /// ([`Lease::used_by`](crate::Lease::used_by)). One that captured work uses and that is dropped after the end does not: keep it
    /// as long as the graph.
    ///
    /// # Errors
    /// [`Error::NoStream`], [`Error::Capturing`]; [`Error::Device`] where the stream cannot be waited for.
    pub fn begin_private(&self) -> Result<(), Error> {
        const WHAT: &str = "another capture";
        let core = self.core();
        let Some(own) = &core.stream else { return Err(Error::NoStream { what: "a capture" }) };
        if core.shell.lock().private.is_some() {
            return Err(Error::Capturing { what: WHAT });
        }
        core.flush(0);
        core.pool.clocks().finish(&own.clock)?;
        core.arena.settle(&core.pool.completed());
        let mut state = core.shell.lock();
        if state.private.is_some() {
            return Err(Error::Capturing { what: WHAT });
        }
        state.private = Some(Private { account: Arc::default(), stage: Stage::Beginning });
        let _ = state.update();
        drop(state);
        core.arena.set_private(true);
        own.clock.set_captured(true);
        if let Some(private) = &mut core.shell.lock().private {
            private.stage = Stage::Open;
        }
        // What was freed in between.
        core.flush(0);
        core.pool.tracer().emit(|| Traced::CaptureBegin { stream: own.clock.trace() });
        Ok(())
    }

    /// Ends what [`Heap::begin_private`] began. Every block that was allocated or freed in between belongs to the answer; leases
    /// of such blocks that are still out go to it when they are dropped. Leases from before that are still out do not: those that
    /// captured work uses are to be kept as long as the graph.
    ///
    /// # Errors
    /// [`Error::NotCapturing`].
    pub fn end_private(&self) -> Result<CapturedMemory, Error> {
        // With a handle the heap is nothing that goes.
        let (memory, _) = self.core().end_private();
        memory.ok_or(Error::NotCapturing)
    }

    /// Captures the work that is given to the heap's stream from here on, instead of running it: see
    /// [`Stream::begin_capture`](granule_device::Stream::begin_capture) for the work and [`Heap::begin_private`] for the memory.
    ///
    /// # Errors
    /// As [`Heap::begin_private`]; [`Error::Device`] also where the stream cannot be captured.
    #[cfg(feature = "cuda")]
    pub fn begin_capture(&self) -> Result<(), Error> {
        let Some(stream) = self.stream() else { return Err(Error::NoStream { what: "a capture" }) };
        self.begin_private()?;
        if let Err(error) = stream.begin_capture() {
            // No work was captured: what was freed meanwhile is stamped with the stream's own tick.
            self.end_private()?.release_after(&[]);
            return Err(error.into());
        }
        Ok(())
    }

    /// Ends the capture: the graph, and the memory that it uses, to be kept as long as the graph may run.
    ///
    /// # Errors
    /// [`Error::NotCapturing`]; [`Error::Device`] where something has spoilt the capture, which is over then, or where it could not be
    /// ended.
    #[cfg(feature = "cuda")]
    pub fn end_capture(&self) -> Result<(granule_device::Graph, CapturedMemory), Error> {
        let Some(stream) = self.stream() else { return Err(Error::NoStream { what: "a capture" }) };
        if self.core().shell.lock().private.is_none() {
            return Err(Error::NotCapturing);
        }
        match stream.end_capture() {
            Ok(graph) => Ok((graph, self.end_private()?)),
            Err(error) => {
                // A capture that goes on lets no event be recorded.
                let goes_on = matches!(stream.record(), Err(granule_device::Error::Capturing { .. }));
                if !goes_on {
                    self.end_private()?.release_after(&[]);
                }
                Err(error.into())
            }
        }
    }
}

impl HeapCore {
    /// Ends a capture, where one is open. Answers also with the heap where nobody will ask for it any more.
    pub(crate) fn end_private(&self) -> (Option<CapturedMemory>, Option<Arc<HeapCore>>) {
        let mut state = self.shell.lock();
        let Some(private) = state.private.as_mut().filter(|private| private.stage == Stage::Open) else {
            return (None, state.update());
        };
        // Until all is undone no other capture begins.
        private.stage = Stage::Ending;
        let account = private.account();
        drop(state);
        self.arena.set_private(false);
        if let Some(own) = &self.stream {
            own.clock.set_captured(false);
            self.pool.tracer().emit(|| Traced::CaptureEnd { stream: own.clock.trace() });
        }
        let mut state = self.shell.lock();
        state.private = None;
        let gone = state.update();
        drop(state);
        account.end();
        (Some(CapturedMemory { pool: Arc::clone(&self.pool), account }), gone)
    }

    /// A block for captured work: one that was freed in the capture, or one whose former work has completed.
    pub(crate) fn find_private(
        &self,
        account: &Account,
        want: Want,
        class: Option<Class>,
        size: Bytes,
    ) -> Result<Block, Error> {
        if let Some(block) = account.take(want, class) {
            return Ok(block);
        }
        let complete = self.pool.completed();
        let cut = match self.arena.take(want, true, &complete) {
            Some(cut) => cut,
            None => self.map(want, size, Ask::Bank, &complete)?,
        };
        Ok(cut.block(class))
    }
}
