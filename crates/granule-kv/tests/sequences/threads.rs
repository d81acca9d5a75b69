//! Forks that go their ways on threads of their own.

use std::sync::atomic::{AtomicBool, Ordering};

use granule_bank::Owner;
use granule_device::Bytes;
use granule_kv::{Error, KvOptions};

use crate::support::{Model, Open, append, assert_holds, bank, cache, is_host, work};

pub(crate) fn forks_go_their_ways_on_threads(open: Open<'_>) {
    let bank = bank(open, 100, 8);
    let rounds = if is_host(bank.device()) { 12 } else { 2 };
    let cache = cache(&bank, 2, 4, KvOptions::new().ahead(10));
    let mut parent = cache.sequence(60).unwrap();
    let mut model = Model::default();
    append(&mut parent, &mut model, &(0..30).collect::<Vec<_>>()).unwrap();
    for round in 0..rounds {
        std::thread::scope(|scope| {
            for thread in 0..4u32 {
                let (mut fork, mut model) = (parent.fork().unwrap(), model.clone());
                scope.spawn(move || {
                    let cut = (round * 7 + thread as usize * 5) % 28;
                    fork.remove(cut..cut + 2).unwrap();
                    model.remove(cut..cut + 2);
                    let ids: Vec<u32> = (0..9).map(|index| 1000 * (thread + 1) + index).collect();
                    append(&mut fork, &mut model, &ids).unwrap();
                    let (mut second, mut other) = (fork.copy(1..20).unwrap(), model.clone());
                    other.keep(1..20);
                    append(&mut second, &mut other, &[9]).unwrap();
                    drop(fork);
                    assert_holds(&second, &other);
                    append(&mut second, &mut other, &ids).unwrap();
                    assert_holds(&second, &other);
                });
            }
        });
        assert_holds(&parent, &model);
    }
    drop(parent);
    cache.trim();
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

/// Ends the other thread, however this one ends.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Somebody takes again and again what a sequence has that no token lies in, while it goes on: that is out of memory at times, and
/// nothing else, and no token is lost by it.
pub(crate) fn memory_is_taken_from_sequences_that_go_on(open: Open<'_>) {
    let bank = bank(open, 16, 0);
    let rounds = if is_host(bank.device()) { 300 } else { 6 };
    let cache = cache(&bank, 1, 4, KvOptions::new().ahead(20));
    let stream = bank.device().stream().unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                drop(bank.take(&Owner::new("somebody"), 9));
            }
        });
        let _stop = Stop(&done);
        let (mut sequence, mut model) = (cache.sequence(60).unwrap(), Model::default());
        for round in 0..rounds {
            let keep = round as usize % 9;
            sequence.truncate(keep.min(model.len())).unwrap();
            model.keep(0..keep.min(model.len()));
            if round % 3 == 0 {
                // What is taken now goes back behind this.
                sequence.busy_until(&work(&stream, 1));
            }
            for token in 0..50 {
                match append(&mut sequence, &mut model, &[1000 * round + token]) {
                    Ok(()) | Err(Error::Bank(granule_bank::Error::OutOfMemory { .. })) => {}
                    Err(error) => panic!("round {round}, token {token}: {error}"),
                }
            }
            assert_holds(&sequence, &model);
        }
    });
    cache.trim();
    bank.drain();
    assert_eq!(bank.stats().held, Bytes::ZERO);
}
