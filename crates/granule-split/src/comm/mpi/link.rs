//! What goes between ranks: numbers from and to memory of the link's own, and words of who gives up. All by nonblocking calls, which
//! are asked until they are done or the time is up.

use std::ffi::c_int;
use std::mem::{ManuallyDrop, MaybeUninit, size_of, take};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use bytemuck::Pod;
use half::bf16;
use mpi::ffi;

use super::universe::{World, check};
use crate::comm::{MAX_RANKS, names};
use crate::error::{Error, Result};

/// How often a rank asks before it lets others run in between, …
const SPINS: u32 = 500;
/// … how long it goes on so before it sleeps in between, …
const AWAKE: Duration = Duration::from_millis(2);
/// … and how long it sleeps: no more than a fraction of a token's time.
const NAP: Duration = Duration::from_micros(100);
/// How often it looks for words and at the clock: every so many rounds.
const LOOKS: u32 = 32;
/// The longest that a rank which gives up waits for its word to be on its way, …
const LAST_WORDS: Duration = Duration::from_millis(500);
/// … and that word's longest, in bytes: no library waits for the receiver to send so few.
const WORD: usize = 512;

/// What a message's tag says: which call it is of. The names stand in errors.
pub(super) const CALLS: [&str; 5] = ["all_reduce", "all_gather", "reduce_scatter", "broadcast", "the end"];

/// Numbers on their way.
pub(super) trait Number: Pod {
    fn wide(self) -> f32;
    fn narrow(wide: f32) -> Self;
    fn kind() -> ffi::MPI_Datatype;
}

impl Number for f32 {
    fn wide(self) -> f32 {
        self
    }

    fn narrow(wide: f32) -> Self {
        wide
    }

    fn kind() -> ffi::MPI_Datatype {
        // SAFETY: a constant of the library.
        unsafe { ffi::RSMPI_FLOAT }
    }
}

impl Number for bf16 {
    fn wide(self) -> f32 {
        self.to_f32()
    }

    fn narrow(wide: f32) -> Self {
        bf16::from_f32(wide)
    }

    fn kind() -> ffi::MPI_Datatype {
        // SAFETY: a constant of the library.
        unsafe { ffi::RSMPI_UINT16_T }
    }
}

/// Who gave up, and why.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    rank: usize,
    why: String,
}

/// That somebody of this process has the group end, whoever is in a call meanwhile.
#[derive(Debug, Default)]
pub(super) struct Asked {
    flag: AtomicBool,
    why: Mutex<Option<String>>,
}

impl Asked {
    pub(super) fn ask(&self, why: &str) {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| why.to_owned());
        self.flag.store(true, Ordering::SeqCst);
    }

    pub(super) fn why(&self) -> Option<String> {
        let asked = self.flag.load(Ordering::SeqCst);
        asked.then(|| self.why.lock().unwrap_or_else(PoisonError::into_inner).clone())?
    }
}

/// A rank's ends of all messages.
pub(super) struct Link {
    world: World,
    timeout: Duration,
    /// Numbers to be sent, and those that came: kept for the next call. They are f32 for their alignment.
    send: Vec<f32>,
    receive: Vec<f32>,
    ended: Option<Ended>,
}

/// A message that the library has not said to be done.
struct Pending {
    request: ffi::MPI_Request,
    peer: usize,
    /// How many numbers are to come; none for a message that goes.
    comes: Option<usize>,
}

impl Link {
    pub(super) fn new(world: World, timeout: Duration) -> Self {
        Link { world, timeout, send: Vec::new(), receive: Vec::new(), ended: None }
    }

    pub(super) fn rank(&self) -> usize {
        self.world.rank
    }

    pub(super) fn ranks(&self) -> usize {
        self.world.ranks
    }

    /// Memory for so many numbers to send, and to receive. What is in it stays between calls.
    pub(super) fn memory<N: Number>(&mut self, send: usize, receive: usize) -> (&mut [N], &mut [N]) {
        let Link { send: from, receive: to, .. } = self;
        (memory(from, send), memory(to, receive))
    }

    /// Sends ranges of the numbers to send, and waits for ranges of those to receive, each from and to the rank that stands beside it.
    /// After an error the group is over, and the memory stays with the library, which may still write to it.
    pub(super) fn exchange<N: Number>(
        &mut self,
        call: usize,
        sends: impl Iterator<Item = (usize, Range<usize>)>,
        receives: impl Iterator<Item = (usize, Range<usize>)>,
        asked: &Asked,
    ) -> Result<()> {
        let send = ManuallyDrop::new(take(&mut self.send));
        let mut receive = ManuallyDrop::new(take(&mut self.receive));
        let mut pending = Vec::with_capacity(2 * MAX_RANKS);
        let to: &mut [N] = bytemuck::cast_slice_mut(&mut receive);
        // Before those that go, so that what arrives finds its place.
        for (peer, range) in receives.filter(|(_, range)| !range.is_empty()) {
            let comes = Some(range.len());
            // SAFETY: ranges of different ranks are apart, and nobody looks at the memory before the message is done; until then, or for
            // ever, it stays.
            let request = unsafe { self.receive_into(peer, &mut to[range])? };
            pending.push(Pending { request, peer, comes });
        }
        let from: &[N] = bytemuck::cast_slice(&send);
        for (peer, range) in sends.filter(|(_, range)| !range.is_empty()) {
            // SAFETY: nobody writes to the memory before the message is done; until then, or for ever, it stays.
            let request = unsafe { self.send_from(peer, call, &from[range])? };
            pending.push(Pending { request, peer, comes: None });
        }
        self.wait(call, &mut pending, N::kind(), asked)?;
        self.send = ManuallyDrop::into_inner(send);
        self.receive = ManuallyDrop::into_inner(receive);
        Ok(())
    }

