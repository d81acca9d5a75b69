//! The model against naive twins: random programs on streams, with every wait they need and with one missing.

use super::queue::{Action, End};
use super::random::Random;
use super::report::Kind;
use super::{Call, Caller, Mode, Simulation};
use crate::code::Code;
use crate::config::Config;
use crate::emulator::Kernels;
use crate::machine::Extent;

const LEN: u64 = 64;

/// A machine with a context, and somebody who calls.
struct Bench {
    sim: Simulation,
    context: u64,
}

impl Bench {
    fn new(seed: u64) -> Bench {
        let config = Config { seed, print: false, memory: 1 << 20, ..Config::default() };
        let mut sim = Simulation::new(config, Kernels::default()).unwrap();
        let call = Call { number: 0, name: "cuDevicePrimaryCtxRetain" };
        let context = sim.retain_primary(&Caller { call, thread: 1, context: None }, 0).unwrap();
        Bench { sim, context }
    }

    fn caller(&mut self, name: &'static str) -> Caller {
        let (call, _) = self.sim.calls.enter(name);
        Caller { call, thread: 1, context: Some(self.context) }
    }

    fn alloc(&mut self) -> u64 {
        let caller = self.caller("cuMemAlloc");
        self.sim.allocate(&caller, LEN).unwrap()
    }

    fn stream(&mut self, free: bool) -> u64 {
        let caller = self.caller("cuStreamCreate");
        self.sim.create_stream(&caller, free, 0).unwrap()
    }

    fn bytes(&self, at: u64) -> Vec<u8> {
        self.sim.memory.around(at).unwrap().extent.load()
    }

    fn kinds(&mut self) -> Vec<Kind> {
        let kinds = self.sim.reports.list().iter().map(|r| r.kind).collect();
        self.sim.reports.clear();
        kinds
    }
}

/// An operation of a random program: which stream, what it reads (nothing: it fills), what it writes.
#[derive(Clone, Copy, Debug)]
struct Step {
    stream: usize,
    from: Option<usize>,
    to: usize,
}

impl Step {
    fn conflicts(&self, other: &Step) -> bool {
        self.to == other.to || self.from == Some(other.to) || other.from == Some(self.to)
    }
}

/// For each step the earlier steps that it must wait for: the naive twin of everything that orders streams.
fn orders(steps: &[Step], waits: &[Vec<usize>]) -> Vec<Vec<bool>> {
    let mut before = vec![vec![false; steps.len()]; steps.len()];
    for n in 0..steps.len() {
        let same = (0..n).rev().find(|&m| steps[m].stream == steps[n].stream);
        for &m in waits[n].iter().chain(&same) {
            let earlier = before[m].clone();
            before[n].iter_mut().zip(earlier).for_each(|(mine, theirs)| *mine |= theirs);
            before[n][m] = true;
        }
    }
    before
}

/// Runs the steps with the given waits; the bytes of all buffers afterwards, and the kinds of reports.
fn run(
    seed: u64,
    buffers: usize,
    streams: usize,
    steps: &[Step],
    waits: &[Vec<usize>],
) -> (Vec<Vec<u8>>, Vec<Kind>) {
    let mut bench = Bench::new(seed);
    let buffers: Vec<u64> = (0..buffers).map(|_| bench.alloc()).collect();
    let streams: Vec<u64> = (0..streams).map(|_| bench.stream(true)).collect();
    let mut events = Vec::new();
    for (n, step) in steps.iter().enumerate() {
        let stream = streams[step.stream];
        for &earlier in &waits[n] {
            let caller = bench.caller("cuStreamWaitEvent");
            bench.sim.wait_event(&caller, stream, events[earlier]).unwrap();
        }
        let action = match step.from {
            None => Action::Fill { to: buffers[step.to], len: LEN, pattern: vec![n as u8] },
            Some(from) => {
                Action::Copy { to: End::Known(buffers[step.to]), from: End::Known(buffers[from]), len: LEN }
            }
        };
        let caller = bench.caller("cuMemcpyAsync");
        bench.sim.issue(&caller, stream, action, false).unwrap();
        let caller = bench.caller("cuEventRecord");
        let event = bench.sim.new_event(&caller, false).unwrap();
        bench.sim.record_event(&caller, event, stream).unwrap();
        events.push(event);
    }
    let caller = bench.caller("cuCtxSynchronize");
    bench.sim.synchronize_context(&caller).unwrap();
    let bytes = buffers.iter().map(|&at| bench.bytes(at)).collect();
    (bytes, bench.kinds())
}

#[test]
fn a_race_is_reported_exactly_where_a_conflict_has_no_order_and_otherwise_every_order_gives_the_same_bytes() {
    let mut random = Random::new(99);
    let (mut racy, mut clean) = (0, 0);
    for seed in 0..200 {
        let (buffers, streams) = (4, 3);
        let mut steps: Vec<Step> = Vec::new();
        let mut waits: Vec<Vec<usize>> = Vec::new();
        for n in 0..16 {
            let to = random.below(buffers);
            let from = Some(random.below(buffers)).filter(|&f| f != to && random.coin());
            let step = Step { stream: random.below(streams), from, to };
            let needed = (0..n).filter(|&m| steps[m].conflicts(&step) && steps[m].stream != step.stream);
            // Now and then a wait is forgotten, with or without consequence.
            waits.push(needed.filter(|_| random.below(40) != 0).collect());
            steps.push(step);
        }
        let before = orders(&steps, &waits);
        let unordered = (0..16).any(|n| (0..n).any(|m| steps[m].conflicts(&steps[n]) && !before[n][m]));
        let (bytes, kinds) = run(seed, buffers, streams, &steps, &waits);
        assert_eq!(kinds.contains(&Kind::StreamRace), unordered, "seed {seed}: {steps:?} {waits:?}");
        assert!(kinds.iter().all(|&k| k == Kind::StreamRace));
        if !unordered {
            let mut expected = vec![vec![0xa5; LEN as usize]; buffers];
            for (n, step) in steps.iter().enumerate() {
                expected[step.to] =
                    step.from.map_or_else(|| vec![n as u8; LEN as usize], |from| expected[from].clone());
            }
            assert_eq!(bytes, expected, "seed {seed}");
        }
        if unordered { racy += 1 } else { clean += 1 }
    }
    assert!(racy > 30 && clean > 30, "{racy} racy and {clean} clean programs");
}

