//! What every driver call goes through: the one lock, the call's number, the planned fault, the calling thread.

use crate::code::Code;
use crate::config::Config;
use crate::emulator::Kernels;
use crate::model::{Call, Caller, Kind, Result, Simulation};
use std::cell::{Cell, RefCell};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, Once};
use std::time::Duration;

/// The machine, once the first call was made, or why there is none.
static MACHINE: Mutex<Option<std::result::Result<Box<State>, String>>> = Mutex::new(None);

/// Told of every call of NCCL's.
pub(super) static CALLED: Condvar = Condvar::new();

/// How long a call waits at most before it looks again whether what it waits for can run.
const RETRY: Duration = Duration::from_millis(5);

pub(super) struct State {
    pub(super) sim: Simulation,
    pub(super) initialized: bool,
}

thread_local! {
    static THREAD: u64 = {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    };
    /// The contexts pushed on this thread; the last one is current.
    static CONTEXTS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    /// This thread is inside a driver call: whoever calls now is a host function.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// When a call may be made, and what an injected fault means.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Rule {
    /// Before `cuInit` too.
    Always,
    /// Only after `cuInit`.
    Initialized,
    /// Gives something back: an injected fault is returned after the work was done, as errors of earlier asynchronous
    /// work are.
    Release,
}

fn set_up() -> std::result::Result<Box<State>, String> {
    let config = Config::parse(&std::env::var("GRANULE_SIM").unwrap_or_default())
        .map_err(|e| format!("GRANULE_SIM: {e}"))?;
    let kernels = Kernels::load(&std::env::var("GRANULE_SIM_KERNELS").unwrap_or_default())
        .map_err(|e| format!("GRANULE_SIM_KERNELS: {e}"))?;
    let sim =
        Simulation::new(config, kernels).map_err(|e| format!("no memory for the simulated devices: {e}"))?;
    static AT_EXIT: Once = Once::new();
    AT_EXIT.call_once(|| {
        // SAFETY: `at_exit` takes no argument, and the library stays loaded until then (build.rs).
        unsafe { libc::atexit(at_exit) };
    });
    Ok(Box::new(State { sim, initialized: false }))
}

type Guard = MutexGuard<'static, Option<std::result::Result<Box<State>, String>>>;

