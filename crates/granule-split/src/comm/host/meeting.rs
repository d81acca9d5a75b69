//! Where the ranks of one process meet: nobody goes on until all have come, nobody waits longer than agreed, and nobody leaves while
//! another may still look at its memory.
//!
//! Each rank counts its arrivals in a word of its own, which all others watch; so who is missing is known by name. Two pairs of words are
//! written and read crosswise, in one order of all threads (`SeqCst`), so that one of the two sees what the other did:
//! - the last to arrive writes its count, then looks for sleepers; a sleeper counts itself, then looks at the counts;
//! - who looks at others' memory raises its flag, then looks whether the group is over; who ends the group says so, then
//!   waits for every flag to fall. What lies between is copying and adding, so that wait is short.

use std::sync::PoisonError;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use super::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use super::sync::{self, Condvar, Mutex, MutexGuard, hint, thread};
use crate::comm::names;
use crate::error::{Error, Result};

/// How often a rank looks for the others before it sleeps: some tens of microseconds, longer than ranks with even shares are apart.
const SPINS: u32 = if sync::TRIES_INTERLEAVINGS { 1 } else { 4_000 };
/// And how often it lets others run meanwhile, where there are more ranks than cores.
const YIELDS: u32 = if sync::TRIES_INTERLEAVINGS { 1 } else { 4 };

/// What is a rank's own, in cache lines of its own.
#[repr(align(128))]
#[derive(Debug)]
struct Seat {
    /// How often it has come.
    arrived: AtomicU64,
    /// Whether it is at others' memory.
    reading: AtomicBool,
    /// Held while a call of this rank goes on.
    turn: Mutex<()>,
}

/// Who ended a group, and why.
#[derive(Clone, Debug)]
struct Ended {
    rank: usize,
    why: String,
}

#[derive(Debug)]
pub(crate) struct Meeting {
    seats: Box<[Seat]>,
    timeout: Duration,
    spins: u32,
    over: AtomicBool,
    sleepers: AtomicUsize,
    /// Also what sleepers sleep with.
    ended: Mutex<Option<Ended>>,
    changed: Condvar,
}

