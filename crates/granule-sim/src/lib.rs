//! A test's hand on the simulated CUDA driver: is it there, which seed, what did it see, what is still held.
//!
//! The driver itself is the package `granule-sim-driver`, a `libcuda.so` that a program loads as it loads NVIDIA's. This
//! crate finds it in the running process by its exported functions and links to nothing.
//!
//! ```no_run
//! # fn program_under_test() {}
//! let sim = granule_sim::Sim::find().ok_or("run this with the simulated driver in LD_LIBRARY_PATH")?;
//! sim.set_seed(7);
//! program_under_test();
//! assert_eq!(sim.take_reports(), []);
//! # Ok::<(), &str>(())
//! ```

mod conformance;
pub mod emulator_abi;
pub mod emulator_build;

use std::ffi::{CStr, c_void};
use std::fmt;

/// The version of the exported functions that this crate speaks.
const ABI: u32 = 1;

/// The simulated driver of this process.
#[derive(Clone, Copy)]
pub struct Sim {
    set_seed: extern "C" fn(u64),
    calls: extern "C" fn() -> u64,
    fail_nth: extern "C" fn(u64, u32),
    clear_fault: extern "C" fn() -> u32,
    reports: unsafe extern "C" fn(*mut u8, usize, u32) -> usize,
    live: unsafe extern "C" fn(*mut u8, usize) -> usize,
    reset: extern "C" fn(),
    lease: extern "C" fn(u64, u64) -> u32,
    unlease: extern "C" fn(u64) -> u32,
}

/// One bug that the simulator saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// Its kind, for instance `UseAfterRetire`; the README lists them.
    pub kind: String,
    /// A sentence that names the calls, such as `cuMemUnmap #17`.
    pub message: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}

/// One thing that the program holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Live {
    /// What it is, for instance `allocation` or `stream`.
    pub what: String,
    /// The number of the driver call that made it, counted from 1.
    pub call: u64,
    /// The name of that call.
    pub name: String,
    /// Bytes; 0 for what has none.
    pub bytes: u64,
}

/// A planned failure. It is forgotten when this goes.
#[derive(Debug)]
#[must_use = "the failure is forgotten when this is dropped"]
pub struct Fault {
    clear: extern "C" fn() -> u32,
}

impl Fault {
    /// Forgets the failure; true where it had not happened yet.
    #[must_use]
    pub fn clear(self) -> bool {
        let waiting = (self.clear)() == 1;
        std::mem::forget(self);
        waiting
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        (self.clear)();
    }
}

impl Sim {
    /// The code of [`Sim::fail_nth`]: `CUDA_ERROR_OUT_OF_MEMORY`.
    pub const OUT_OF_MEMORY: u32 = 2;

