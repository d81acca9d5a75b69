//! `Clocks`: which stream's work comes before which other's, and the events that make it so.
//!
//! Each stream counts the events that were recorded on it: its *tick*. Giving a block back stamps it with the tick and makes no
//! driver call. Whoever takes the block for another stream raises the tick first and records an event after, so what was
//! stamped with a tick up to the event's was given to the stream before the event: the stamp was read before it was raised.
//! Then the taker's stream waits for the event, and for whatever the other stream had waited for when the event was recorded.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use granule_bank::trace::{self, Event as Traced, Tracer};
use granule_device::{Event, Stream};

use crate::Error;
use crate::policy::{Clock, Stamp, StreamId, Tick};
use crate::shell::lock;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Later than every tick.
const END: Tick = Tick::MAX;

/// One stream, or one event, that free memory may still be used by.
#[derive(Debug)]
pub(crate) struct StreamClock {
    id: StreamId,
    trace: trace::StreamId,
    tick: AtomicU64,
    /// What the stream has waited for.
    waited: Mutex<Clock>,
    source: Mutex<Source>,
    /// Whether it is captured: then no event can be recorded on it.
    captured: AtomicBool,
    /// Whether no heap has it any more.
    closed: AtomicBool,
}

#[derive(Clone, Debug)]
enum Source {
    /// A stream of somebody else's. What it was given may keep leases, and so must not be kept by them. While its last handle is
    /// dropped nobody can have it any more and its work still runs: until the event, which is its end.
    Stream(Weak<Stream>, Event),
    /// Nothing comes after this.
    Ended(Event),
}

impl StreamClock {
    pub(crate) fn id(&self) -> StreamId {
        self.id
    }

    pub(crate) fn trace(&self) -> trace::StreamId {
        self.trace
    }

    /// What to stamp a block with that is given back now. All that used the block was given to the stream before.
    #[inline]
    pub(crate) fn now(&self) -> Tick {
        self.tick.load(Ordering::Acquire)
    }

    pub(crate) fn set_captured(&self, captured: bool) {
        self.captured.store(captured, Ordering::Release);
    }

    fn is_captured(&self) -> bool {
        self.captured.load(Ordering::Acquire)
    }

    /// Whether streams can be made to wait for what it was given so far.
    fn can_be_waited_for(&self) -> bool {
        match &*lock(&self.source) {
            Source::Stream(stream, _) => stream.strong_count() > 0 && !self.is_captured(),
            Source::Ended(_) => true,
        }
    }
}

/// An event on a stream, and what it stands for.
#[derive(Clone, Debug)]
struct Mark {
    stream: StreamId,
    /// Up to which tick all is done with the event.
    tick: Tick,
    /// What the stream had waited for before.
    before: Clock,
    event: Event,
    /// Whether it is the end of a stream that is being dropped.
    going: bool,
}

/// All streams of a pool.
#[derive(Debug)]
pub(crate) struct Clocks {
    tracer: Tracer,
    streams: Mutex<Streams>,
    seen: Mutex<Seen>,
    events: AtomicU64,
    waits: AtomicU64,
}

#[derive(Debug, Default)]
struct Streams {
    /// Those whose work may not have completed. What is not in here has.
    known: BTreeMap<StreamId, Arc<StreamClock>>,
    next: u32,
}

#[derive(Debug, Default)]
struct Seen {
    /// What has completed.
    host: Clock,
    /// Events that may not have.
    marks: Vec<Mark>,
}

/// What a taker may have without waiting, at one moment.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// The taker's own stream, whose work is always in order.
    own: Option<StreamId>,
    clock: Clock,
    /// The streams whose work may not have completed, and whether they can be waited for.
    known: Vec<(StreamId, bool)>,
}

impl View {
    fn misses(&self, stream: StreamId, tick: Tick) -> Option<bool> {
        if self.own == Some(stream) || self.clock.get(stream) >= tick {
            return None;
        }
        let at = self.known.binary_search_by_key(&stream, |&(known, _)| known).ok()?;
        Some(self.known[at].1)
    }

    /// True where memory with this stamp can be had at once.
    pub(crate) fn covers(&self, stamp: &Stamp) -> bool {
        stamp.iter().all(|(stream, tick)| self.misses(stream, tick).is_none())
    }

    /// True where it can be had at once or after waiting for events.
    pub(crate) fn can_wait(&self, stamp: &Stamp) -> bool {
        stamp.iter().all(|(stream, tick)| self.misses(stream, tick) != Some(false))
    }
}

impl Clocks {
    pub(crate) fn new(tracer: &Tracer) -> Clocks {
        Clocks {
            tracer: tracer.clone(),
            streams: Mutex::default(),
            seen: Mutex::default(),
            events: AtomicU64::new(0),
            waits: AtomicU64::new(0),
        }
    }

    /// Events recorded and waits asked for.
    pub(crate) fn calls(&self) -> (u64, u64) {
        (self.events.load(Ordering::Relaxed), self.waits.load(Ordering::Relaxed))
    }

