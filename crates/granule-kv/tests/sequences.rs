//! Sequences against a plain vector of tokens: random operations, faults at every call, sharing, growth and its costs.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::HashSet;
use std::num::NonZero;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, FaultPlan, HostOptions, LiveCounts};
use granule_kv::{Error, KvCache, KvLayout, KvMemory, KvShape, KvType, Sequence};
use granule_ops::{Threads, kv_store};
use proptest::prelude::*;

const GRANULE: usize = 4096;
const SHAPE: KvShape = KvShape { n_layers: 3, n_kv_heads: 2, head_dim: 10 };
const ELEMENTS: usize = 20;

fn bank(granules: u64, cache: u64) -> Bank {
    let granule = Bytes::from_usize(GRANULE);
    let options = HostOptions::new().granule(granule).capacity(granule.saturating_mul(granules));
    let device = Device::host_with(options).unwrap();
    Bank::new(device, BankOptions::new().cache(granule.saturating_mul(cache))).unwrap()
}

fn cache(bank: &Bank, layers_per_row: usize) -> KvCache {
    KvCache::new(bank, KvLayout::new(SHAPE, KvType::F32, KvType::F32, Some(layers_per_row)).unwrap())
}

/// What layer `layer` stores of a token: numbers that name token, layer, plane and element.
fn numbers(token: u32, layer: usize, values: bool) -> impl Iterator<Item = f32> {
    (0..ELEMENTS).map(move |i| (token as usize * 1000 + layer * 100 + usize::from(values) * 50 + i) as f32)
}

/// Appends tokens as an engine does.
fn append(sequence: &mut Sequence, tokens: &[u32]) -> Result<(), Error> {
    sequence.prepare(tokens.len())?;
    let threads = Threads::new(NonZero::<usize>::MIN).unwrap();
    for layer in 0..SHAPE.n_layers {
        let rows =
            |values| tokens.iter().flat_map(|&token| numbers(token, layer, values)).collect::<Vec<f32>>();
        kv_store(&threads, &mut sequence.rows_mut(layer)?, 0, &rows(false), &rows(true))?;
        let seen = sequence.view(layer, sequence.len() + tokens.len())?;
        assert_eq!(seen.len(), sequence.len() + tokens.len());
    }
    sequence.commit(tokens.len())
}

/// Asserts that the sequence holds exactly these tokens, in every layer.
fn assert_holds(sequence: &Sequence, tokens: &[u32]) {
    assert_eq!(sequence.len(), tokens.len());
    for layer in 0..SHAPE.n_layers {
        let view = sequence.view(layer, tokens.len()).unwrap();
        let (bytes, layout) = (view.segments()[0].rows.as_host().unwrap(), *view.layout());
        for (row, &token) in bytes.chunks_exact(layout.row_stride).zip(tokens) {
            for (plane, values) in [(layout.k_quants, false), (layout.v_quants, true)] {
                let stored = row[plane..plane + ELEMENTS * 4].chunks_exact(4);
                let stored = stored.map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap()));
                assert!(stored.eq(numbers(token, layer, values)), "token {token} of layer {layer}");
            }
        }
    }
}

/// The report of a cache, made from nothing but what its sequences say of themselves; and the bank agrees.
fn assert_reported<'a>(cache: &KvCache, sequences: impl Iterator<Item = &'a Sequence> + Clone) {
    let memory = cache.memory();
    let bank = cache.bank().stats();
    assert_eq!(memory.held, bank.held);
    assert!(bank.held.get() + bank.cached.get() <= bank.budget.get());
    let alone: u64 = sequences.clone().map(|s| s.memory().held.get() - s.memory().shared.get()).sum();
    assert_eq!(memory.held.get() - memory.shared.get(), alone);
    let used: u64 = sequences.map(|s| s.memory().used.get()).sum();
    assert_eq!(memory.used.get(), used);
    let live = cache.bank().device().live();
    assert_eq!(live.granules as u64 * GRANULE as u64, bank.held.get() + bank.cached.get());
}

