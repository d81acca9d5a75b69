//! `Tracer`: where events go. `Recorder`: a recording being made of them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::code::Block;
use super::{BLOCK_HEADER, Error, Event, HEADER, MAGIC, MAX_GRANULES, OwnerId, VERSION};
use crate::Owner;

/// A block is sent to be written when it has this many bytes: some 8,000 events.
const BLOCK: usize = 64 << 10;
/// Blocks that may wait to be written: 8 MiB. Further ones are dropped, and what was in them is counted.
const WAITING: usize = 128;
/// A block is sent to be written when its first event is about this old, full or not.
const AGE: Duration = Duration::from_millis(100);

/// Where events go: nowhere, or into a recording. Cheap to clone; every clone is the same tracer.
///
/// A bank has one and all that is made from the bank uses it; banks may share one, for one recording of several devices. The
/// recorder's lock is held for the time it takes to put an event into a buffer and is never held while something else is
/// called, so an event may be emitted under any lock.
#[derive(Clone, Default)]
pub struct Tracer(Arc<Shared>);

#[derive(Default)]
struct Shared {
    on: AtomicBool,
    numbers: AtomicU32,
    /// Locked before the sink where both are.
    known: Mutex<Known>,
    sink: Mutex<Option<Sink>>,
}

/// What events refer to by number. A recording that is started later begins with it.
#[derive(Default)]
struct Known {
    owners: HashMap<Owner, OwnerId>,
    /// By kind and number.
    things: BTreeMap<(u8, u32), Event>,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer").field("on", &self.is_on()).finish_non_exhaustive()
    }
}

impl Tracer {
    /// A tracer that is off.
    pub fn new() -> Tracer {
        Tracer::default()
    }

    /// True while a recording is made. One relaxed load.
    #[inline]
    pub fn is_on(&self) -> bool {
        self.0.on.load(Ordering::Relaxed)
    }

    /// Records what `event` answers; off, it is not called.
    #[inline]
    pub fn emit(&self, event: impl FnOnce() -> Event) {
        if self.is_on() {
            self.write(event());
        }
    }

    /// Records several events that belong together: nothing of another thread's comes between them. Off, `events` is not
    /// called.
    #[inline]
    pub fn emit_all<I: IntoIterator<Item = Event>>(&self, events: impl FnOnce() -> I) {
        if self.is_on() {
            let events: Vec<Event> = events().into_iter().collect();
            if let Some(sink) = lock(&self.0.sink).as_mut() {
                events.into_iter().for_each(|event| sink.event(event));
            }
        }
    }

    /// Records where the program is: "load", "token 17".
    pub fn mark(&self, text: &str) {
        self.emit(|| Event::Mark { text: text.to_owned() });
    }

    /// A number for a device, a pool, a stream or a range, which nothing else of this tracer has.
    pub fn number(&self) -> u32 {
        self.0.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The number of an owner's name, on or off. Takes a lock: ask once and keep it.
    pub fn owner(&self, owner: &Owner) -> OwnerId {
        let mut known = lock(&self.0.known);
        if let Some(id) = known.owners.get(owner) {
            return *id;
        }
        let id = OwnerId(self.number());
        known.owners.insert(owner.clone(), id);
        // Under the lock: a recording that starts now has it from the list or from here, and only once.
        self.emit(|| Event::Owner { owner: id, name: owner.name().to_owned() });
        id
    }

    /// Tells of a [`Event::Device`], [`Event::Pool`], [`Event::Stream`], [`Event::Range`] or [`Event::Arena`], on or off: a
    /// recording that is started later begins with those that are there. Any other event is only emitted.
    pub fn declare(&self, event: Event) {
        let mut known = lock(&self.0.known);
        if let Some(key) = key(&event) {
            known.things.insert(key, event.clone());
        }
        self.emit(|| event);
    }

    /// Tells of a [`Event::PoolGone`], [`Event::StreamGone`] or [`Event::RangeGone`], on or off. Any other event is only
    /// emitted.
    pub fn retract(&self, event: Event) {
        let mut known = lock(&self.0.known);
        let kinds: &[u8] =
            if matches!(event, Event::RangeGone { .. }) { &[RANGE, ARENA] } else { &[POOL, STREAM] };
        if let Some(number) = gone(&event) {
            for kind in kinds {
                known.things.remove(&(*kind, number));
            }
        }
        self.emit(|| event);
    }

    #[cold]
    fn write(&self, event: Event) {
        if let Some(sink) = lock(&self.0.sink).as_mut() {
            sink.event(event);
        }
    }
}

const DEVICE: u8 = 0;
const POOL: u8 = 1;
const STREAM: u8 = 2;
const RANGE: u8 = 3;
const ARENA: u8 = 4;

/// What a declaration is known by. Devices come first: the others refer to them.
fn key(event: &Event) -> Option<(u8, u32)> {
    match event {
        Event::Device { device, .. } => Some((DEVICE, device.0)),
        Event::Pool { pool, .. } => Some((POOL, pool.0)),
        Event::Stream { stream, .. } => Some((STREAM, stream.0)),
        Event::Range { range, .. } => Some((RANGE, range.0)),
        Event::Arena { range, .. } => Some((ARENA, range.0)),
        _ => None,
    }
}

fn gone(event: &Event) -> Option<u32> {
    match event {
        Event::PoolGone { pool } => Some(pool.0),
        Event::StreamGone { stream } => Some(stream.0),
        Event::RangeGone { range } => Some(range.0),
        _ => None,
    }
}

/// A recording that is being made. Dropping it finishes it, and loses what [`Recorder::finish`] would say.
#[derive(Debug)]
pub struct Recorder {
    tracer: Tracer,
    thread: Option<JoinHandle<(u64, std::io::Result<()>)>>,
}

/// What a recording came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Written {
    /// Events in the file.
    pub events: u64,
    /// Events that are missing because the disk did not keep up.
    pub lost: u64,
    /// Bytes in the file.
    pub bytes: u64,
}

