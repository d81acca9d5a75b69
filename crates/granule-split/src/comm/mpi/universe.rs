//! MPI's beginning and end, which wait for all ranks for as long as it takes: on a thread of their own, so that the callers
//! need not. It is also the thread that began, as MPI wants it, that ends.

use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use mpi::Threading;
use mpi::environment::Universe;
use mpi::ffi;
use mpi::raw::AsRaw;
use mpi::topology::{Communicator as _, SimpleCommunicator};

use crate::error::{Error, Result};

/// MPI, begun.
#[derive(Debug)]
pub(super) struct Begun {
    /// Says that it may end, and whom to tell then; dropped without a word, it is left as it is.
    end: Sender<Sender<()>>,
}

/// What the ranks talk over.
pub(super) struct World {
    pub(super) rank: usize,
    pub(super) ranks: usize,
    /// For numbers.
    pub(super) data: ffi::MPI_Comm,
    /// For words: who gives up, and why.
    pub(super) words: ffi::MPI_Comm,
}

// SAFETY: handles of a library that was told that any thread calls it, one at a time, which the lock around them sees to.
unsafe impl Send for World {}

/// Begins, and waits for all ranks to have begun, for so long.
pub(super) fn begin(timeout: Duration) -> Result<(Begun, World)> {
    let ((begun, world), (end, may_end)) = (channel(), channel::<Sender<()>>());
    let run = move || {
        let universe = match world_of_process() {
            Ok((universe, here)) => {
                if begun.send(Ok(here)).is_err() {
                    // Nobody waited so long: the group is over before it began.
                    std::mem::forget(universe);
                    return;
                }
                universe
            }
            Err(error) => return drop(begun.send(Err(error))),
        };
        match may_end.recv() {
            Ok(waits) => {
                drop(universe);
                // Whoever waited may have given up.
                let _ = waits.send(());
            }
            // Other ranks may be dead: ending would wait for them. The process goes without.
            Err(_) => std::mem::forget(universe),
        }
    };
    let spawned = thread::Builder::new().name("granule-mpi".to_owned()).spawn(run);
    spawned.map_err(|error| failed("starting the thread of MPI", error.to_string()))?;
    match world.recv_timeout(timeout) {
        Ok(world) => Ok((Begun { end }, world?)),
        Err(_) => Err(failed("MPI_Init_thread", format!("not all ranks have begun within {timeout:?}"))),
    }
}

impl Begun {
    /// Ends MPI, once all ranks are known to be about to, and waits for that for so long.
    pub(super) fn end(self, timeout: Duration) {
        let (waits, ended) = channel();
        if self.end.send(waits).is_ok() {
            // Later than this nobody waits: the process ends without.
            let _ = ended.recv_timeout(timeout);
        }
    }
}

fn world_of_process() -> Result<(Universe, World)> {
    let (universe, threading) = mpi::initialize_with_threading(Threading::Serialized).ok_or_else(|| {
        failed("MPI_Init_thread", "this process has begun it already: it can have one rank".to_owned())
    })?;
    if threading < Threading::Serialized {
        return Err(Error::Unsupported {
            what: format!("an MPI library that only one thread of a process may call ({threading:?})"),
        });
    }
    let world = universe.world();
    let count = |n: i32| usize::try_from(n).unwrap_or(0);
    let (rank, ranks) = (count(world.rank()), count(world.size()));
    let [data, words] = [own_communicator(&world)?, own_communicator(&world)?];
    Ok((universe, World { rank, ranks, data, words }))
}

/// A communicator with all ranks of the world, that nobody else's messages come through, and whose calls answer with errors
/// instead of ending the process.
fn own_communicator(world: &SimpleCommunicator) -> Result<ffi::MPI_Comm> {
    let own = world.duplicate();
    let raw = own.as_raw();
    // It stays until the process ends.
    std::mem::forget(own);
    // SAFETY: the communicator is alive, and the other is one of the library's constants.
    check("MPI_Comm_set_errhandler", unsafe { ffi::MPI_Comm_set_errhandler(raw, ffi::RSMPI_ERRORS_RETURN) })?;
    Ok(raw)
}

/// An answer of the library as a result.
pub(super) fn check(call: &'static str, code: i32) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    let mut text = [0_u8; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut len = 0;
    // SAFETY: the text is as long as the library's longest, and the length is written into a local.
    let known = unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &raw mut len) } == 0;
    let text = text.get(..usize::try_from(len).unwrap_or(0)).filter(|_| known).unwrap_or_default();
    Err(failed(call, format!("{} ({code})", String::from_utf8_lossy(text).trim())))
}

pub(super) fn failed(call: &'static str, says: String) -> Error {
    Error::Mpi { call, says }
}
