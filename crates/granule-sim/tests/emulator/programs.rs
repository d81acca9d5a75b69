//! Random programs against a naive oracle: the checked build reports a race exactly where two conflicting accesses exist
//! that no chain of meetings orders, whatever the order of threads.

use granule_sim::emulator_build::Mode;

use crate::library::{Param, Shape, library};

/// `Op` of `programs.cu`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Op {
    kind: u32,
    offset: u32,
    size: u32,
    mask: u32,
}

const READ: u32 = 1;
const WRITE: u32 = 2;
const UPDATE: u32 = 3;
const VOLATILE_READ: u32 = 4;
const SYNC_WARP: u32 = 5;
const SYNC_BLOCK: u32 = 6;

/// One whole warp and a part of one.
const THREADS: usize = 40;
const ROUNDS: usize = 6;
/// Accesses of a thread between two meetings, and the meeting.
const OPS: usize = ROUNDS * 3;

/// xorshift, for programs.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u32) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 33) as u32 % n
    }
}

/// A list for each thread of a block. Every lane of a mask meets the others in the same round.
fn program(random: &mut Random, rarity: u32) -> Vec<[Op; OPS]> {
    let mut threads = vec![[Op::default(); OPS]; THREADS];
    for round in 0..ROUNDS {
        let meetings = [0, 1].map(|_| random.below(5));
        let block = random.below(4) == 0;
        for (thread, ops) in threads.iter_mut().enumerate() {
            for op in &mut ops[round * 3..round * 3 + 2] {
                if random.below(rarity) != 0 {
                    continue;
                }
                let kind = [READ, READ, READ, WRITE, UPDATE, VOLATILE_READ][random.below(6) as usize];
                let size = if matches!(kind, READ | WRITE) { 1 << random.below(3) } else { 4 };
                *op = Op { kind, offset: random.below(16) / size * size, size, mask: 0 };
            }
            let lane = thread % 32;
            let mask = match meetings[thread / 32] {
                0 => u32::MAX,
                1 => 0xffff << (lane / 16 * 16),
                2 => 0x5555_5555 << (lane % 2),
                3 => 3 << (lane / 2 * 2),
                _ => 1 << lane,
            };
            let kind = if block { SYNC_BLOCK } else { SYNC_WARP };
            ops[round * 3 + 2] = Op { kind, offset: 0, size: 0, mask };
        }
    }
    threads
}

/// An access and what had happened before it: how many operations of each thread of its block.
struct Event {
    block: usize,
    thread: usize,
    index: usize,
    op: Op,
    before: Vec<usize>,
}

/// All accesses of a block. Meetings are in lockstep by construction, so one pass over the rounds is enough.
fn events(block: usize, program: &[[Op; OPS]]) -> Vec<Event> {
    let mut known = vec![vec![0; THREADS]; THREADS];
    let mut events = Vec::new();
    for index in 0..OPS {
        let now = known.clone();
        for (thread, ops) in program.iter().enumerate() {
            let op = ops[index];
            known[thread][thread] = index + 1;
            match op.kind {
                0 => {}
                SYNC_WARP | SYNC_BLOCK => {
                    let together = |other: usize| {
                        let in_mask = other / 32 == thread / 32 && op.mask >> (other % 32) & 1 == 1;
                        op.kind == SYNC_BLOCK || in_mask
                    };
                    for other in (0..THREADS).filter(|&other| together(other)) {
                        for third in 0..THREADS {
                            let theirs = if third == other { index + 1 } else { now[other][third] };
                            known[thread][third] = known[thread][third].max(theirs);
                        }
                    }
                }
                _ => events.push(Event { block, thread, index, op, before: now[thread].clone() }),
            }
        }
    }
    events
}

fn races(a: &Event, b: &Event) -> bool {
    let overlap = a.op.offset < b.op.offset + b.op.size && b.op.offset < a.op.offset + a.op.size;
    let writes = |event: &Event| matches!(event.op.kind, WRITE | UPDATE);
    let atomic = |event: &Event| matches!(event.op.kind, UPDATE | VOLATILE_READ);
    let ordered = a.block == b.block
        && (a.thread == b.thread || b.before[a.thread] > a.index || a.before[b.thread] > b.index);
    overlap && !ordered && (writes(a) || writes(b)) && !(atomic(a) && atomic(b))
}

fn any_race(events: &[Event]) -> bool {
    events.iter().enumerate().any(|(i, a)| events[..i].iter().any(|b| races(a, b)))
}

/// Compares the verdicts on many programs; answers how many of them race.
fn compare(blocks: usize, shared: bool, rarity: u32) -> usize {
    let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ u64::from(rarity));
    let mut racing = 0;
    for case in 0..PROGRAMS {
        let programs: Vec<_> = (0..blocks).map(|_| program(&mut random, rarity)).collect();
        let mut all: Vec<Event> = Vec::new();
        let mut expected = false;
        for (block, program) in programs.iter().enumerate() {
            let mine = events(block, program);
            expected |= any_race(&mine);
            all.extend(mine);
        }
        expected |= !shared && any_race(&all);
        racing += usize::from(expected);

        let ops: Vec<Op> = programs.concat().concat();
        let (mut memory, mut sums) = ([0_u32; 4], vec![0_u32; blocks * THREADS]);
        let memory = if shared { Param::from(0_u64) } else { Param::from(&mut memory[..]) };
        let params = [(&ops[..]).into(), (OPS as u32).into(), memory, (&mut sums[..]).into()];
        for seed in 0..3 {
            let shape = Shape::new(blocks as u32, THREADS as u32).shared(16).seed(seed);
            let got = library(Mode::Checked).run("run_program", shape, &params);
            let code = got.as_ref().map_or_else(|failure| failure.code, |()| 0);
            assert_eq!(code, if expected { 3 } else { 0 }, "program {case}, seed {seed}: {got:?}");
        }
    }
    racing
}

const PROGRAMS: usize = 400;

/// Both verdicts must be common, or the comparison says little.
fn common(racing: usize) {
    assert!((PROGRAMS / 8..PROGRAMS * 7 / 8).contains(&racing), "{racing} of {PROGRAMS} programs race");
}

#[test]
fn shared_memory_of_one_block() {
    common(compare(1, true, 40));
}

#[test]
fn shared_memory_of_two_blocks() {
    common(compare(2, true, 60));
}

#[test]
fn global_memory_of_one_block() {
    common(compare(1, false, 40));
}

#[test]
fn global_memory_of_three_blocks() {
    common(compare(3, false, 300));
}
