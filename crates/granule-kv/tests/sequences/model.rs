//! Random operations, with faults, little memory and threads beside them, are what the same operations on vectors are.

use std::collections::HashSet;

use granule_device::{Bytes, FaultPlan, LiveCounts};
use granule_kv::{KvOptions, Sequence};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::support::{
    Model, Open, append, assert_holds, assert_reported, bank, cache, exact, is_host, is_reported, until,
};

#[derive(Clone, Debug)]
enum Op {
    Append(usize),
    Prepare(usize),
    Truncate(usize),
    Remove(usize, usize),
    Keep(usize, usize),
    Slide(usize, usize),
    Shift(usize, usize, i32),
    Fork,
    Copy(usize, usize),
    Clear,
    Trim,
    Drop,
    New,
}

/// Tokens are named in percent of how many there are.
fn ops() -> impl Strategy<Value = Op> {
    let percent = || 0..=100usize;
    prop_oneof![
        8 => (1..25usize).prop_map(Op::Append),
        1 => (1..25usize).prop_map(Op::Prepare),
        1 => percent().prop_map(Op::Truncate),
        4 => (percent(), percent()).prop_map(|(a, b)| Op::Remove(a, b)),
        1 => (percent(), percent()).prop_map(|(a, b)| Op::Keep(a, b)),
        1 => (0..6usize, 1..30usize).prop_map(|(first, last)| Op::Slide(first, last)),
        1 => (percent(), percent(), -9..9i32).prop_map(|(a, b, delta)| Op::Shift(a, b, delta)),
        3 => Just(Op::Fork),
        2 => (percent(), percent()).prop_map(|(a, b)| Op::Copy(a, b)),
        1 => Just(Op::Clear),
        2 => Just(Op::Trim),
        2 => Just(Op::Drop),
        2 => Just(Op::New),
    ]
}

const N_CTX: usize = 60;

/// How many random runs: on a GPU, or what stands for one, every look at a token is a call.
fn runner(open: Open<'_>, cases: u32) -> TestRunner {
    let cases = if is_host(&open(1)) { cases } else { 3 };
    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
}

pub(crate) fn like_vectors(open: Open<'_>) {
    let ops = proptest::collection::vec((ops(), 0..4usize, 0..30u64), 1..60);
    let setting = (1..=3usize, prop_oneof![Just(0), Just(4)], 12..50usize, 0..6usize);
    runner(open, 150).run(&(ops, setting), |(ops, setting)| run(open, ops, setting, exact())).unwrap();
}

/// With memory mapped ahead and parked, which nobody sees but for the time it takes.
pub(crate) fn like_vectors_with_a_mapper(open: Open<'_>) {
    let ops = proptest::collection::vec((ops(), 0..4usize, 0..30u64), 1..60);
    let setting = (1..=3usize, prop_oneof![Just(0), Just(4)], 20..50usize, 0..6usize);
    let options = KvOptions::new().ahead(10).parked(Bytes::MAX);
    runner(open, 100).run(&(ops, setting), |(ops, setting)| run(open, ops, setting, options)).unwrap();
}

