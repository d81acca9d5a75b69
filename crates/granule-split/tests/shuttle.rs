//! Where ranks of one process meet, under a scheduler that tries interleavings: nobody sleeps through an arrival or an end, and nobody
//! goes away with memory that another reads.
//!
//! ```text
//! RUSTFLAGS="--cfg shuttle" cargo test -p granule-split --no-default-features --test shuttle -- --test-threads=1
//! ```
//!
//! Waits do not time out there: a wake-up that is lost is a deadlock, which the scheduler finds. Without the flag this is empty.
#![allow(unexpected_cfgs, reason = "set by who runs these tests")]
#![cfg(shuttle)]
#![allow(clippy::unwrap_used, reason = "a test may")]

use std::time::Duration;

use granule_split::Error;
use granule_split::comm::{Communicator, GroupOptions, HostRank, Wire, host_group};
use shuttle::thread;

const SCHEDULES: usize = 3_000;

fn group(ranks: usize) -> Vec<HostRank> {
    host_group(ranks, GroupOptions { timeout: Duration::from_secs(86_400), wire: Wire::F32 }).unwrap()
}

/// Sums one after the other, each in memory of its own.
fn sums(ranks: usize) {
    let threads: Vec<_> = group(ranks)
        .into_iter()
        .map(|rank| {
            thread::spawn(move || {
                for turn in 0..2 {
                    let mut x = vec![(1 + rank.rank() + turn) as f32; 9];
                    rank.all_reduce(&mut x).unwrap();
                    let sum: usize = (0..ranks).map(|rank| 1 + rank + turn).sum();
                    assert_eq!(x, vec![sum as f32; 9]);
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn nobody_sleeps_through_an_arrival() {
    for ranks in [2, 3] {
        shuttle::check_random(move || sums(ranks), SCHEDULES);
        shuttle::check_pct(move || sums(ranks), SCHEDULES, 3);
    }
}

/// One rank gives up at any moment: the others' calls end, with the sum or with what it said, and whoever had the sum had all of it.
fn gives_up() {
    let threads: Vec<_> = group(3)
        .into_iter()
        .map(|rank| {
            thread::spawn(move || {
                if rank.rank() == 1 {
                    rank.abort("as planned");
                }
                let mut x = vec![1.0; 9];
                match rank.all_reduce(&mut x) {
                    Ok(()) => assert_eq!(x, [3.0; 9]),
                    Err(Error::Aborted { .. }) => x.fill(f32::NAN),
                    Err(error) => panic!("{error}"),
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn nobody_sleeps_through_an_end() {
    shuttle::check_random(gives_up, SCHEDULES);
    shuttle::check_pct(gives_up, SCHEDULES, 3);
}