impl Meeting {
    pub(crate) fn new(ranks: usize, timeout: Duration) -> Self {
        let seat =
            |_| Seat { arrived: AtomicU64::new(0), reading: AtomicBool::new(false), turn: Mutex::new(()) };
        let cores = available_parallelism().map_or(1, |cores| cores.get());
        Self {
            seats: (0..ranks).map(seat).collect(),
            timeout,
            // Whoever spins on the only core keeps the one it waits for from coming.
            spins: if ranks <= cores { SPINS } else { 0 },
            over: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            ended: Mutex::new(None),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn ranks(&self) -> usize {
        self.seats.len()
    }

    /// Begins a call of a rank. Two threads that call with one rank take turns.
    pub(crate) fn enter(&self, rank: usize, call: &'static str) -> Result<Visit<'_>> {
        let turn = lock(&self.seats[rank].turn);
        self.check()?;
        Ok(Visit { meeting: self, rank, call, waits_since: None, done: false, _turn: turn })
    }

    /// Ends the group, unless it is over: the first who does says why.
    pub(crate) fn end(&self, rank: usize, why: &str) {
        let mut ended = lock(&self.ended);
        if ended.is_none() {
            *ended = Some(Ended { rank, why: why.to_owned() });
            self.over.store(true, Ordering::SeqCst);
            self.changed.notify_all();
        }
    }

    /// Fails once the group is over.
    pub(crate) fn check(&self) -> Result<()> {
        if !self.over.load(Ordering::SeqCst) {
            return Ok(());
        }
        match lock(&self.ended).as_ref() {
            Some(ended) => {
                Err(Error::Aborted { rank: ended.rank, ranks: self.ranks(), why: ended.why.clone() })
            }
            // It has been recovered this moment, which asks for all to be out of their calls; the next check sees so.
            None => Ok(()),
        }
    }

    /// Begins anew if the group is over: waits for the ranks to be out of their calls, which they leave as it is over, and forgets
    /// what was.
    pub(crate) fn recover(&self) {
        if !self.over.load(Ordering::SeqCst) {
            return;
        }
        let turns: Vec<_> = self.seats.iter().map(|seat| lock(&seat.turn)).collect();
        let mut ended = lock(&self.ended);
        for seat in &self.seats {
            seat.arrived.store(0, Ordering::SeqCst);
        }
        *ended = None;
        self.over.store(false, Ordering::SeqCst);
        drop(turns);
    }

    fn all_came(&self, arrival: u64) -> bool {
        self.seats.iter().all(|seat| seat.arrived.load(Ordering::SeqCst) >= arrival)
    }

    /// Who has not come.
    fn missing(&self, arrival: u64) -> String {
        let away = |(_, seat): &(usize, &Seat)| seat.arrived.load(Ordering::SeqCst) < arrival;
        names(self.seats.iter().enumerate().filter(away).map(|(rank, _)| rank))
    }
}

/// A call that goes on. Where it is dropped without being done the group is over, and nobody is at anybody's memory any more.
#[derive(Debug)]
pub(crate) struct Visit<'m> {
    meeting: &'m Meeting,
    rank: usize,
    call: &'static str,
    waits_since: Option<Instant>,
    done: bool,
    _turn: MutexGuard<'m, ()>,
}

impl Visit<'_> {
    /// Waits for all ranks to have come here: what each wrote before is seen by all behind it.
    pub(crate) fn meet(&mut self) -> Result<()> {
        let meeting = self.meeting;
        let own = &meeting.seats[self.rank];
        let arrival = own.arrived.load(Ordering::Relaxed) + 1;
        own.arrived.store(arrival, Ordering::SeqCst);
        if meeting.all_came(arrival) {
            if meeting.sleepers.load(Ordering::SeqCst) > 0 {
                // Whoever has counted itself holds the lock until it sleeps.
                drop(lock(&meeting.ended));
                meeting.changed.notify_all();
            }
            return Ok(());
        }
        for turn in 0..meeting.spins + YIELDS {
            if meeting.all_came(arrival) {
                return Ok(());
            }
            if meeting.over.load(Ordering::SeqCst) {
                break;
            }
            if turn < meeting.spins { hint::spin_loop() } else { thread::yield_now() }
        }
        self.sleep(arrival)
    }

    fn sleep(&mut self, arrival: u64) -> Result<()> {
        let meeting = self.meeting;
        let since = *self.waits_since.get_or_insert_with(Instant::now);
        let mut ended = lock(&meeting.ended);
        meeting.sleepers.fetch_add(1, Ordering::SeqCst);
        let result = loop {
            // First whether all came: who has left since, and was the last, may have ended the group behind us.
            if meeting.all_came(arrival) {
                break Ok(());
            }
            if let Some(ended) = ended.as_ref() {
                let (rank, ranks, why) = (ended.rank, meeting.ranks(), ended.why.clone());
                break Err(Error::Aborted { rank, ranks, why });
            }
            let waited = since.elapsed();
            let Some(left) = meeting.timeout.checked_sub(waited).filter(|left| !left.is_zero()) else {
                let (rank, ranks, missing) = (self.rank, meeting.ranks(), meeting.missing(arrival));
                break Err(Error::TimedOut { rank, ranks, waited, missing, call: self.call });
            };
            ended = meeting.changed.wait_timeout(ended, left).unwrap_or_else(PoisonError::into_inner).0;
        };
        meeting.sleepers.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// Does something with other ranks' memory that does not wait for anybody: all of them stay in their calls meanwhile.
    pub(crate) fn read<R>(&self, read: impl FnOnce() -> R) -> Result<R> {
        let reading = &self.meeting.seats[self.rank].reading;
        /// Lowers the flag, also where reading panics.
        struct Lower<'s>(&'s AtomicBool);
        impl Drop for Lower<'_> {
            fn drop(&mut self) {
                self.0.store(false, Ordering::SeqCst);
            }
        }
        reading.store(true, Ordering::SeqCst);
        let _lower = Lower(reading);
        self.meeting.check()?;
        Ok(read())
    }

    /// The call went well: there was a [`Visit::meet`] behind its last [`Visit::read`].
    pub(crate) fn done(mut self) {
        self.done = true;
    }

    /// The call fails with this, and so do those of the others.
    pub(crate) fn fail(self, error: Error) -> Error {
        self.meeting.end(self.rank, &error.to_string());
        error
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        self.meeting.end(self.rank, "its call was left before it was done");
        for seat in &self.meeting.seats {
            while seat.reading.load(Ordering::SeqCst) {
                thread::yield_now();
            }
        }
    }
}

/// Nothing here panics with a lock held but by a bug, and then what it protects is as good as before.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
