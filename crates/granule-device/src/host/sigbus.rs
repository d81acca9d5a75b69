//! The signal that comes where a mapped file has no bytes any more: handled for the files registered here, passed on for
//! everything else.
//!
//! The handler may run at any moment in any thread, so it takes no lock and allocates nothing: it reads a table of atomics, maps a
//! page of zeros where the access failed, and sets the file's flag.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use libc::{c_int, c_void, siginfo_t};

use crate::Error;

/// How many files can be mapped at once.
const LIMIT: usize = 4096;

/// One guarded file's addresses. `start` is 0 where the slot is free and 1 while it is being filled; no mapping is there.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    cut: AtomicBool,
}

const FREE: usize = 0;
const CLAIMED: usize = 1;

static SLOTS: [Slot; LIMIT] =
    [const { Slot { start: AtomicUsize::new(FREE), end: AtomicUsize::new(0), cut: AtomicBool::new(false) } };
        LIMIT];

/// One past the last slot that was ever used: how far the handler has to look.
static USED: AtomicUsize = AtomicUsize::new(0);
static PAGE: AtomicUsize = AtomicUsize::new(4096);
/// What handled the signal before; written once, before the handler is in place.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Watches over a mapped file; dropped before the file is unmapped.
#[derive(Debug)]
pub(crate) struct Guard {
    slot: usize,
}

impl Guard {
    /// Guards the mapping of `len` bytes at `start`.
    pub(crate) fn watch(start: usize, len: usize) -> Result<Guard, Error> {
        install().map_err(|source| Error::Os { call: "sigaction", source })?;
        let claim = |slot: &Slot| {
            slot.start.compare_exchange(FREE, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let Some(index) = SLOTS.iter().position(claim) else {
            return Err(Error::TooManyMappedFiles { limit: LIMIT });
        };
        let slot = &SLOTS[index];
        slot.cut.store(false, Ordering::Relaxed);
        slot.end.store(start + len, Ordering::Release);
        USED.fetch_max(index + 1, Ordering::AcqRel);
        slot.start.store(start, Ordering::Release);
        Ok(Guard { slot: index })
    }

    /// True once an access failed and found zeros instead.
    pub(crate) fn was_cut(&self) -> bool {
        SLOTS[self.slot].cut.load(Ordering::Acquire)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        SLOTS[self.slot].start.store(FREE, Ordering::Release);
    }
}

/// Puts the handler in place, once.
fn install() -> io::Result<()> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        PAGE.store(super::sys::page_size(), Ordering::Relaxed);
        let failed = || Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL));
        // SAFETY: the struct is plain numbers, for which zeros are valid; the system fills it in.
        let mut previous: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: a null action only asks.
        if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut previous) } != 0 {
            return failed();
        }
        let _ = PREVIOUS.set(previous);
        // SAFETY: as above.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_sigbus;
        action.sa_sigaction = handler as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        // SAFETY: the action is whole, and its handler does only what a signal handler may.
        if unsafe { libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut()) } != 0 {
            return failed();
        }
        Ok(())
    });
    done.map_err(io::Error::from_raw_os_error)
}

extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the system hands over a valid siginfo, and errno is this thread's own.
    let (code, address, errno) =
        unsafe { ((*info).si_code, (*info).si_addr() as usize, *libc::__errno_location()) };
    // A signal that somebody sent (`kill -BUS`) has no address.
    let fault = code > 0;
    if fault && cover(address) {
        // SAFETY: errno is this thread's own.
        unsafe { *libc::__errno_location() = errno };
    } else {
        pass_on(signal, fault, info, context);
    }
}

/// Where the address is a guarded file's, puts a page of zeros there.
fn cover(address: usize) -> bool {
    let used = USED.load(Ordering::Acquire).min(LIMIT);
    for slot in &SLOTS[..used] {
        let start = slot.start.load(Ordering::Acquire);
        let end = slot.end.load(Ordering::Acquire);
        // A slot that changes hands in between is not the one: the file at fault is mapped, so its own slot stands still.
        if start <= CLAIMED || slot.start.load(Ordering::Acquire) != start || !(start..end).contains(&address)
        {
            continue;
        }
        let page = address & !(PAGE.load(Ordering::Relaxed) - 1);
        let (len, flags) =
            (PAGE.load(Ordering::Relaxed), libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED);
        let at = std::ptr::with_exposed_provenance_mut::<c_void>(page);
        // SAFETY: the page is part of a mapped file that is only read, and reading it just failed.
        let mapped = unsafe { libc::mmap(at, len, libc::PROT_READ, flags, -1, 0) };
        if mapped == libc::MAP_FAILED {
            return false;
        }
        slot.cut.store(true, Ordering::Release);
        return true;
    }
    false
}

/// Does what would have been done without this handler.
fn pass_on(signal: c_int, fault: bool, info: *mut siginfo_t, context: *mut c_void) {
    let previous = PREVIOUS.get().map_or((libc::SIG_DFL, 0), |action| (action.sa_sigaction, action.sa_flags));
    match previous {
        (libc::SIG_IGN, _) if !fault => {}
        (libc::SIG_DFL | libc::SIG_IGN, _) => {
            // SAFETY: zeros are the default action. A failed access is made again on return, a sent signal is sent
            // again; either ends the process as it would have.
            unsafe {
                let default: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, &raw const default, std::ptr::null_mut());
                if !fault {
                    libc::raise(signal);
                }
            }
        }
        (handler, flags) if flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the flag says that the handler has this signature.
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        (handler, _) => {
            // SAFETY: without the flag the handler has this signature.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}