#[test]
fn growth_neither_moves_nor_copies() {
    for layers_per_row in 1..=3 {
        let bank = bank(400, 0);
        let cache = cache(&bank, layers_per_row);
        let mut sequence = cache.sequence(1000).unwrap();
        assert_eq!(sequence.memory().held, Bytes::ZERO);
        let bases: Vec<_> = sequence.bases().collect();
        let mut tokens = Vec::new();
        for token in 0..1000 {
            append(&mut sequence, &[token]).unwrap();
            tokens.push(token);
            assert!(sequence.bases().eq(bases.iter().copied()));
            let expected = cache.layout().held_bytes(tokens.len(), bank.granule()).unwrap();
            assert_eq!((sequence.memory().held, bank.stats().held), (expected, expected));
            assert_eq!(
                sequence.memory().used,
                cache.layout().token_bytes().saturating_mul(tokens.len() as u64)
            );
        }
        assert_holds(&sequence, &tokens);
        assert_eq!(sequence.bytes_copied(), Bytes::ZERO);
        let full = append(&mut sequence, &[0]);
        assert!(matches!(full, Err(Error::ContextFull { requested: 1, len: 1000, n_ctx: 1000 })));
    }
}

#[test]
fn everything_goes_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<Sequence>();
    check::<KvCache>();
    check::<Bank>();
    check::<granule_bank::Range>();
    check::<granule_bank::Charge>();
    check::<Device>();
    check::<granule_device::Stream>();
    check::<granule_device::Region<granule_device::Buffer>>();
    check::<granule_device::MappedFile>();
}

#[test]
fn steady_decode_makes_no_device_call() {
    let bank = bank(400, 0);
    let cache = cache(&bank, 3);
    let mut sequence = cache.sequence(1000).unwrap();
    append(&mut sequence, &[0]).unwrap();
    let per_granule = sequence.prepared();
    let calls = bank.device().calls_made();
    (1..per_granule as u32).for_each(|token| append(&mut sequence, &[token]).unwrap());
    assert_eq!(bank.device().calls_made(), calls);
    append(&mut sequence, &[0]).unwrap();
    assert!(bank.device().calls_made() > calls);
}

#[test]
fn a_fork_shares_until_one_writes() {
    let bank = bank(100, 0);
    let cache = cache(&bank, 3);
    let mut parent = cache.sequence(200).unwrap();
    let mut tokens: Vec<u32> = (0..50).collect();
    append(&mut parent, &tokens).unwrap();
    let held = bank.stats().held;
    let mut fork = parent.fork().unwrap();
    assert_eq!(bank.stats().held, held);
    assert_eq!(fork.memory().shared, held);
    assert_eq!(parent.memory().shared, held);
    assert!(matches!(parent.rows_mut(0).unwrap().len(), 0), "what was prepared is shared now");

    let row = cache.layout().row_stride(0).get();
    let parting = 50 * row % GRANULE as u64;
    assert!(parting > 0);
    append(&mut fork, &[100]).unwrap();
    assert_eq!(fork.bytes_copied(), Bytes::new(parting), "only the granule in which the two part");
    assert_eq!(bank.stats().held, held.checked_add(bank.granule()).unwrap());
    append(&mut parent, &[200]).unwrap();
    assert_eq!(parent.bytes_copied(), Bytes::ZERO, "the last that has it needs no copy");
    assert_eq!(bank.stats().held, held.checked_add(bank.granule()).unwrap());

    let mut others = tokens.clone();
    tokens.push(200);
    others.push(100);
    assert_holds(&parent, &tokens);
    assert_holds(&fork, &others);
    drop(parent);
    assert_holds(&fork, &others);
    assert_eq!(bank.stats().held, held);
    assert_eq!(fork.memory().shared, Bytes::ZERO);
}

#[test]
fn a_cut_fork_writes_over_what_it_shares() {
    let bank = bank(100, 0);
    let cache = cache(&bank, 2);
    let mut parent = cache.sequence(200).unwrap();
    let tokens: Vec<u32> = (0..120).collect();
    append(&mut parent, &tokens).unwrap();
    let mut fork = parent.fork().unwrap();
    fork.truncate(10).unwrap();
    append(&mut fork, &[7, 8]).unwrap();
    assert_holds(&parent, &tokens);
    assert_holds(&fork, &[&tokens[..10], &[7, 8]].concat());
    assert_eq!(fork.bytes_copied(), cache.layout().token_bytes().saturating_mul(10));
    let freed = fork.trim().unwrap();
    assert_eq!(freed, fork_excess(&cache, 120, 12));
    parent.clear();
    append(&mut parent, &[1]).unwrap();
    assert_holds(&parent, &[1]);
    assert_holds(&fork, &[&tokens[..10], &[7, 8]].concat());
}

