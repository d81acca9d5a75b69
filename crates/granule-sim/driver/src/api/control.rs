//! What a test may ask of the simulator itself: `granule_sim_…`, used through the crate `granule-sim`.

use super::enter::{own_call, reset, with_machine};
use crate::code::Code;

/// Version of these functions.
const ABI: u32 = 1;

#[unsafe(no_mangle)]
pub extern "C" fn granule_sim_abi() -> u32 {
    ABI
}

/// All schedules from here on come from this seed.
#[unsafe(no_mangle)]
pub extern "C" fn granule_sim_set_seed(seed: u64) {
    with_machine(|sim| sim.set_seed(seed));
}

/// Driver calls made that can fail.
#[unsafe(no_mangle)]
pub extern "C" fn granule_sim_calls() -> u64 {
    with_machine(|sim| sim.calls.made()).unwrap_or(0)
}

/// The `n`-th driver call from now answers `code`.
#[unsafe(no_mangle)]
pub extern "C" fn granule_sim_fail_nth(n: u64, code: u32) {
    with_machine(|sim| sim.calls.fail_nth(n, Code(code)));
}

/// Forgets the planned failure; 1 where it had not happened yet.
#[unsafe(no_mangle)]
pub extern "C" fn granule_sim_clear_fault() -> u32 {
    with_machine(|sim| sim.calls.clear_fault()).unwrap_or(false).into()
}

/// The reports, one line each: kind, tab, message. Writes as much as fits and returns the length of all. Where `take`
/// is not 0 and everything fits, they are gone afterwards.
///
/// # Safety
/// `room` bytes at `to` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn granule_sim_reports(to: *mut u8, room: usize, take: u32) -> usize {
    let answer = with_machine(|sim| {
        let lines: String =
            sim.reports.list().iter().map(|r| format!("{}\t{}\n", r.kind, r.message)).collect();
        // SAFETY: passed on.
        unsafe { write(&lines, to, room) };
        if take != 0 && lines.len() <= room {
            sim.reports.clear();
        }
        lines.len()
    });
    answer.unwrap_or(0)
}

/// Everything that is held, one line each: what, number of the call, its name, bytes; between tabs. Writes as much as
/// fits and returns the length of all.
///
/// # Safety
/// `room` bytes at `to` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn granule_sim_live(to: *mut u8, room: usize) -> usize {
    let answer = with_machine(|sim| {
        let things = sim.held_things();
        let line =
            |h: &crate::model::Held| format!("{}\t{}\t{}\t{}\n", h.what, h.made.number, h.made.name, h.bytes);
        let lines: String = things.iter().map(line).collect();
        // SAFETY: passed on.
        unsafe { write(&lines, to, room) };
        lines.len()
    });
    answer.unwrap_or(0)
}

/// A machine that was just switched on, with the settings of the process: devices empty, counters at zero, reports gone.
/// What the program still holds points nowhere.
#[unsafe(no_mangle)]
pub extern "C" fn granule_sim_reset() {
    reset();
}

/// Announces a suballocation: from now on bytes of the allocation around it that are in no lease may not be touched.
/// 0 where that was noted, 1 where no memory of a device is there, it overlaps a lease, or it leaves its allocation.
#[unsafe(no_mangle)]
pub extern "C" fn granule_sim_lease(at: u64, len: u64) -> u32 {
    let answer = with_machine(|sim| {
        let call = own_call(sim, "granule_sim_lease");
        sim.lease(call, at, len)
    });
    u32::from(answer != Some(true))
}

/// The suballocation that begins here is over. 0 where there was one.
#[unsafe(no_mangle)]
pub extern "C" fn granule_sim_unlease(at: u64) -> u32 {
    u32::from(with_machine(|sim| sim.unlease(at)) != Some(true))
}

/// # Safety
/// `room` bytes at `to` may be written.
unsafe fn write(text: &str, to: *mut u8, room: usize) {
    if !to.is_null() {
        // SAFETY: at most `room` bytes, from memory of our own.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), to, text.len().min(room)) };
    }
}
