//! How the caller of a region wakes the workers that take part in it: one word that all of them watch, and a flag for each
//! that sleeps.
//!
//! Who is awake is told by the word alone; a system call is made only for who sleeps. Nobody is forgotten: a worker raises
//! its flag *before* it looks at the word for the last time, and the caller looks at the flags *after* it changed the word. All
//! four are in one order (`SeqCst`), so that one of the two sees what the other did.

use super::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use super::sync::{self, hint, thread};

/// Spins before a worker sleeps: some tens of microseconds, longer than the gap between two regions of one token.
const SPINS: u32 = if sync::TRIES_INTERLEAVINGS { 2 } else { 4_000 };

/// A region, as all workers see it: how many there were before, and how many threads take part in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Call(u64);

impl Call {
    /// The bits that hold the number of threads; 48 are left for the regions, which is 9 years of one each microsecond.
    const BITS: u32 = 16;
    /// The most threads of a region.
    pub(super) const MOST_THREADS: usize = (1 << Self::BITS) - 1;

    fn next(self, n_threads: usize) -> Self {
        Self((((self.0 >> Self::BITS) + 1) << Self::BITS) | n_threads as u64)
    }

    /// Whether this worker, the first of whom is 1, takes part.
    pub(super) fn is_for(self, worker: usize) -> bool {
        (worker as u64) < self.0 & Self::MOST_THREADS as u64
    }
}

/// What stands alone in its cache lines, so that who watches it is not disturbed by what is written beside it.
#[repr(align(128))]
pub(super) struct Apart<T>(pub(super) T);

/// The word and the flags.
pub(super) struct Bell {
    call: Apart<AtomicU64>,
    /// Worker 1's is the first.
    asleep: Box<[AtomicBool]>,
}

impl Bell {
    pub(super) fn new(workers: usize) -> Self {
        let asleep = (0..workers).map(|_| AtomicBool::new(false)).collect();
        Self { call: Apart(AtomicU64::new(0)), asleep }
    }

    /// Begins a region of `n_threads`, the caller's own among them; `wake` is called for each of its workers that sleeps. One
    /// thread rings at a time.
    pub(super) fn ring(&self, n_threads: usize, wake: impl Fn(usize)) {
        let last = Call(self.call.0.load(Ordering::Relaxed));
        self.call.0.store(last.next(n_threads).0, Ordering::SeqCst);
        for (asleep, worker) in self.asleep.iter().zip(1..n_threads) {
            // A flag is written when its worker goes to sleep, so looking at those of who is awake costs next to nothing.
            if asleep.load(Ordering::SeqCst) && asleep.swap(false, Ordering::SeqCst) {
                wake(worker);
            }
        }
    }

    /// Waits for another call than the one heard last. `spins` counts how often this worker has looked since it last took
    /// part in a region: with enough of them it sleeps, also while regions of others go on.
    pub(super) fn wait(&self, worker: usize, heard: Call, spins: &mut u32) -> Call {
        while *spins < SPINS {
            let call = Call(self.call.0.load(Ordering::Acquire));
            if call != heard {
                return call;
            }
            *spins += 1;
            hint::spin_loop();
        }
        let asleep = &self.asleep[worker - 1];
        loop {
            asleep.store(true, Ordering::SeqCst);
            let call = Call(self.call.0.load(Ordering::SeqCst));
            if call != heard {
                asleep.store(false, Ordering::Relaxed);
                return call;
            }
            thread::park();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn woken(bell: &Bell, n_threads: usize) -> Vec<usize> {
        let woken = RefCell::new(Vec::new());
        bell.ring(n_threads, |worker| woken.borrow_mut().push(worker));
        woken.into_inner()
    }

    #[test]
    fn only_workers_that_sleep_and_take_part_are_woken_and_once() {
        let bell = Bell::new(3);
        assert_eq!(woken(&bell, 4), []);
        for worker in [1, 3] {
            bell.asleep[worker - 1].store(true, Ordering::SeqCst);
        }
        assert_eq!(woken(&bell, 1), []);
        assert_eq!(woken(&bell, 3), [1]);
        assert_eq!(woken(&bell, 4), [3]);
        assert_eq!(woken(&bell, 4), []);
    }

    #[test]
    fn a_call_says_who_it_is_for() {
        let bell = Bell::new(2);
        let mut heard = Call::default();
        for n_threads in [3, 1, 2, Call::MOST_THREADS] {
            bell.ring(n_threads, |_| {});
            let call = bell.wait(1, heard, &mut 0);
            assert_ne!(call, heard);
            let expected = [1, 2, n_threads - 1, n_threads].map(|worker| (worker, worker < n_threads));
            assert_eq!(expected.map(|(worker, _)| (worker, call.is_for(worker))), expected);
            heard = call;
        }
    }

    #[test]
    fn who_has_no_spins_left_still_hears_what_was_rung_before() {
        let bell = Bell::new(1);
        bell.ring(2, |_| {});
        assert!(bell.wait(1, Call::default(), &mut SPINS.clone()).is_for(1));
        assert!(!bell.asleep[0].load(Ordering::SeqCst));
    }
}