impl Recorder {
    /// Records the tracer's events from here on. `label` says what is recorded, for people. Writes go to `out` in pieces of
    /// some 64 KiB, or of what has gathered in a tenth of a second, from a thread of the recorder's: no buffer is needed. What
    /// a killed program leaves behind is complete up to that tenth.
    ///
    /// What was declared before is told again at the beginning; memory taken before is not, so start before it is taken.
    ///
    /// # Errors
    /// [`Error::AlreadyRecording`], [`Error::Thread`].
    pub fn start(tracer: &Tracer, out: impl Write + Send + 'static, label: &str) -> Result<Recorder, Error> {
        Recorder::aging(tracer, out, label, AGE)
    }

    /// [`Recorder::start`], with blocks that are sent at this age.
    pub(super) fn aging(
        tracer: &Tracer,
        out: impl Write + Send + 'static,
        label: &str,
        age: Duration,
    ) -> Result<Recorder, Error> {
        let known = lock(&tracer.0.known);
        let mut slot = lock(&tracer.0.sink);
        if slot.is_some() {
            return Err(Error::AlreadyRecording);
        }
        let (queue, blocks) = sync_channel(WAITING);
        let name = "granule-trace".to_owned();
        let blocks = Blocks { queue: blocks, age, tracer: tracer.clone() };
        let thread = std::thread::Builder::new().name(name).spawn(move || write_all(out, &blocks));
        let thread = thread.map_err(Error::Thread)?;
        let mut sink = Sink {
            began: Instant::now(),
            block: Block::default(),
            queue,
            events: 0,
            lost: 0,
            untold: 0,
            told: 0,
        };
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(unix.as_millis()).unwrap_or(u64::MAX);
        sink.event(Event::Start { unix_ms, label: label.to_owned() });
        let mut owners: Vec<(&OwnerId, &Owner)> =
            known.owners.iter().map(|(owner, id)| (id, owner)).collect();
        owners.sort_unstable();
        for (id, owner) in owners {
            sink.event(Event::Owner { owner: *id, name: owner.name().to_owned() });
        }
        known.things.values().for_each(|thing| sink.event(thing.clone()));
        *slot = Some(sink);
        tracer.0.on.store(true, Ordering::Relaxed);
        Ok(Recorder { tracer: tracer.clone(), thread: Some(thread) })
    }

    /// Ends the recording, and waits until all of it is written.
    ///
    /// # Errors
    /// [`Error::Io`] where something could not be written, now or earlier.
    pub fn finish(mut self) -> Result<Written, Error> {
        self.end()
    }

    fn end(&mut self) -> Result<Written, Error> {
        self.tracer.0.on.store(false, Ordering::Relaxed);
        let sink = lock(&self.tracer.0.sink).take();
        let (events, lost) = sink.map_or((0, 0), Sink::finish);
        let panicked = || std::io::Error::other("the writer panicked");
        let (bytes, outcome) = match self.thread.take().map(JoinHandle::join) {
            Some(Ok(written)) => written,
            Some(Err(_)) => (0, Err(panicked())),
            None => (0, Ok(())),
        };
        outcome.map_err(|source| Error::Io { offset: bytes, source })?;
        Ok(Written { events, lost, bytes })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if self.thread.is_some() {
            // Whoever wants to know calls `finish`.
            let _ = self.end();
        }
    }
}