fn lock() -> Guard {
    MACHINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The machine, for calls that are not the driver's. `None` inside a host function, or where the settings are wrong.
pub(super) fn with_machine<T>(f: impl FnOnce(&mut Simulation) -> T) -> Option<T> {
    if INSIDE.replace(true) {
        return None;
    }
    let mut guard = lock();
    let state = guard.get_or_insert_with(set_up);
    let answer = state.as_mut().ok().map(|state| f(&mut state.sim));
    drop(guard);
    INSIDE.set(false);
    answer
}

/// The machine as it was when the process began; counters and seed too. Does nothing inside a host function.
pub(super) fn reset() {
    if INSIDE.get() {
        return;
    }
    let fresh = set_up();
    let mut guard = lock();
    let old = guard.as_ref().and_then(|old| old.as_ref().ok());
    let (handles, initialized) = old.map_or((0, false), |old| (old.sim.handles_made(), old.initialized));
    *guard = Some(fresh.map(|mut state| {
        // A handle from before must not mean something new, and the program need not initialize the driver again.
        state.sim.skip_handles(handles);
        state.initialized = initialized;
        state
    }));
}

/// One call of the driver. Its number is the `CUresult`.
pub(super) fn call(
    name: &'static str,
    rule: Rule,
    work: impl FnMut(&mut State, &Caller) -> Result<()>,
) -> u32 {
    if INSIDE.replace(true) {
        // The machine is locked further up this stack: the report waits until the host function is done.
        let _ = CALLED_INSIDE.try_with(|calls| calls.borrow_mut().push(name));
        return Code::NOT_PERMITTED.0;
    }
    let answer = call_outside(name, rule, work);
    INSIDE.set(false);
    match answer {
        Ok(()) => 0,
        Err(code) => code.0,
    }
}

thread_local! {
    static CALLED_INSIDE: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
}

fn call_outside(
    name: &'static str,
    rule: Rule,
    mut work: impl FnMut(&mut State, &Caller) -> Result<()>,
) -> Result<()> {
    let mut guard = lock();
    let first = guard.is_none();
    let state = match guard.get_or_insert_with(set_up) {
        Ok(state) => state,
        Err(why) => {
            if first || name == "cuInit" {
                eprintln!("granule-sim: {why}");
            }
            return Err(Code::UNKNOWN);
        }
    };
    let (call, fault) = state.sim.calls.enter(name);
    if let Some(code) = fault
        && rule != Rule::Release
    {
        return Err(code);
    }
    if rule != Rule::Always && !state.initialized {
        return Err(Code::NOT_INITIALIZED);
    }
    let caller = Caller { call, thread: THREAD.with(|t| *t), context: current() };
    let mut done = work(state, &caller);
    while done == Err(Code::UNMET) {
        // Other threads' calls bring what is missing.
        guard = CALLED.wait_timeout(guard, RETRY).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        let Some(Ok(state)) = guard.as_mut() else { return Err(Code::DEINITIALIZED) };
        done = work(state, &caller);
    }
    let Some(Ok(state)) = guard.as_mut() else { return Err(Code::DEINITIALIZED) };
    for inner in CALLED_INSIDE.try_with(RefCell::take).unwrap_or_default() {
        let message = format!("a host function that ran during {} calls {inner}", caller.call);
        state.sim.reports.add(Kind::DriverCallInHostFunction, message);
    }
    done.and(fault.map_or(Ok(()), Err))
}

/// A call that the program did not make: the end of the process.
extern "C" fn at_exit() {
    if INSIDE.replace(true) {
        return;
    }
    let mut guard = lock();
    let Some(Ok(state)) = guard.as_mut() else { return };
    state.sim.report_leaks_at_exit();
    let left = state.sim.reports.list().len();
    if state.sim.config.strict && left > 0 {
        eprintln!("granule-sim: {left} reports that nobody took; the process ends with status 97");
        // SAFETY: writes out what stdio still holds, and ends the process; nothing runs after it.
        unsafe {
            libc::fflush(std::ptr::null_mut());
            libc::_exit(97);
        }
    }
}

/// The contexts pushed on this thread. A thread that is ending has none any more.
fn contexts<T>(f: impl FnOnce(&mut Vec<u64>) -> T) -> Option<T> {
    CONTEXTS.try_with(|c| f(&mut c.borrow_mut())).ok()
}

/// The calling thread's current context.
pub(super) fn current() -> Option<u64> {
    contexts(|c| c.last().copied()).flatten()
}

pub(super) fn set_current(context: u64) {
    contexts(|c| {
        c.pop();
        if context != 0 {
            c.push(context);
        }
    });
}

pub(super) fn push_current(context: u64) {
    contexts(|c| c.push(context));
}

pub(super) fn pop_current() -> Result<u64> {
    contexts(Vec::pop).flatten().ok_or(Code::INVALID_CONTEXT)
}

/// Writes an answer through a pointer of the caller.
///
/// # Safety
/// `to` is null or points to a `T` that may be written, as the driver's documentation asks of its callers.
pub(super) unsafe fn put<T>(to: *mut T, value: T) -> Result<()> {
    if to.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: not null, and the caller's promise.
    unsafe { to.write(value) };
    Ok(())
}

/// Reads a value through a pointer of the caller.
///
/// # Safety
/// `from` is null or points to a `T`.
pub(super) unsafe fn take<T: Copy>(from: *const T) -> Result<T> {
    if from.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: not null, and the caller's promise.
    Ok(unsafe { from.read() })
}

/// A name of a driver function, for reports of what is no driver call.
pub(super) fn own_call(sim: &Simulation, name: &'static str) -> Call {
    Call { number: sim.calls.made(), name }
}

/// Defines driver functions: `name(arguments) = Rule, |state, caller| body`, where the body's value is a `Result<()>`.
macro_rules! driver {
    ($($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),* $(,)?) = $rule:ident, |$state:ident, $caller:ident| $body:expr;)*) => {
        $(
            $(#[$doc])*
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($arg: $type),*) -> u32 {
                $crate::api::enter::call(
                    stringify!($name),
                    $crate::api::enter::Rule::$rule,
                    |$state: &mut $crate::api::enter::State, $caller: &$crate::model::Caller| {
                        let (_, _) = (&$state, &$caller);
                        $body
                    },
                )
            }
        )*
    };
}
pub(super) use driver;