    /// The simulated driver, if this process can load one: `libcuda.so` or `libcuda.so.1` from the library path, as the
    /// program itself would load it. `None` where there is no such library, or where it is another driver.
    #[must_use]
    pub fn find() -> Option<Sim> {
        let library = [c"libcuda.so", c"libcuda.so.1"].into_iter().find_map(|name| {
            // SAFETY: a zero-terminated name. Opening the CUDA driver is what the program under test does as well; the
            // library is never closed, so that its functions stay.
            let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
            (!library.is_null()).then_some(library)
        })?;
        // SAFETY: the functions of ABI 1 have exactly these types (driver/src/api/control.rs), and the first one says
        // that it is ABI 1 before any other is looked up.
        unsafe {
            let abi: extern "C" fn() -> u32 = std::mem::transmute(symbol(library, c"granule_sim_abi")?);
            if abi() != ABI {
                return None;
            }
            Some(Sim {
                set_seed: std::mem::transmute::<*mut c_void, extern "C" fn(u64)>(symbol(
                    library,
                    c"granule_sim_set_seed",
                )?),
                calls: std::mem::transmute::<*mut c_void, extern "C" fn() -> u64>(symbol(
                    library,
                    c"granule_sim_calls",
                )?),
                fail_nth: std::mem::transmute::<*mut c_void, extern "C" fn(u64, u32)>(symbol(
                    library,
                    c"granule_sim_fail_nth",
                )?),
                clear_fault: std::mem::transmute::<*mut c_void, extern "C" fn() -> u32>(symbol(
                    library,
                    c"granule_sim_clear_fault",
                )?),
                reports: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut u8, usize, u32) -> usize>(
                    symbol(library, c"granule_sim_reports")?,
                ),
                live: std::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut u8, usize) -> usize>(
                    symbol(library, c"granule_sim_live")?,
                ),
                reset: std::mem::transmute::<*mut c_void, extern "C" fn()>(symbol(
                    library,
                    c"granule_sim_reset",
                )?),
                lease: std::mem::transmute::<*mut c_void, extern "C" fn(u64, u64) -> u32>(symbol(
                    library,
                    c"granule_sim_lease",
                )?),
                unlease: std::mem::transmute::<*mut c_void, extern "C" fn(u64) -> u32>(symbol(
                    library,
                    c"granule_sim_unlease",
                )?),
            })
        }
    }

    /// All schedules from here on come from this seed.
    pub fn set_seed(&self, seed: u64) {
        (self.set_seed)(seed);
    }

    /// Driver calls made so far, of those that can fail.
    #[must_use]
    pub fn calls(&self) -> u64 {
        (self.calls)()
    }

    /// The `n`-th driver call from now (1 is the next) fails with `code`, a `CUresult`. A call that gives something back
    /// does its work first and then answers the code, as one that meets an earlier asynchronous error; every other
    /// call does nothing.
    pub fn fail_nth(&self, n: u64, code: u32) -> Fault {
        (self.fail_nth)(n, code);
        Fault { clear: self.clear_fault }
    }

    /// Forgets a planned failure; true where it had not happened yet.
    pub fn clear_fault(&self) -> bool {
        (self.clear_fault)() == 1
    }

    /// Everything reported since the last [`Sim::take_reports`].
    #[must_use]
    pub fn reports(&self) -> Vec<Report> {
        self.read_reports(0)
    }

    /// Everything reported since the last time, which is then forgotten.
    #[must_use]
    pub fn take_reports(&self) -> Vec<Report> {
        self.read_reports(1)
    }

    /// Everything that is held, and which call made it.
    #[must_use]
    pub fn live(&self) -> Vec<Live> {
        // SAFETY: the room is the buffer's.
        let text = read(|to, room| unsafe { (self.live)(to, room) });
        let line = |line: &str| {
            let mut parts = line.split('\t');
            Some(Live {
                what: parts.next()?.to_owned(),
                call: parts.next()?.parse().ok()?,
                name: parts.next()?.to_owned(),
                bytes: parts.next()?.parse().ok()?,
            })
        };
        text.lines().filter_map(line).collect()
    }

    /// Switches the simulated machine off and on: devices empty, counters at zero, reports gone, the seed that the
    /// process was started with. Whatever the program still holds is gone.
    pub fn reset(&self) {
        (self.reset)();
    }

    /// Announces `len` bytes at `at` as a suballocation. From then on bytes of the allocation around it that are in no
    /// suballocation are out of bounds. False where the driver holds no memory there, or it overlaps another.
    pub fn lease(&self, at: u64, len: u64) -> bool {
        (self.lease)(at, len) == 0
    }

    /// Ends the suballocation that begins at `at`; false where there is none.
    pub fn unlease(&self, at: u64) -> bool {
        (self.unlease)(at) == 0
    }

    fn read_reports(&self, take: u32) -> Vec<Report> {
        // SAFETY: the room is the buffer's.
        let text = read(|to, room| unsafe { (self.reports)(to, room, take) });
        let parts = text.lines().filter_map(|line| line.split_once('\t'));
        parts.map(|(kind, message)| Report { kind: kind.to_owned(), message: message.to_owned() }).collect()
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("calls", &self.calls()).finish_non_exhaustive()
    }
}

/// Asks with a growing buffer until the whole text fits.
fn read(ask: impl Fn(*mut u8, usize) -> usize) -> String {
    let mut buffer = vec![0; 4096];
    loop {
        let len = ask(buffer.as_mut_ptr(), buffer.len());
        if len <= buffer.len() {
            buffer.truncate(len);
            return String::from_utf8_lossy(&buffer).into_owned();
        }
        buffer.resize(len.next_power_of_two(), 0);
    }
}

/// # Safety
/// `library` is an open library.
unsafe fn symbol(library: *mut c_void, name: &CStr) -> Option<*mut c_void> {
    // SAFETY: open, and a zero-terminated name.
    let at = unsafe { libc::dlsym(library, name.as_ptr()) };
    (!at.is_null()).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_longer_than_the_first_buffer_is_read_whole() {
        let text = "x".repeat(10_000);
        let got = read(|to, room| {
            let part = text.len().min(room);
            // SAFETY: at most the room that was given.
            unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), to, part) };
            text.len()
        });
        assert_eq!(got, text);
    }
}