    /// # Safety
    /// The memory stays, and nobody touches it, until the message is done or for ever.
    unsafe fn receive_into<N: Number>(&self, peer: usize, to: &mut [N]) -> Result<ffi::MPI_Request> {
        let mut request = MaybeUninit::uninit();
        let (count, peer) = (count_of(to.len())?, count_of(peer)?);
        // SAFETY: the caller's; the communicator is alive and the memory is as long.
        let code = unsafe {
            let (at, any) = (to.as_mut_ptr().cast(), ffi::RSMPI_ANY_TAG);
            ffi::MPI_Irecv(at, count, N::kind(), peer, any, self.world.data, request.as_mut_ptr())
        };
        check("MPI_Irecv", code)?;
        // SAFETY: the library has written it.
        Ok(unsafe { request.assume_init() })
    }

    /// # Safety
    /// The memory stays as it is until the message is done or for ever.
    unsafe fn send_from<N: Number>(&self, peer: usize, call: usize, from: &[N]) -> Result<ffi::MPI_Request> {
        let mut request = MaybeUninit::uninit();
        let (count, peer, tag) = (count_of(from.len())?, count_of(peer)?, count_of(call)?);
        let at = from.as_ptr().cast();
        // SAFETY: as above.
        let code =
            unsafe { ffi::MPI_Isend(at, count, N::kind(), peer, tag, self.world.data, request.as_mut_ptr()) };
        check("MPI_Isend", code)?;
        // SAFETY: the library has written it.
        Ok(unsafe { request.assume_init() })
    }

    /// Asks for all messages until they are done.
    fn wait(
        &mut self,
        call: usize,
        pending: &mut Vec<Pending>,
        kind: ffi::MPI_Datatype,
        asked: &Asked,
    ) -> Result<()> {
        let since = Instant::now();
        for round in 0_u32.. {
            let mut wrong = Ok(());
            pending.retain_mut(|message| match self.done(call, message, kind) {
                Ok(done) => !done,
                Err(error) => {
                    wrong = Err(error);
                    true
                }
            });
            wrong?;
            if pending.is_empty() {
                break;
            }
            if round < SPINS {
                std::hint::spin_loop();
                if !round.is_multiple_of(LOOKS) {
                    continue;
                }
            }
            let waited = since.elapsed();
            if waited >= AWAKE {
                thread::sleep(NAP);
            } else if round >= SPINS {
                thread::yield_now();
            }
            if let Some(why) = asked.why() {
                return Err(Error::Aborted { rank: self.rank(), ranks: self.ranks(), why });
            }
            self.listen()?;
            if waited >= self.timeout {
                return Err(self.timed_out(call, waited, pending));
            }
        }
        Ok(())
    }

    /// Whether a message is done; an error where it is not the one that was to come.
    fn done(&self, call: usize, message: &mut Pending, kind: ffi::MPI_Datatype) -> Result<bool> {
        let (mut flag, mut status) = (0, MaybeUninit::<ffi::MPI_Status>::zeroed());
        // SAFETY: the request is one of the library's that was not done yet; what it writes are locals.
        let code = unsafe { ffi::MPI_Test(&raw mut message.request, &raw mut flag, status.as_mut_ptr()) };
        check("MPI_Test", code)?;
        let Some(expected) = message.comes.filter(|_| flag != 0) else { return Ok(flag != 0) };
        // SAFETY: all zeros at least, which is a status.
        let status = unsafe { status.assume_init() };
        let mut found = 0;
        // SAFETY: the status of a message that came, and a local.
        check("MPI_Get_count", unsafe { ffi::MPI_Get_count(&raw const status, kind, &raw mut found) })?;
        let theirs = usize::try_from(status.MPI_TAG).unwrap_or(CALLS.len());
        if theirs != call {
            let (own, other) = (CALLS[call], CALLS.get(theirs).copied().unwrap_or("another call"));
            return Err(Error::Calls { rank: self.rank(), own, other_rank: message.peer, other });
        }
        match usize::try_from(found) {
            Ok(found) if found == expected => Ok(true),
            found => {
                let found = found.unwrap_or(0);
                Err(Error::Size { what: "what another rank sent", found, expected })
            }
        }
    }