    /// A stream that a heap is for.
    pub(crate) fn open(&self, stream: &Arc<Stream>, trace: trace::StreamId) -> Arc<StreamClock> {
        self.add(Source::Stream(Arc::downgrade(stream), stream.end()), trace)
    }

    /// Memory stamped with the answer's id at tick 1 may be used until the event is done.
    pub(crate) fn until(&self, event: &Event) -> Stamp {
        let clock = self.add(Source::Ended(event.clone()), trace::StreamId(u32::MAX));
        let mark =
            Mark { stream: clock.id, tick: END, before: Clock::new(), event: event.clone(), going: false };
        lock(&self.seen).marks.push(mark);
        Stamp::One(clock.id, 1)
    }

    fn add(&self, source: Source, trace: trace::StreamId) -> Arc<StreamClock> {
        let mut streams = lock(&self.streams);
        let id = StreamId(streams.next);
        streams.next += 1;
        let clock = Arc::new(StreamClock {
            id,
            trace,
            tick: AtomicU64::new(1),
            waited: Mutex::default(),
            source: Mutex::new(source),
            captured: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        });
        streams.known.insert(id, Arc::clone(&clock));
        clock
    }

    /// No heap has the stream any more, and no lease of it is out.
    pub(crate) fn close(&self, clock: &StreamClock) {
        clock.set_captured(false);
        clock.closed.store(true, Ordering::Release);
        self.end(clock);
    }

    /// Puts an event behind the last work of a closed stream. Where that fails it is tried again when somebody looks.
    fn end(&self, clock: &StreamClock) {
        let Source::Stream(stream, _) = lock(&clock.source).clone() else { return };
        // One that is going is found to be gone later.
        let Some(stream) = stream.upgrade() else { return };
        let before = lock(&clock.waited).clone();
        let Ok(event) = stream.record() else { return };
        self.events.fetch_add(1, Ordering::Relaxed);
        *lock(&clock.source) = Source::Ended(event.clone());
        lock(&self.seen).marks.push(Mark { stream: clock.id, tick: END, before, event, going: false });
    }

    /// All work of the stream is done.
    fn forget(&self, id: StreamId) {
        // Gone from here it counts as complete; nobody's clock needs to know of it.
        let left: Vec<Arc<StreamClock>> = {
            let mut streams = lock(&self.streams);
            streams.known.remove(&id);
            streams.known.values().cloned().collect()
        };
        lock(&self.seen).host.forget(id);
        left.iter().for_each(|clock| lock(&clock.waited).forget(id));
    }

    /// Looks which events are done, and which streams are gone.
    pub(crate) fn poll(&self) {
        let known: Vec<Arc<StreamClock>> = lock(&self.streams).known.values().cloned().collect();
        for clock in known {
            let gone = match &*lock(&clock.source) {
                Source::Stream(_, end) => end.is_done(),
                Source::Ended(_) => false,
            };
            if gone {
                self.forget(clock.id);
            } else if clock.closed.load(Ordering::Acquire) {
                self.end(&clock);
            }
        }
        // Nobody else finds the marks meanwhile, and at worst records one more.
        let mut marks = std::mem::take(&mut lock(&self.seen).marks);
        let done: Vec<Mark> = marks.extract_if(.., |mark| mark.event.is_done()).collect();
        let mut seen = lock(&self.seen);
        seen.marks.append(&mut marks);
        drop(seen);
        self.note(&done);
    }

    /// These events are done.
    fn note(&self, done: &[Mark]) {
        let mut seen = lock(&self.seen);
        for mark in done {
            seen.host.merge(&mark.before);
            if mark.tick != END {
                seen.host.raise(mark.stream, mark.tick);
            }
        }
        drop(seen);
        done.iter().filter(|mark| mark.tick == END).for_each(|mark| self.forget(mark.stream));
    }

    /// What a heap may have without waiting; of nobody: what has completed.
    pub(crate) fn view(&self, of: Option<&StreamClock>) -> View {
        // Streams last: one that is forgotten meanwhile has completed.
        let mut clock = lock(&self.seen).host.clone();
        if let Some(of) = of {
            clock.merge(&lock(&of.waited));
        }
        let streams = lock(&self.streams);
        let known = streams.known.iter().map(|(&id, clock)| (id, clock.can_be_waited_for())).collect();
        View { own: of.map(StreamClock::id), clock, known }
    }

    /// An event behind all that was stamped up to `tick`: one that is there, or a new one.
    fn mark(&self, stream: StreamId, tick: Tick) -> Result<Option<Mark>, Error> {
        let known = |mark: &&Mark| mark.stream == stream && mark.tick >= tick;
        if let Some(mark) = lock(&self.seen).marks.iter().find(known) {
            return Ok(Some(mark.clone()));
        }
        let Some(clock) = lock(&self.streams).known.get(&stream).cloned() else { return Ok(None) };
        self.mark_now(&clock)
    }