/// The block being filled, and the way to the thread that writes.
struct Sink {
    began: Instant,
    block: Block,
    queue: SyncSender<Vec<u8>>,
    /// Events in blocks that are sent.
    events: u64,
    /// Events in blocks that were dropped.
    lost: u64,
    /// How many of them the file does not tell of: those that the block being filled tells of are not among them.
    untold: u64,
    told: u64,
}

impl Sink {
    fn event(&mut self, event: Event) {
        match event {
            Event::Map { range, place, granules } if granules.len() > MAX_GRANULES => {
                for (part, granules) in (0..).zip(granules.chunks(MAX_GRANULES)) {
                    let place = place + part * MAX_GRANULES as u64;
                    self.push(&Event::Map { range, place, granules: granules.to_vec() });
                }
            }
            Event::Take { device, owner, granules } if granules.len() > MAX_GRANULES => {
                for granules in granules.chunks(MAX_GRANULES) {
                    self.push(&Event::Take { device, owner, granules: granules.to_vec() });
                }
            }
            Event::Give { device, owner, granules } if granules.len() > MAX_GRANULES => {
                for granules in granules.chunks(MAX_GRANULES) {
                    self.push(&Event::Give { device, owner, granules: granules.to_vec() });
                }
            }
            event => self.push(&event),
        }
    }

    fn push(&mut self, event: &Event) {
        // 584 years.
        let ns = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.tell(ns);
        self.block.push(ns, event);
        if self.block.bytes.len() >= BLOCK {
            self.send();
        }
    }

    /// Sends what is in the block, if anything, to be written.
    fn send(&mut self) {
        if self.block.events == 0 {
            return;
        }
        let block = std::mem::take(&mut self.block);
        let told = std::mem::take(&mut self.told);
        match self.queue.try_send(block.bytes) {
            Ok(()) => self.events += block.events,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                let events = block.events - u64::from(told > 0);
                self.lost += events;
                self.untold += told + events;
            }
        }
    }

    /// Tells of what was lost, in front of what comes after it.
    fn tell(&mut self, ns: u64) {
        if self.untold > 0 {
            self.block.push(ns, &Event::Lost { events: self.untold });
            self.told = std::mem::take(&mut self.untold);
        }
    }

    /// What was written and what was lost.
    fn finish(mut self) -> (u64, u64) {
        let ns = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.tell(ns);
        self.block.push(ns, &Event::End);
        let block = std::mem::take(&mut self.block);
        // Here it may wait for the disk; the thread is there for as long as the queue is.
        match self.queue.send(block.bytes) {
            Ok(()) => (self.events + block.events, self.lost),
            Err(_) => (self.events, self.lost + block.events),
        }
    }
}

/// What the writing thread waits for.
struct Blocks {
    queue: Receiver<Vec<u8>>,
    age: Duration,
    tracer: Tracer,
}

impl Iterator for &Blocks {
    type Item = Vec<u8>;

    /// Waits for a block. Where none came for so long, what has gathered meanwhile is the next.
    fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            match self.queue.recv_timeout(self.age) {
                Ok(block) => return Some(block),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    // Through the queue: a full block that was sent just now is older.
                    if let Some(sink) = lock(&self.tracer.0.sink).as_mut() {
                        sink.send();
                    }
                }
            }
        }
    }
}

/// Writes the header and all blocks; after the first error it only empties the queue. Answers how much was written.
fn write_all(mut out: impl Write, blocks: &Blocks) -> (u64, std::io::Result<()>) {
    let mut header = [0; HEADER];
    header[..MAGIC.len()].copy_from_slice(&MAGIC);
    header[MAGIC.len()..MAGIC.len() + 2].copy_from_slice(&VERSION.to_le_bytes());
    let mut written = 0;
    let mut outcome = write_one(&mut out, &header, &mut written);
    for block in blocks {
        if outcome.is_ok() {
            // A block is at most `BLOCK` and one event.
            let len = u32::try_from(block.len()).unwrap_or(u32::MAX);
            let mut bytes = Vec::with_capacity(BLOCK_HEADER + block.len());
            bytes.extend_from_slice(&len.to_le_bytes());
            bytes.extend_from_slice(&crc32fast::hash(&block).to_le_bytes());
            bytes.extend_from_slice(&block);
            outcome = write_one(&mut out, &bytes, &mut written);
        }
    }
    (written, outcome)
}

/// Writes it through: nothing of it waits in a buffer.
fn write_one(out: &mut impl Write, bytes: &[u8], written: &mut u64) -> std::io::Result<()> {
    out.write_all(bytes)?;
    out.flush()?;
    *written += bytes.len() as u64;
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is under these locks is whole after every step that could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