#[test]
fn the_same_seed_gives_the_same_schedule() {
    let steps = [Step { stream: 0, from: None, to: 0 }, Step { stream: 1, from: None, to: 0 }];
    let waits = [vec![], vec![]];
    let outcome = |seed| run(seed, 1, 2, &steps, &waits).0[0][0];
    let first: Vec<u8> = (0..32).map(outcome).collect();
    assert_eq!(first, (0..32).map(outcome).collect::<Vec<_>>());
    assert!(first.contains(&0) && first.contains(&1), "both orders come up");
}

#[test]
fn a_copy_between_host_buffers_and_back_is_exact() {
    let mut bench = Bench::new(1);
    let (at, stream) = (bench.alloc(), bench.stream(true));
    let bytes: Vec<u8> = (0..LEN as u8).collect();
    let back = vec![0_u8; LEN as usize];
    // SAFETY: both buffers outlive the copies, which are done when this test's calls return.
    let [here, device, there] =
        unsafe { [bytes.as_ptr() as u64, at, back.as_ptr() as u64].map(|a| Extent::of_program(a, LEN)) };
    let caller = bench.caller("cuMemcpyHtoDAsync");
    bench.sim.copy(&caller, stream, (device, here), super::Manner::Async, false).unwrap();
    bench.sim.copy(&caller, stream, (there, device), super::Manner::Async, false).unwrap();
    assert_eq!(there.load(), bytes, "a copy to pageable memory waits");
    assert_eq!(bench.kinds(), []);
}

#[test]
fn which_thread_may_allocate_while_which_capture_runs() {
    // Mode of the capture, mode of the asking thread, whether it is the capturing one; and whether it may.
    let rules = [
        (Mode::Global, Mode::Global, true, false),
        (Mode::Global, Mode::Global, false, false),
        (Mode::Global, Mode::ThreadLocal, true, false),
        (Mode::Global, Mode::ThreadLocal, false, true),
        (Mode::Global, Mode::Relaxed, true, true),
        (Mode::ThreadLocal, Mode::Global, true, false),
        (Mode::ThreadLocal, Mode::Global, false, true),
        (Mode::ThreadLocal, Mode::ThreadLocal, true, false),
        (Mode::Relaxed, Mode::Global, true, true),
        (Mode::Relaxed, Mode::Global, false, true),
    ];
    for (capture, thread, own, may) in rules {
        let mut bench = Bench::new(1);
        let stream = bench.stream(true);
        let caller = bench.caller("cuStreamBeginCapture");
        bench.sim.begin_capture(&caller, stream, capture).unwrap();
        let asking = Caller { thread: if own { 1 } else { 2 }, ..bench.caller("cuMemAlloc") };
        bench.sim.exchange_mode(&asking, thread);
        let got = bench.sim.allocate(&asking, LEN);
        let expected = if may { Ok(()) } else { Err(Code::STREAM_CAPTURE_UNSUPPORTED) };
        assert_eq!(got.map(|_| ()), expected, "{capture:?} {thread:?} {own}");
        let ended = bench.sim.end_capture(&caller, stream).map(|nodes| nodes.len());
        let expected = if may { Ok(0) } else { Err(Code::STREAM_CAPTURE_INVALIDATED) };
        assert_eq!(ended, expected, "{capture:?} {thread:?} {own}");
    }
}

#[test]
fn a_written_red_zone_is_seen_at_the_free() {
    let mut bench = Bench::new(1);
    let at = bench.alloc();
    let a = bench.sim.memory.around(at).unwrap().clone();
    bench.sim.machine.extent(0, a.span.start + LEN + 3, 1).store(&[1]);
    let caller = bench.caller("cuMemFree");
    bench.sim.free(&caller, at).unwrap();
    let message = bench.sim.reports.list()[0].message.clone();
    assert!(
        message.contains("the byte 3 bytes behind the 64 bytes") && message.contains("cuMemFree #"),
        "{message}"
    );
    assert_eq!(bench.kinds(), [Kind::OutOfBounds]);
}

#[test]
fn a_context_that_goes_names_what_it_takes_along() {
    let mut bench = Bench::new(1);
    bench.alloc();
    bench.stream(true);
    let caller = bench.caller("cuDevicePrimaryCtxRelease");
    bench.sim.release_primary(&caller, 0).unwrap();
    let messages: Vec<_> = bench.sim.reports.list().iter().map(|r| r.message.clone()).collect();
    let expected = [
        "still held at cuDevicePrimaryCtxRelease #3: allocation of 64 bytes, made by cuMemAlloc #1",
        "still held at cuDevicePrimaryCtxRelease #3: stream, made by cuStreamCreate #2",
    ];
    assert_eq!(messages, expected);
    assert_eq!(bench.sim.held_things(), []);
}