    /// An event behind all that the stream was given; none where it is gone. Of one that is going it is its end, which streams
    /// cannot wait for.
    fn mark_now(&self, clock: &StreamClock) -> Result<Option<Mark>, Error> {
        let source = lock(&clock.source).clone();
        // What the stream was made to wait for is behind the event whatever it is made to wait for from here on.
        let before = lock(&clock.waited).clone();
        match source {
            Source::Ended(event) => {
                Ok(Some(Mark { stream: clock.id, tick: END, before, event, going: false }))
            }
            Source::Stream(stream, end) => {
                let Some(stream) = stream.upgrade() else {
                    if end.is_done() {
                        self.forget(clock.id);
                        return Ok(None);
                    }
                    return Ok(Some(Mark { stream: clock.id, tick: END, before, event: end, going: true }));
                };
                // In this order: what is stamped with `tick` was given to the stream before the event.
                let tick = clock.tick.fetch_add(1, Ordering::AcqRel);
                let event = stream.record()?;
                self.events.fetch_add(1, Ordering::Relaxed);
                let mark = Mark { stream: clock.id, tick, before, event, going: false };
                lock(&self.seen).marks.push(mark.clone());
                Ok(Some(mark))
            }
        }
    }

    /// Makes the taker's stream wait for whatever may still use memory with this stamp.
    ///
    /// # Errors
    /// [`Error::Device`]; what it was made to wait for by then stays known.
    pub(crate) fn wait(&self, taker: &StreamClock, stream: &Stream, stamp: &Stamp) -> Result<(), Error> {
        for (other, tick) in stamp.iter() {
            if self.view(Some(taker)).misses(other, tick).is_none() {
                continue;
            }
            let Some(mark) = self.mark(other, tick)? else { continue };
            if mark.going {
                // Rare: it went since somebody looked.
                mark.event.synchronize();
            } else {
                stream.wait(&mark.event)?;
                self.waits.fetch_add(1, Ordering::Relaxed);
            }
            let mut waited = lock(&taker.waited);
            waited.merge(&mark.before);
            waited.raise(other, mark.tick);
            drop(waited);
            let other = lock(&self.streams).known.get(&other).map(|clock| clock.trace);
            if let Some(on) = other {
                self.tracer.emit(|| Traced::Wait { stream: taker.trace, on });
            }
        }
        Ok(())
    }

    /// Events behind whatever may still use memory with this stamp.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(crate) fn events(&self, stamp: &Stamp) -> Result<Vec<Event>, Error> {
        let view = self.view(None);
        let missing = stamp.iter().filter(|&(stream, tick)| view.misses(stream, tick).is_some());
        let marks = missing.map(|(stream, tick)| Ok(self.mark(stream, tick)?.map(|mark| mark.event)));
        marks.filter_map(Result::transpose).collect()
    }

    /// Waits here for all that one stream was given.
    ///
    /// # Errors
    /// [`Error::Device`].
    pub(crate) fn finish(&self, clock: &StreamClock) -> Result<(), Error> {
        if let Some(mark) = self.mark_now(clock)? {
            mark.event.synchronize();
            self.note(std::slice::from_ref(&mark));
        }
        Ok(())
    }

    /// Waits here for all that the streams were given, except those that are captured, and lets them let go of leases that this work
    /// held.
    ///
    /// # Errors
    /// [`Error::Device`] where one of them could not be waited for; the others were.
    pub(crate) fn finish_all(&self) -> Result<(), Error> {
        let done = self.finish_once();
        let streams: Vec<Arc<Stream>> = {
            let known = lock(&self.streams);
            let sources = known.known.values().filter(|clock| !clock.is_captured());
            let streams = sources.filter_map(|clock| match &*lock(&clock.source) {
                Source::Stream(stream, _) => stream.upgrade(),
                Source::Ended(_) => None,
            });
            streams.collect()
        };
        // A CUDA stream notices what is done when it is used. What it lets go of then is stamped later than the events above.
        let noticed = streams.iter().map(|stream| stream.record().map(drop)).fold(Ok(()), Result::and);
        drop(streams);
        done.and(noticed.map_err(Error::from)).and(self.finish_once())
    }

    fn finish_once(&self) -> Result<(), Error> {
        let streams: Vec<Arc<StreamClock>> = lock(&self.streams).known.values().cloned().collect();
        // All events first: they may be done while the first is waited for.
        let mut done = Ok(());
        let mut marks = Vec::with_capacity(streams.len());
        for clock in streams.iter().filter(|clock| !clock.is_captured()) {
            match self.mark_now(clock) {
                Ok(mark) => marks.extend(mark),
                Err(error) => done = done.and(Err(error)),
            }
        }
        marks.iter().for_each(|mark| mark.event.synchronize());
        self.note(&marks);
        self.poll();
        done
    }
}
