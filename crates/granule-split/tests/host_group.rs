//! Ranks that are threads: the bits of a naive twin, whoever comes first, and errors instead of waiting where somebody stays away.
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "support/naive.rs"]
mod naive;

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use granule_split::Error;
use granule_split::comm::{Communicator, GroupOptions, HostRank, MAX_RANKS, Wire, host_group, slice};
use naive::{Random, numbers};
use proptest::prelude::*;

fn group(ranks: usize, wire: Wire) -> Vec<HostRank> {
    host_group(ranks, GroupOptions { timeout: Duration::from_secs(60), wire }).unwrap()
}

/// Runs a rank a thread, each delayed by something random, and gives back what they gave.
fn each<R: Send>(group: &[HostRank], seed: u64, run: impl Fn(&HostRank) -> R + Sync) -> Vec<R> {
    thread::scope(|scope| {
        let threads: Vec<_> = (group.iter())
            .map(|rank| {
                let run = &run;
                scope.spawn(move || {
                    delay(seed, rank.rank());
                    run(rank)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn delay(seed: u64, rank: usize) {
    match Random(seed ^ (rank as u64) << 32).next() % 4 {
        0 => thread::sleep(Duration::from_micros(seed % 200)),
        1 => thread::yield_now(),
        _ => {}
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn all_calls_have_the_bits_of_the_naive_sums(
        ranks in 1_usize..=MAX_RANKS, len in prop_oneof![0_usize..70, 500_usize..3000], seed: u64,
    ) {
        let group = group(ranks, Wire::F32);
        let data: Vec<Vec<f32>> = (0..ranks).map(|rank| numbers(seed + rank as u64, len)).collect();
        let sum = bits(&naive::sum(&data));
        // Counts of any size, also none.
        let mut cuts: Vec<usize> = (1..ranks).map(|i| (Random(seed + i as u64).next() % (len as u64 + 1)) as usize).collect();
        cuts.sort_unstable();
        cuts.insert(0, 0);
        cuts.push(len);
        let counts: Vec<usize> = cuts.windows(2).map(|cut| cut[1] - cut[0]).collect();
        let whole = numbers(seed, len);
        let root = (seed % ranks as u64) as usize;
        each(&group, seed, |rank| {
            let r = rank.rank();
            for turn in 0..3 {
                let mut x = data[r].clone();
                rank.all_reduce(&mut x).unwrap();
                assert_eq!(bits(&x), sum);
                delay(seed + turn, r);

                let mut own = vec![f32::NAN; counts[r]];
                rank.reduce_scatter(&data[r], &counts, &mut own).unwrap();
                assert_eq!(bits(&own), sum[cuts[r]..cuts[r + 1]]);

                let mut all = vec![f32::NAN; len];
                rank.all_gather(&whole[cuts[r]..cuts[r + 1]], &counts, &mut all).unwrap();
                assert_eq!(bits(&all), bits(&whole));

                let mut x = data[r].clone();
                rank.broadcast(root, &mut x).unwrap();
                assert_eq!(bits(&x), bits(&data[root]));
            }
        });
    }

    #[test]
    fn half_the_bytes_cost_what_is_said(ranks in 1_usize..=MAX_RANKS, len in 0_usize..800, seed: u64) {
        let group = group(ranks, Wire::Bf16);
        let data: Vec<Vec<f32>> = (0..ranks).map(|rank| numbers(seed + rank as u64, len)).collect();
        let counts: Vec<usize> = (0..ranks).map(|rank| slice(len, rank, ranks).len()).collect();
        let sums = each(&group, seed, |rank| {
            let (mut x, mut own) = (data[rank.rank()].clone(), vec![0.0; counts[rank.rank()]]);
            rank.all_reduce(&mut x).unwrap();
            rank.reduce_scatter(&data[rank.rank()], &counts, &mut own).unwrap();
            (x, own)
        });
        let scattered: Vec<f32> = sums.iter().flat_map(|(_, own)| own.clone()).collect();
        for i in 0..len {
            let exact: f64 = data.iter().map(|x| f64::from(x[i])).sum();
            let size: f64 = data.iter().map(|x| f64::from(x[i]).abs()).sum();
            let (u, adding) = (2.0_f64.powi(-8), (ranks - 1) as f64 * 2.0_f64.powi(-23));
            let least = 2.0_f64.powi(-132);
            prop_assert!((f64::from(sums[0].0[i]) - exact).abs() <= (2.0 * u + u * u + adding) * size + least);
            prop_assert!((f64::from(scattered[i]) - exact).abs() <= (u + adding) * size + least);
        }
        for (sum, _) in &sums {
            prop_assert_eq!(bits(sum), bits(&sums[0].0));
        }
        // It is bf16 that went, not f32: not all sums would be such numbers.
        if ranks > 1 {
            prop_assert!(sums[0].0.iter().all(|x| x.to_bits() & 0xffff == 0));
        }
    }
}

#[test]
fn what_is_sent_is_the_formula() {
    for (wire, bytes) in [(Wire::F32, 4), (Wire::Bf16, 2)] {
        for ranks in 1..=MAX_RANKS {
            for len in [0, 1, 3, 64, 288, 1001, 7680] {
                let group = group(ranks, wire);
                each(&group, 0, |rank| rank.all_reduce(&mut vec![1.0; len]).unwrap());
                let sent: Vec<u64> = group.iter().map(|rank| rank.traffic().sent).collect();
                assert_eq!(sent.iter().sum::<u64>(), (2 * len * (ranks - 1) * bytes) as u64);
                if len.is_multiple_of(4 * ranks) {
                    assert!(sent.iter().all(|sent| *sent == (2 * len * (ranks - 1) / ranks * bytes) as u64));
                }
                assert!(group.iter().all(|rank| rank.traffic().calls == 1));
            }
        }
    }
    let group = group(3, Wire::F32);
    each(&group, 0, |rank| {
        let counts = [2, 5, 0];
        rank.all_gather(&vec![0.0; counts[rank.rank()]], &counts, &mut [0.0; 7]).unwrap();
        rank.broadcast(1, &mut [0.0; 10]).unwrap();
        rank.reduce_scatter(&[0.0; 7], &counts, &mut vec![0.0; counts[rank.rank()]]).unwrap();
    });
    let sent: Vec<u64> = group.iter().map(|rank| rank.traffic().sent).collect();
    assert_eq!(sent, [4 * (2 * 2 + 5), 4 * (5 * 2 + 10 * 2 + 2), 4 * 7]);
}

#[test]
fn who_stays_away_is_named_in_time() {
    let timeout = Duration::from_millis(100);
    let group = host_group(4, GroupOptions { timeout, wire: Wire::F32 }).unwrap();
    let begun = Instant::now();
    let errors = each(&group, 0, |rank| match rank.rank() {
        1 | 3 => None,
        _ => Some(rank.all_reduce(&mut [0.0; 100]).unwrap_err()),
    });
    assert!(begun.elapsed() < Duration::from_secs(20));
    let texts: Vec<String> = errors.iter().flatten().map(ToString::to_string).collect();
    assert!(texts.iter().all(|text| text.contains("for ranks 1 and 3 in all_reduce")), "{texts:?}");
    assert!(errors.iter().flatten().any(|error| matches!(error, Error::TimedOut { .. })));
    // Whoever comes late hears of it at once, and with everybody there again it goes on.
    assert!(matches!(group[1].all_reduce(&mut [0.0]), Err(Error::Aborted { .. })));
    group[3].recover().unwrap();
    let sums = each(&group, 1, |rank| {
        let mut x = [rank.rank() as f32; 5];
        rank.all_reduce(&mut x).unwrap();
        x
    });
    assert_eq!(sums, [[6.0; 5]; 4]);
}

#[test]
fn an_abort_ends_those_who_wait_and_is_told_as_it_was_said() {
    let group = group(3, Wire::F32);
    let errors = each(&group, 0, |rank| {
        if rank.rank() == 2 {
            thread::sleep(Duration::from_millis(20));
            rank.abort("no memory");
        }
        rank.all_gather(&[1.0], &[1; 3], &mut [0.0; 3]).unwrap_err().to_string()
    });
    assert_eq!(errors, ["rank 2 of 3 gave up: no memory"; 3]);
    group[0].recover().unwrap();
    each(&group, 0, |rank| rank.broadcast(1, &mut [0.0]).unwrap());
}

#[test]
fn a_rank_whose_thread_panics_is_gone() {
    let group = group(2, Wire::F32);
    let mut threads = Vec::new();
    for rank in group {
        threads.push(thread::spawn(move || {
            rank.all_reduce(&mut [1.0]).unwrap();
            assert_ne!(rank.rank(), 1, "as planned");
            rank.all_reduce(&mut [1.0]).unwrap_err().to_string()
        }));
    }
    let mut ends = threads.into_iter().map(|thread| thread.join());
    assert_eq!(ends.next().unwrap().unwrap(), "rank 1 of 2 gave up: its thread panicked");
    assert!(ends.next().unwrap().is_err());
}

/// A rank that is through with its last call may go, while others still return from it.
#[test]
fn a_rank_that_goes_after_a_call_spoils_it_for_nobody() {
    for seed in 0..300 {
        let ranks = 2 + seed as usize % 5;
        let threads: Vec<_> = group(ranks, Wire::F32)
            .into_iter()
            .map(|rank| {
                thread::spawn(move || {
                    delay(seed, rank.rank());
                    let mut x = [1.0; 9];
                    rank.all_reduce(&mut x).unwrap();
                    x
                })
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap(), [ranks as f32; 9]);
        }
    }
}

#[test]
fn sizes_and_calls_that_do_not_go_together_are_errors_of_all() {
    let fails = |ranks, call: fn(&HostRank) -> Result<(), Error>| {
        let group = group(ranks, Wire::F32);
        each(&group, 0, |rank| call(rank).unwrap_err())
    };
    let errors = fails(2, |rank| rank.all_reduce(&mut vec![0.0; 4 + rank.rank()]));
    assert!(errors.iter().any(|error| matches!(error, Error::Size { .. })), "{errors:?}");
    let errors = fails(2, |rank| match rank.rank() {
        0 => rank.all_reduce(&mut [0.0; 4]),
        _ => rank.broadcast(0, &mut [0.0; 4]),
    });

    assert!(errors.iter().any(|error| error.to_string().contains("while rank")), "{errors:?}");
    // Only some see that these differ: the third's part begins in the same place for all.
    let errors = fails(3, |rank| {
        let counts: [usize; 3] = if rank.rank() == 1 { [1, 1, 4] } else { [1, 2, 3] };
        rank.all_gather(&vec![0.0; counts[rank.rank()]], &counts, &mut [0.0; 6])
    });
    assert!(errors.iter().any(|error| matches!(error, Error::Size { .. })), "{errors:?}");
    let errors = fails(2, |rank| rank.broadcast(2, &mut [0.0; 4]));
    assert!(
        errors.iter().any(|error| matches!(error, Error::Size { found: 2, expected: 1, .. })),
        "{errors:?}"
    );
    let errors = fails(2, |rank| rank.reduce_scatter(&[0.0; 4], &[4], &mut [0.0; 4]));
    assert!(errors.iter().any(|error| matches!(error, Error::Size { what: "counts", .. })), "{errors:?}");
    let errors = fails(2, |rank| rank.reduce_scatter(&[0.0; 4], &[usize::MAX, 5], &mut [0.0; 4]));
    assert!(
        errors.iter().all(|error| matches!(error, Error::Size { .. } | Error::Aborted { .. })),
        "{errors:?}"
    );
}

#[test]
fn groups_have_1_to_16_ranks() {
    for ranks in [0, 17] {
        let error = host_group(ranks, GroupOptions::default()).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
    }
}

/// Ranks that end others' calls at any moment: memory that went back is read by nobody (checked builds see it), nothing hangs, and
/// after recovery sums are right again.
#[test]
fn failures_at_any_moment_leave_a_group_that_can_be_used_again() {
    for wire in [Wire::F32, Wire::Bf16] {
        let group = group(4, wire);
        let turns = Barrier::new(4);
        thread::scope(|scope| {
            for rank in &group {
                let turns = &turns;
                scope.spawn(move || {
                    let mut random = Random(rank.rank() as u64);
                    for turn in 0..200_u64 {
                        let mut failed = false;
                        for _ in 0..8 {
                            if random.next().is_multiple_of(24) {
                                rank.abort("as planned");
                            }
                            // On the heap, and gone at once.
                            let mut x = vec![1.0_f32; 2000];
                            match rank.all_reduce(&mut x) {
                                Ok(()) => assert!(x.iter().all(|x| *x == 4.0)),
                                Err(Error::Aborted { .. }) => failed = true,
                                Err(error) => panic!("{error}"),
                            }
                            x.fill(f32::NAN);
                        }
                        turns.wait();
                        if turn % 4 == rank.rank() as u64 {
                            rank.recover().unwrap();
                        }
                        turns.wait();
                        let mut x = vec![rank.rank() as f32; 33];
                        rank.all_reduce(&mut x).unwrap();
                        assert_eq!(x, [6.0; 33], "failed before: {failed}");
                        turns.wait();
                    }
                });
            }
        });
    }
}

#[test]
fn a_rank_that_is_called_by_several_threads_takes_turns() {
    let group = group(2, Wire::F32);
    thread::scope(|scope| {
        for rank in &group {
            for _ in 0..3 {
                scope.spawn(move || {
                    for _ in 0..100 {
                        let mut x = [1.0; 64];
                        rank.all_reduce(&mut x).unwrap();
                        assert_eq!(x, [2.0; 64]);
                    }
                });
            }
        }
    });
}