    fn timed_out(&self, call: usize, waited: Duration, pending: &[Pending]) -> Error {
        // Whom nothing came of; where that is nobody, who does not take what goes.
        let mut missing: Vec<usize> = pending.iter().filter(|m| m.comes.is_some()).map(|m| m.peer).collect();
        if missing.is_empty() {
            missing = pending.iter().map(|message| message.peer).collect();
        }
        let (rank, ranks) = (self.rank(), self.ranks());
        Error::TimedOut { rank, ranks, waited, missing: names(missing), call: CALLS[call] }
    }

    /// Looks whether another rank says that it gives up.
    fn listen(&mut self) -> Result<()> {
        let (mut flag, mut status) = (0, MaybeUninit::<ffi::MPI_Status>::zeroed());
        // SAFETY: the communicator is alive, the constants are the library's, and what it writes are locals.
        let code = unsafe {
            let (source, tag) = (ffi::RSMPI_ANY_SOURCE, ffi::RSMPI_ANY_TAG);
            ffi::MPI_Iprobe(source, tag, self.world.words, &raw mut flag, status.as_mut_ptr())
        };
        check("MPI_Iprobe", code)?;
        if flag == 0 {
            return Ok(());
        }
        // SAFETY: all zeros at least, which is a status.
        let source = unsafe { status.assume_init() }.MPI_SOURCE;
        let (mut word, mut len) = ([0_u8; WORD], 0);
        // SAFETY: the message is there, so that this waits for nothing, and no longer than the memory: all ranks cut theirs.
        let code = unsafe {
            let (to, kind) = (word.as_mut_ptr().cast(), ffi::RSMPI_UINT8_T);
            let code = ffi::MPI_Recv(
                to,
                count_of(WORD)?,
                kind,
                source,
                ffi::RSMPI_ANY_TAG,
                self.world.words,
                status.as_mut_ptr(),
            );
            ffi::MPI_Get_count(status.as_ptr(), kind, &raw mut len);
            code
        };
        check("MPI_Recv", code)?;
        let word = word.get(..usize::try_from(len).unwrap_or(0)).unwrap_or_default();
        let why = String::from_utf8_lossy(word).into_owned();
        self.ended = Some(Ended { rank: usize::try_from(source).unwrap_or(0), why });
        self.check()
    }

    /// Fails once the group is over.
    pub(super) fn check(&self) -> Result<()> {
        match &self.ended {
            None => Ok(()),
            Some(Ended { rank, why }) => {
                Err(Error::Aborted { rank: *rank, ranks: self.ranks(), why: why.clone() })
            }
        }
    }

    /// Ends the group for this rank's sake, unless it is over, and tells the others.
    pub(super) fn end(&mut self, why: &str) {
        if self.ended.is_some() {
            return;
        }
        self.ended = Some(Ended { rank: self.rank(), why: why.to_owned() });
        let cut = (0..=why.len().min(WORD)).rev().find(|at| why.is_char_boundary(*at)).unwrap_or(0);
        // The library may still read it when nobody waits any more; once in a group's life.
        let word: &'static [u8] = Box::leak(why.as_bytes()[..cut].into());
        let mut sent: Vec<ffi::MPI_Request> = Vec::new();
        for peer in (0..self.ranks()).filter(|peer| *peer != self.rank()) {
            let (Ok(peer), Ok(len)) = (count_of(peer), count_of(word.len())) else { continue };
            let mut request = MaybeUninit::uninit();
            let at = word.as_ptr().cast();
            // SAFETY: the word stays for ever, and the communicator is alive.
            let code = unsafe {
                ffi::MPI_Isend(at, len, ffi::RSMPI_UINT8_T, peer, 0, self.world.words, request.as_mut_ptr())
            };
            if code == 0 {
                // SAFETY: the library has written it.
                sent.push(unsafe { request.assume_init() });
            }
        }
        let since = Instant::now();
        while !sent.is_empty() && since.elapsed() < LAST_WORDS {
            sent.retain_mut(|request| {
                let mut flag = 0;
                // SAFETY: a request that was not done yet, and a local.
                let code = unsafe { ffi::MPI_Test(request, &raw mut flag, ffi::RSMPI_STATUS_IGNORE) };
                code == 0 && flag == 0
            });
            thread::yield_now();
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }
}

/// At least so many numbers of memory, as they are.
fn memory<N: Number>(of: &mut Vec<f32>, numbers: usize) -> &mut [N] {
    let words = (numbers * size_of::<N>()).div_ceil(size_of::<f32>());
    if of.len() < words {
        of.resize(words, 0.0);
    }
    &mut bytemuck::cast_slice_mut(of)[..numbers]
}

/// A count as the library has them.
fn count_of(n: usize) -> Result<c_int> {
    c_int::try_from(n).map_err(|_| Error::Unsupported { what: format!("{n} numbers in one message of MPI") })
}