fn fork_excess(cache: &KvCache, had: usize, has: usize) -> Bytes {
    let held = |tokens| cache.layout().held_bytes(tokens, cache.bank().granule()).unwrap();
    held(had).checked_sub(held(has)).unwrap()
}

#[test]
fn clear_keeps_memory_and_trim_gives_it_back() {
    let bank = bank(100, 0);
    let cache = cache(&bank, 1);
    let mut sequence = cache.sequence(200).unwrap();
    append(&mut sequence, &(0..150).collect::<Vec<_>>()).unwrap();
    let held = bank.stats().held;
    sequence.clear();
    let calls = bank.device().calls_made();
    append(&mut sequence, &(7..157).collect::<Vec<_>>()).unwrap();
    assert_eq!((bank.stats().held, bank.device().calls_made()), (held, calls));
    sequence.truncate(1).unwrap();
    assert_eq!(bank.stats().held, held);
    sequence.trim().unwrap();
    assert_eq!(bank.stats().held, Bytes::from_usize(3 * GRANULE));
    assert_holds(&sequence, &[7]);
    sequence.clear();
    sequence.trim().unwrap();
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

#[test]
fn wrong_asks_are_refused() {
    let bank = bank(100, 0);
    let mut sequence = cache(&bank, 3).sequence(200).unwrap();
    append(&mut sequence, &[1, 2, 3]).unwrap();
    assert!(matches!(sequence.truncate(4), Err(Error::PastEnd { to: 4, len: 3 })));
    assert!(matches!(sequence.view(3, 1), Err(Error::NoSuchLayer { layer: 3, n_layers: 3 })));
    assert!(sequence.rows_mut(3).is_err());
    let beyond = sequence.prepared() + 1;
    assert!(matches!(sequence.view(0, beyond), Err(Error::NotPrepared { .. })));
    assert!(matches!(sequence.commit(beyond), Err(Error::NotPrepared { .. })));
    assert!(matches!(sequence.commit(usize::MAX), Err(Error::NotPrepared { .. })));
    assert!(matches!(sequence.prepare(usize::MAX), Err(Error::ContextFull { .. })));
    let mut none = cache(&bank, 3).sequence(0).unwrap();
    assert!(matches!(none.prepare(1), Err(Error::ContextFull { .. })));
    none.prepare(0).unwrap();
    assert_eq!(none.view(0, 0).unwrap().len(), 0);
}

#[test]
fn too_little_memory_is_an_error_and_changes_nothing() {
    let bank = bank(7, 0);
    let cache = cache(&bank, 1);
    let mut sequence = cache.sequence(1000).unwrap();
    append(&mut sequence, &[1, 2]).unwrap();
    let held = bank.stats().held;
    let refused = append(&mut sequence, &[3; 60]).unwrap_err();
    let Error::Bank(granule_bank::Error::OutOfMemory { owner, .. }) = refused else { panic!("{refused}") };
    assert_eq!(owner.name(), "kv");
    assert_eq!((bank.stats().held, sequence.len()), (held, 2));
    append(&mut sequence, &[3; 20]).unwrap();
    let never = sequence.prepare(900).unwrap_err();
    assert!(matches!(never, Error::Bank(granule_bank::Error::TooLarge { .. })), "{never}");
}

/// One script with growth, fork, private copies, cutting and trimming; the k-th call fails, for every k. The step at which it
/// strikes reports an error and has changed nothing, or it struck in a drop and nobody notices; then the step is done again.
#[test]
fn every_failing_call_changes_nothing() {
    type Step = fn(&mut Vec<Sequence>, &mut Vec<Vec<u32>>) -> Result<(), Error>;
    fn add(
        sequences: &mut [Sequence],
        models: &mut [Vec<u32>],
        which: usize,
        count: u32,
    ) -> Result<(), Error> {
        let start = models[which].len() as u32 * 3 + which as u32;
        let tokens: Vec<u32> = (start..start + count).collect();
        append(&mut sequences[which], &tokens)?;
        models[which].extend(tokens);
        Ok(())
    }
    fn fork(sequences: &mut Vec<Sequence>, models: &mut Vec<Vec<u32>>, which: usize) -> Result<(), Error> {
        let fork = sequences[which].fork()?;
        sequences.push(fork);
        models.push(models[which].clone());
        Ok(())
    }
    let steps: [Step; 10] = [
        |s, m| add(s, m, 0, 20),
        |s, m| fork(s, m, 0),
        |s, m| add(s, m, 1, 40),
        |s, m| add(s, m, 0, 1),
        |s, m| fork(s, m, 1),
        |s, m| {
            s[2].truncate(5)?;
            m[2].truncate(5);
            Ok(())
        },
        |s, _| s[2].trim().map(|_| ()),
        |s, m| add(s, m, 2, 2),
        |s, _| s[1].trim().map(|_| ()),
        |s, m| add(s, m, 1, 3),
    ];
    for (layers_per_row, cached) in [(1, 0), (2, 4), (3, 0)] {
        let mut struck = 0;
        for k in 1.. {
            let bank = bank(100, cached);
            let device = bank.device().clone();
            let cache = cache(&bank, layers_per_row);
            let mut sequences = vec![cache.sequence(100).unwrap()];
            let mut models = vec![Vec::new()];
            let guard = device.inject_fault(FaultPlan::nth(k));
            for step in steps {
                let before: Vec<(KvMemory, usize)> =
                    sequences.iter().map(|s| (s.memory(), s.prepared())).collect();
                let (fired, total) = (guard.fired(), cache.memory());
                if let Err(error) = step(&mut sequences, &mut models) {
                    assert!(guard.fired() && !fired, "{error}");
                    struck += 1;
                    let after: Vec<(KvMemory, usize)> =
                        sequences.iter().map(|s| (s.memory(), s.prepared())).collect();
                    assert_eq!(after, before, "k = {k}: {error}");
                    assert_eq!(cache.memory(), total);
                    step(&mut sequences, &mut models).unwrap();
                }
                sequences.iter().zip(&models).for_each(|(sequence, model)| assert_holds(sequence, model));
                assert_reported(&cache, sequences.iter());
            }
            drop(sequences);
            let fired = guard.fired();
            drop(guard);
            assert_eq!(bank.stats().held, Bytes::ZERO);
            bank.trim();
            assert_eq!(device.live(), LiveCounts::default());
            if !fired {
                break;
            }
        }
        assert!(struck > 20, "{struck} steps were struck");
    }
}

/// From the k-th call on all fail, undoing included: tokens and lengths are as they were, and once calls work again
/// everything goes on, and in the end nothing is left.
#[test]
fn nothing_is_lost_where_undoing_fails_too() {
    for layers_per_row in [1, 3] {
        for k in 1.. {
            let bank = bank(100, 2);
            let device = bank.device().clone();
            let cache = cache(&bank, layers_per_row);
            let mut parent = cache.sequence(100).unwrap();
            let mut tokens: Vec<u32> = (0..30).collect();
            append(&mut parent, &tokens).unwrap();
            let mut fork = parent.fork().unwrap();
            let guard = device.inject_fault(FaultPlan::from_nth(k));
            let mut second = fork.fork();
            let appended = append(&mut fork, &[7; 40]);
            let trimmed = parent.truncate(9).and_then(|()| parent.trim());
            assert!(second.is_ok() && appended.is_ok() && trimmed.is_ok() || guard.fired());
            let fired = guard.fired();
            assert_holds(&parent, &tokens[..9]);
            assert_holds(
                &fork,
                &if appended.is_ok() { [&tokens[..], &[7; 40]].concat() } else { tokens.clone() },
            );
            second.iter().for_each(|second| assert_holds(second, &tokens));
            drop(guard);
            append(&mut parent, &[5; 50]).unwrap();
            assert_holds(&parent, &[&tokens[..9], &[5; 50]].concat());
            fork.truncate(30).unwrap();
            append(&mut fork, &[6; 50]).unwrap();
            tokens.extend([6; 50]);
            assert_holds(&fork, &tokens);
            if let Ok(second) = &mut second {
                append(second, &[8]).unwrap();
                assert_holds(second, &[&tokens[..30], &[8]].concat());
            }
            drop((parent, fork, second));
            assert_eq!(bank.stats().held, Bytes::ZERO);
            bank.trim();
            assert_eq!(device.live(), LiveCounts::default());
            if !fired {
                break;
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Append(usize, usize),
    Truncate(usize, usize),
    Fork(usize),
    Clear(usize),
    Trim(usize),
    Drop(usize),
    New,
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..5usize, 1..45usize).prop_map(|(which, count)| Op::Append(which, count)),
        2 => (0..5usize, 0..100usize).prop_map(|(which, percent)| Op::Truncate(which, percent)),
        3 => (0..5usize).prop_map(Op::Fork),
        1 => (0..5usize).prop_map(Op::Clear),
        1 => (0..5usize).prop_map(Op::Trim),
        1 => (0..5usize).prop_map(Op::Drop),
        1 => Just(Op::New),
    ]
}

const N_CTX: usize = 130;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Any sequence of operations, with faults and little memory, is what the same operations on vectors of tokens are.
    #[test]
    fn like_vectors(
        ops in proptest::collection::vec((ops(), 0..40u64), 1..50),
        layers_per_row in 1..=3usize,
        granules in 10..40u64,
        cached in 0..6u64,
    ) {
        let bank = bank(granules, cached);
        let device = bank.device().clone();
        let cache = cache(&bank, layers_per_row);
        let mut live: Vec<(Sequence, Vec<u32>)> = Vec::new();
        let mut next = 0u32;
        for (op, k) in ops {
            let guard = device.inject_fault(FaultPlan::nth(k));
            let total = cache.memory();
            let bases: Vec<Vec<_>> = live.iter().map(|(sequence, _)| sequence.bases().collect()).collect();
            let index = |which: usize| which % live.len().max(1);
            let done = match op {
                Op::Append(which, count) if !live.is_empty() => {
                    let which = index(which);
                    let (sequence, model) = &mut live[which];
                    let tokens: Vec<u32> = (next..next + count as u32).collect();
                    let done = append(sequence, &tokens);
                    if done.is_ok() {
                        next += count as u32;
                        model.extend(tokens);
                    }
                    prop_assert!(model.len() <= N_CTX);
                    done
                }
                Op::Truncate(which, percent) if !live.is_empty() => {
                    let which = index(which);
                    let (sequence, model) = &mut live[which];
                    let len = model.len() * percent / 100;
                    model.truncate(len);
                    sequence.truncate(len)
                }
                Op::Fork(which) if !live.is_empty() && live.len() < 5 => {
                    let which = index(which);
                    let model = live[which].1.clone();
                    live[which].0.fork().map(|fork| live.push((fork, model)))
                }
                Op::Clear(which) if !live.is_empty() => {
                    let which = index(which);
                    live[which].0.clear();
                    live[which].1.clear();
                    Ok(())
                }
                Op::Trim(which) if !live.is_empty() => {
                    let which = index(which);
                    live[which].0.trim().map(|_| ())
                }
                Op::Drop(which) if !live.is_empty() => {
                    let which = index(which);
                    live.swap_remove(which);
                    Ok(())
                }
                Op::New if live.len() < 5 => cache.sequence(N_CTX).map(|sequence| live.push((sequence, Vec::new()))),
                _ => Ok(()),
            };
            drop(guard);
            if done.is_err() {
                prop_assert_eq!(cache.memory(), total, "{:?}", done);
                prop_assert!(live.iter().zip(&bases).all(|((sequence, _), bases)| sequence.bases().eq(bases.iter().copied())));
            }
            live.iter().for_each(|(sequence, model)| assert_holds(sequence, model));
            assert_reported(&cache, live.iter().map(|(sequence, _)| sequence));
            let all: HashSet<_> = live.iter().flat_map(|(sequence, _)| sequence.bases()).collect();
            prop_assert_eq!(all.len(), live.len() * cache.layout().groups());
        }
        drop(live);
        prop_assert_eq!(bank.stats().held, Bytes::ZERO);
        bank.trim();
        prop_assert_eq!(device.live(), LiveCounts::default());
    }
}
