//! What a stream's work holds, and how far that work has come.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;

use crate::cuda::moment::{CudaMoment, Unrecorded};
use crate::region::{Pending, Ticket};

/// Something that work uses and that is not memory: a module, a graph.
pub(in crate::cuda) type Resource = Arc<dyn Any + Send + Sync>;

/// How many resources may be used by work without an event behind it before one is recorded for their sake.
const UNMARKED: usize = 16;

/// What the work that was given to a stream holds until an event behind it is done.
#[derive(Default)]
pub(super) struct Held {
    /// In the order of the stream.
    running: VecDeque<Batch>,
    /// How many events there were.
    events: u64,
    /// Tickets of work behind which no event could be recorded: the next event is behind it too.
    loose: Vec<Ticket>,
    kept: Vec<Kept>,
    /// What the capture in progress uses.
    captured: Vec<Resource>,
    /// How many views of regions cudarc has, to use them on this stream.
    pub(super) lent: usize,
    /// The event that the stream was last waited for by, for the next time.
    pub(super) spare: Option<Unrecorded>,
    /// Empty lists, for what is let go next.
    room: Finished,
}

/// The work before one event.
struct Batch {
    number: u64,
    moment: Arc<CudaMoment>,
    tickets: Vec<Ticket>,
}

/// A resource, kept until the event of this number is done, which may be still to come.
struct Kept {
    until: u64,
    resource: Resource,
}

/// What nothing uses any more. Dropped outside all locks: the last holder of a memory frees it.
#[derive(Default)]
pub(in crate::cuda) struct Finished {
    pub(in crate::cuda) tickets: Vec<Ticket>,
    pub(in crate::cuda) resources: Vec<Resource>,
}

impl Finished {
    /// Lets go of all of it.
    pub(super) fn clear(&mut self) {
        self.tickets.clear();
        self.resources.clear();
    }
}

impl Held {
    /// Holds tickets until the next event is done.
    pub(super) fn hold(&mut self, tickets: impl IntoIterator<Item = Ticket>) {
        self.loose.extend(tickets);
    }

    /// Keeps a resource until the next event is done.
    pub(super) fn keep(&mut self, resource: Resource) {
        let until = self.events + 1;
        match self.kept.iter_mut().find(|kept| Arc::ptr_eq(&kept.resource, &resource)) {
            Some(kept) => kept.until = until,
            None => self.kept.push(Kept { until, resource }),
        }
    }

    /// Keeps a resource for the capture in progress.
    pub(super) fn keep_captured(&mut self, resource: Resource) {
        if !self.captured.iter().any(|other| Arc::ptr_eq(other, &resource)) {
            self.captured.push(resource);
        }
    }

    pub(super) fn take_captured(&mut self) -> Vec<Resource> {
        std::mem::take(&mut self.captured)
    }

    /// Whether some of it has no event behind it.
    pub(super) fn is_unmarked(&self) -> bool {
        !self.loose.is_empty() || self.kept.iter().any(|kept| kept.until > self.events)
    }

    /// Whether so much is kept without an event behind it that one is worth its call.
    pub(super) fn wants_mark(&self) -> bool {
        self.kept.iter().filter(|kept| kept.until > self.events).count() >= UNMARKED
    }

    /// An event was recorded behind everything; answers its number.
    pub(super) fn mark(&mut self, moment: Arc<CudaMoment>) -> u64 {
        self.events += 1;
        let (number, tickets) = (self.events, std::mem::take(&mut self.loose));
        self.running.push_back(Batch { number, moment, tickets });
        number
    }

    /// The first event that is not known to be done.
    pub(super) fn front(&self) -> Option<(u64, Arc<CudaMoment>)> {
        self.running.front().map(|batch| (batch.number, Arc::clone(&batch.moment)))
    }

    /// The event behind all work on a region that has one behind it; `None` where there is no such work.
    pub(super) fn last_of(&self, region: &Pending) -> Option<(u64, Arc<CudaMoment>)> {
        let last = self.running.iter().rfind(|batch| batch.tickets.iter().any(|ticket| ticket.is_of(region)));
        last.map(|batch| (batch.number, Arc::clone(&batch.moment)))
    }

    /// Whether work on a region has no event behind it.
    pub(super) fn is_loose(&self, region: &Pending) -> bool {
        self.loose.iter().any(|ticket| ticket.is_of(region))
    }

    pub(super) fn events(&self) -> u64 {
        self.events
    }

    pub(super) fn take_loose(&mut self) -> Vec<Ticket> {
        std::mem::take(&mut self.loose)
    }

    /// What is held by work up to the event of this number.
    pub(super) fn take_until(&mut self, number: u64) -> Finished {
        let done = self.running.iter().take_while(|batch| batch.number <= number).count();
        let mut finished = std::mem::take(&mut self.room);
        finished.tickets.extend(self.running.drain(..done).flat_map(|batch| batch.tickets));
        let over = self.kept.extract_if(.., |kept| kept.until <= number);
        finished.resources.extend(over.map(|kept| kept.resource));
        finished
    }

    /// Takes back what [`Held::take_until`] gave, once it is empty: letting go takes no memory then.
    pub(super) fn keep_room(&mut self, room: Finished) {
        self.room = room;
    }

    /// Everything.
    pub(super) fn take_all(&mut self) -> Finished {
        let mut all = self.take_until(u64::MAX);
        all.tickets.append(&mut self.loose);
        all.resources.append(&mut self.captured);
        all
    }
}
