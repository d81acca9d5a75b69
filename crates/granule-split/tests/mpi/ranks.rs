//! What a rank does, in the processes that `mpirun` has started.

use std::time::{Duration, Instant};

use granule_split::Error;
use granule_split::comm::{
    Communicator, GroupOptions, MpiRank, Wire, all_reduce_elements, host_group, slice,
};

use crate::PART;
use crate::naive::{self, Random, numbers};

/// What ranks wait for each other where one does not come.
const SHORT: Duration = Duration::from_secs(2);

#[test]
#[ignore = "the other tests start it, by mpirun"]
fn as_rank() {
    let part = std::env::var(PART).unwrap_or_else(|_| panic!("this is for the other tests to start"));
    let wire = if part == "rounded" { Wire::Bf16 } else { Wire::F32 };
    let timeout = match part.as_str() {
        "stalls" | "killed" | "panics" => SHORT,
        _ => Duration::from_secs(30),
    };
    let rank = MpiRank::new(GroupOptions { timeout, wire }).unwrap();
    assert!(MpiRank::new(GroupOptions::default()).is_err(), "a second rank in one process");
    match part.as_str() {
        "collectives" => collectives(&rank),
        "rounded" => rounded(&rank),
        "apart" => apart(&rank),
        "calls" => calls(&rank),
        "short" => sizes(&rank, [8, 5]),
        "long" => sizes(&rank, [5, 8]),
        "counts" => counts(&rank),
        "gives_up" => gives_up(&rank),
        "stalls" => stalls(&rank),
        "killed" => killed(&rank),
        "panics" => panics(&rank),
        other => panic!("no such part: {other}"),
    }
    let (at, ranks) = (rank.rank(), rank.ranks());
    drop(rank);
    println!("rank {at} of {ranks} is well");
    if matches!(part.as_str(), "calls" | "short" | "long" | "counts" | "gives_up") {
        // The first to end has `mpirun` stop the others: they shall have had their say.
        std::thread::sleep(SHORT);
        std::process::exit(1);
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Counts of any size, also none, the same on all ranks.
fn cuts(seed: u64, ranks: usize, len: usize) -> Vec<usize> {
    let mut cuts: Vec<usize> =
        (1..ranks).map(|i| (Random(seed + i as u64).next() % (len as u64 + 1)) as usize).collect();
    cuts.sort_unstable();
    cuts.insert(0, 0);
    cuts.push(len);
    cuts
}

fn collectives(rank: &MpiRank) {
    let (r, ranks) = (rank.rank(), rank.ranks());
    let mut expected = rank.traffic();
    // From nothing, over what goes at once, to what a library sends only once it is waited for.
    for (turn, len) in [0, 1, 2, 3, 5, 17, 64, 1000, 4099, 300_001, 3].into_iter().enumerate() {
        let seed = 100 * turn as u64;
        let data: Vec<Vec<f32>> = (0..ranks).map(|rank| numbers(seed + rank as u64, len)).collect();
        let sum = bits(&naive::sum(&data));
        let mut x = data[r].clone();
        rank.all_reduce(&mut x).unwrap();
        assert_eq!(bits(&x), sum, "all_reduce of {len}");
        expected.sent += 4 * all_reduce_elements(len, r, ranks) as u64;

        let cuts = cuts(seed, ranks, len);
        let counts: Vec<usize> = cuts.windows(2).map(|cut| cut[1] - cut[0]).collect();
        let mut own = vec![f32::NAN; counts[r]];
        rank.reduce_scatter(&data[r], &counts, &mut own).unwrap();
        assert_eq!(bits(&own), sum[cuts[r]..cuts[r + 1]], "reduce_scatter of {len}");
        expected.sent += 4 * (len - counts[r]) as u64;

        let whole = numbers(seed, len);
        let mut all = vec![f32::NAN; len];
        rank.all_gather(&whole[cuts[r]..cuts[r + 1]], &counts, &mut all).unwrap();
        assert_eq!(bits(&all), bits(&whole), "all_gather of {len}");
        expected.sent += 4 * (counts[r] * (ranks - 1)) as u64;

        let root = turn % ranks;
        let mut x = if r == root { whole.clone() } else { vec![f32::NAN; len] };
        rank.broadcast(root, &mut x).unwrap();
        assert_eq!(bits(&x), bits(&whole), "broadcast of {len}");
        expected.sent += if r == root { 4 * (len * (ranks - 1)) as u64 } else { 0 };
        expected.calls += 4;
        assert_eq!(rank.traffic(), expected);
    }
    // What one rank sends of even slices is the formula, to the byte.
    let (len, before) = (ranks * 1024, rank.traffic().sent);
    rank.all_reduce(&mut vec![1.0; len]).unwrap();
    assert_eq!(rank.traffic().sent - before, (2 * 4 * len * (ranks - 1) / ranks) as u64);
}

/// Ranks of threads round alike: a group of them is computed by each rank beside the processes'.
fn rounded(rank: &MpiRank) {
    let (r, ranks) = (rank.rank(), rank.ranks());
    for len in [1, 6, 1001] {
        let data: Vec<Vec<f32>> = (0..ranks).map(|rank| numbers(rank as u64, len)).collect();
        let threads = host_group(ranks, GroupOptions { wire: Wire::Bf16, ..Default::default() }).unwrap();
        let counts: Vec<usize> = (0..ranks).map(|rank| slice(len, rank, ranks).len()).collect();
        let theirs: Vec<(Vec<f32>, Vec<f32>)> = std::thread::scope(|scope| {
            let (data, counts) = (&data, &counts);
            let run = |thread: &granule_split::comm::HostRank| {
                let (mut x, mut own) = (data[thread.rank()].clone(), vec![f32::NAN; counts[thread.rank()]]);
                thread.all_reduce(&mut x).unwrap();
                thread.reduce_scatter(&data[thread.rank()], counts, &mut own).unwrap();
                (x, own)
            };
            let started: Vec<_> = threads.iter().map(|thread| scope.spawn(move || run(thread))).collect();
            started.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let (mut x, mut own) = (data[r].clone(), vec![f32::NAN; counts[r]]);
        let before = rank.traffic().sent;
        rank.all_reduce(&mut x).unwrap();
        assert_eq!(rank.traffic().sent - before, 2 * all_reduce_elements(len, r, ranks) as u64);
        rank.reduce_scatter(&data[r], &counts, &mut own).unwrap();
        assert_eq!((bits(&x), bits(&own)), (bits(&theirs[r].0), bits(&theirs[r].1)), "of {len}");
        assert_ne!(bits(&x), bits(&naive::sum(&data)), "nothing was rounded");
    }
}

/// Longer apart than a rank stays awake.
fn apart(rank: &MpiRank) {
    for turn in 0..6 {
        std::thread::sleep(Duration::from_millis(if turn % rank.ranks() == rank.rank() { 40 } else { 0 }));
        let mut x = [1.0; 33];
        rank.all_reduce(&mut x).unwrap();
        assert_eq!(x, [rank.ranks() as f32; 33]);
    }
}

/// A group that failed stays over, and says so at once.
fn stays_over(rank: &MpiRank) {
    let since = Instant::now();
    let error = rank.all_reduce(&mut [0.0; 4]).unwrap_err();
    assert!(matches!(error, Error::Aborted { .. }), "{error}");
    assert!(rank.recover().is_err());
    assert!(since.elapsed() < Duration::from_secs(1));
}

fn calls(rank: &MpiRank) {
    let mut x = [0.0; 8];
    let error = match rank.rank() {
        0 => rank.all_reduce(&mut x),
        _ => rank.all_gather(&[0.0; 4], &[4, 4], &mut x),
    };
    let error = error.unwrap_err();
    assert!(matches!(error, Error::Calls { .. } | Error::Aborted { .. } | Error::Mpi { .. }), "{error}");
    stays_over(rank);
}

fn sizes(rank: &MpiRank, sizes: [usize; 2]) {
    let error = rank.all_reduce(&mut vec![0.0; sizes[rank.rank()]]).unwrap_err();
    // Who gets less than it waits for knows how much; who gets more is told by the library that it was cut off.
    let more = sizes[rank.rank()] < sizes[1 - rank.rank()];
    let fits = match &error {
        Error::Aborted { .. } => true,
        Error::Size { found, expected, .. } => !more && (*found, *expected) == (5, 8),
        Error::Mpi { .. } => more,
        _ => false,
    };
    assert!(fits, "{error}");
    stays_over(rank);
}

fn counts(rank: &MpiRank) {
    let mut all = [0.0; 6];
    let error = match rank.rank() {
        // Its own counts do not go with its memory; the others hear of it.
        1 => rank.all_gather(&[0.0; 2], &[2, 2, 3], &mut all),
        _ => rank.all_gather(&[0.0; 2], &[2, 2, 2], &mut all),
    };
    let error = error.unwrap_err();
    match rank.rank() {
        1 => assert!(matches!(error, Error::Size { what: "all parts", found: 6, expected: 7 }), "{error}"),
        _ => assert!(matches!(error, Error::Aborted { rank: 1, .. }), "{error}"),
    }
    stays_over(rank);
}

fn gives_up(rank: &MpiRank) {
    let since = Instant::now();
    let error = std::thread::scope(|scope| {
        if rank.rank() == 2 {
            // From another thread, while this one waits in a call.
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(300));
                rank.abort("no memory for it");
            });
        }
        // Rank 1 comes late, and finds the group over.
        let late = if rank.rank() == 1 { 1 } else { 0 };
        std::thread::sleep(Duration::from_secs(late));
        rank.all_reduce(&mut [0.0; 100]).unwrap_err()
    });
    assert_eq!(error.to_string(), "rank 2 of 3 gave up: no memory for it");
    assert!(since.elapsed() < Duration::from_secs(10));
    stays_over(rank);
}

fn stalls(rank: &MpiRank) {
    rank.all_reduce(&mut [1.0; 16]).unwrap();
    if rank.rank() == 1 {
        // Stopped as a debugger would, so that no other thread of the process answers for it.
        // SAFETY: a signal to this process.
        unsafe { libc::raise(libc::SIGSTOP) };
    }
    let error = rank.all_reduce(&mut [1.0; 16]).unwrap_err();
    panic!("{error}");
}

fn killed(rank: &MpiRank) {
    rank.all_reduce(&mut [1.0; 16]).unwrap();
    if rank.rank() == 1 {
        // SAFETY: a signal to this process.
        unsafe { libc::raise(libc::SIGKILL) };
    }
    let since = Instant::now();
    let error = rank.all_reduce(&mut [1.0; 16]).unwrap_err();
    assert!(since.elapsed() < SHORT + Duration::from_secs(2));
    println!("rank 0 saw: {error}");
    std::process::exit(1);
}

fn panics(rank: &MpiRank) {
    rank.all_reduce(&mut [1.0; 16]).unwrap();
    assert_ne!(rank.rank(), 1, "as planned");
    let error = rank.all_reduce(&mut [1.0; 16]).unwrap_err();
    println!("{error}");
    // Long enough for the last word to be printed before `mpirun` stops this one.
    std::process::exit(1);
}
