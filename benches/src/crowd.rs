//! Several threads, each with a stream of its own, on one subject.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::script::BATCH;
use crate::{Handle, Player, Script, Subject, Timing};

/// What the threads did together.
#[derive(Debug)]
pub struct Crowd {
    /// Pairs of an allocation and a free, of all threads, in a second.
    pub pairs_per_second: f64,
    /// The batches of all threads.
    pub timing: Timing,
}

/// One thread for each script, all for `time`, from one moment on. Each has played its cycle once before.
pub fn crowd<S: Subject>(subject: &S, scripts: &[Script], time: Duration) -> Crowd {
    let (start, stop) = (Barrier::new(scripts.len() + 1), AtomicBool::new(false));
    let one = |stream: usize, script: &Script| {
        let mut player = Player::new(subject, script, stream);
        player.cycle();
        let mut timing = Timing::default();
        start.wait();
        let began = Instant::now();
        let mut ops = 0;
        while !stop.load(Ordering::Relaxed) {
            let before = Instant::now();
            let played = player.batch();
            ops += played;
            if played == BATCH {
                timing.record(before.elapsed());
            }
        }
        (ops as f64 / 2.0 / began.elapsed().as_secs_f64(), timing)
    };
    let threads = each(scripts, one, || {
        start.wait();
        thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
    });
    let mut all = Crowd { pairs_per_second: 0.0, timing: Timing::default() };
    for (rate, timing) in threads {
        all.pairs_per_second += rate;
        all.timing.merge(&timing);
    }
    all
}

/// What `one` answers on a thread for each script, with the script's number; `meanwhile` goes on on this one.
fn each<T: Send>(
    scripts: &[Script],
    one: impl Fn(usize, &Script) -> T + Sync,
    meanwhile: impl FnOnce(),
) -> Vec<T> {
    thread::scope(|scope| {
        let one = &one;
        let spawn = |(stream, script)| scope.spawn(move || one(stream, script));
        let threads: Vec<_> = scripts.iter().enumerate().map(spawn).collect();
        meanwhile();
        threads.into_iter().map(|thread| thread.join().expect("a thread that ends")).collect()
    })
}

/// How long it takes until each thread has played `pairs` allocations and frees of its script's cycle, about; all begin at one
/// moment.
pub fn time_of<S: Subject>(subject: &S, scripts: &[Script], pairs: u64) -> Duration {
    let start = Barrier::new(scripts.len());
    let one = |stream: usize, script: &Script| {
        let mut player = Player::new(subject, script, stream);
        start.wait();
        player.time_of(pairs)
    };
    each(scripts, one, || {}).into_iter().max().unwrap_or_default()
}

/// One thread allocates, another frees: pairs in a second. Blocks cross over 64 at a time, at most 4 such loads wait.
pub fn handed_over<S: Subject>(subject: &S, size: u32, time: Duration) -> f64 {
    let (send, receive) = sync_channel::<Vec<S::Block>>(4);
    thread::scope(|scope| {
        let freeing = scope.spawn(move || {
            let mut handle = subject.handle(1);
            let mut freed = 0u64;
            for load in receive {
                freed += load.len() as u64;
                load.into_iter().for_each(|block| handle.free_moved(block));
            }
            freed
        });
        let mut handle = subject.handle(0);
        let start = Instant::now();
        while start.elapsed() < time {
            let load = (0..BATCH).map(|_| handle.alloc(size)).collect();
            send.send(load).expect("the other thread lives");
        }
        drop(send);
        freeing.join().expect("a thread that ends") as f64 / start.elapsed().as_secs_f64()
    })
}