fn run(
    open: Open<'_>,
    ops: Vec<(Op, usize, u64)>,
    (layers_per_row, sinks, granules, cached): (usize, usize, usize, usize),
    options: KvOptions,
) -> Result<(), TestCaseError> {
    let is_exact = options.ahead == 0;
    let all = is_host(&open(1));
    let bank = bank(open, granules, cached);
    let device = bank.device().clone();
    let cache = cache(&bank, layers_per_row, sinks, options);
    let mut live: Vec<(Sequence, Model)> = Vec::new();
    let mut next = 0u32;
    for (op, which, k) in ops {
        let total = cache.memory();
        let bases: Vec<Vec<_>> = live.iter().map(|(sequence, _)| sequence.bases().collect()).collect();
        let count = live.len();
        let (which, before) = match live.len() {
            0 => (0, 0),
            some => (which % some, live[which % some].1.len()),
        };
        let span = |a: usize, b: usize| a.min(b) * before / 100..a.max(b) * before / 100;
        let guard = device.inject_fault(FaultPlan::nth(k));
        let done = match (op.clone(), live.get_mut(which)) {
            (Op::New, _) if count < 4 => {
                cache.sequence(N_CTX).map(|sequence| live.push((sequence, Model::default())))
            }
            (_, None) | (Op::New, _) => Ok(()),
            (Op::Append(n), Some((sequence, model))) => {
                let ids: Vec<u32> = (next..next + n as u32).collect();
                next += n as u32;
                append(sequence, model, &ids)
            }
            (Op::Prepare(n), Some((sequence, _))) => sequence.prepare(n).map(|_| ()),
            (Op::Truncate(a), Some((sequence, model))) => {
                model.remove(span(a, 100));
                sequence.truncate(model.len())
            }
            (Op::Remove(a, b), Some((sequence, model))) => {
                model.remove(span(a, b));
                sequence.remove(span(a, b))
            }
            (Op::Keep(a, b), Some((sequence, model))) => {
                model.keep(span(a, b));
                sequence.keep(span(a, b))
            }
            (Op::Slide(first, last), Some((sequence, model))) => {
                if first + last < before {
                    model.remove(first..before - last);
                }
                sequence.slide(first, last)
            }
            (Op::Shift(a, b, delta), Some((sequence, model))) => {
                model.shift(span(a, b), delta);
                sequence.shift(span(a, b), delta)
            }
            (Op::Fork | Op::Copy(..), _) if count >= 4 => Ok(()),
            (Op::Fork, Some((sequence, model))) => {
                let model = model.clone();
                sequence.fork().map(|fork| live.push((fork, model)))
            }
            (Op::Copy(a, b), Some((sequence, model))) => {
                let mut model = model.clone();
                model.keep(span(a, b));
                sequence.copy(span(a, b)).map(|copy| live.push((copy, model)))
            }
            (Op::Clear, Some((sequence, model))) => {
                model.keep(0..0);
                sequence.clear();
                Ok(())
            }
            (Op::Trim, Some((sequence, _))) => sequence.trim().map(|_| ()),
            (Op::Drop, Some(_)) => {
                live.swap_remove(which);
                Ok(())
            }
        };
        drop(guard);
        if let Err(error) = &done {
            // Only growth, sharing and trimming can fail, on their way too; who needs memory may have got what is spare.
            let grew = live.get(which).is_some_and(|(_, model)| model.len() != before);
            let now = cache.memory();
            let same = now.used == total.used && now.shared == total.shared && now.held <= total.held;
            prop_assert!(grew || !is_exact || same, "{op:?}: {error}");
            prop_assert_eq!(live.len(), count);
            let same = |((sequence, _), bases): (&(Sequence, Model), &Vec<_>)| {
                sequence.bases().eq(bases.iter().copied())
            };
            prop_assert!(live.iter().zip(&bases).all(same));
        }
        // A GPU is slow to be looked at token by token.
        let seen = if all { 0..live.len() } else { which.min(live.len())..(which + 1).min(live.len()) };
        live[seen].iter().for_each(|(sequence, model)| assert_holds(sequence, model));
        let sequences = live.iter().map(|(sequence, _)| sequence);
        if is_exact {
            assert_reported(&cache, sequences);
        } else {
            until("a moment in which nothing is being mapped", || is_reported(&cache, sequences.clone()));
        }
        let all: HashSet<_> = live.iter().flat_map(|(sequence, _)| sequence.bases()).collect();
        prop_assert_eq!(all.len(), live.len() * cache.layout().groups());
    }
    live.iter().for_each(|(sequence, model)| assert_holds(sequence, model));
    drop(live);
    cache.trim();
    prop_assert_eq!(bank.stats().held, Bytes::ZERO);
    drop(cache);
    bank.trim();
    prop_assert_eq!(device.live(), LiveCounts::default());
    Ok(())
}
