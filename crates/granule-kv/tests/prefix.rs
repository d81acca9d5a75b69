//! The prefix cache on a small bank: what was computed once is found again, given back under pressure, and never something else.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use granule_bank::Bank;
use granule_device::{Bytes, FaultPlan, LiveCounts};
use granule_kv::{Hit, Identity, KvCache, PrefixCache, PrefixKey, PrefixOptions, Sequence};
use proptest::prelude::*;
use support::{GRANULE, append, bank, cache, holds, sequence};

const N_CTX: usize = 400;

fn key(cache: &KvCache) -> PrefixKey {
    key_of(cache, b"model")
}

fn key_of(cache: &KvCache, model: &[u8]) -> PrefixKey {
    let identity = Identity { model: model.to_vec(), ..Identity::default() };
    PrefixKey::new(&identity, cache.layout(), N_CTX)
}

fn prompt(seed: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| seed * 1000 + i).collect()
}

/// Computes a prompt, remembers it and ends the sequence.
fn remember(prefixes: &PrefixCache, cache: &KvCache, tokens: &[u32]) -> bool {
    let mut one = sequence(cache, N_CTX, tokens).unwrap();
    prefixes.insert(&key(cache), tokens, &mut one).unwrap()
}

/// How much of the tokens is remembered, counted as no use.
fn known(prefixes: &PrefixCache, cache: &KvCache, tokens: &[u32]) -> usize {
    prefixes.pin(&key(cache), tokens).map_or(0, |(_, len)| len)
}

fn nothing_is_left(bank: Bank) {
    let device = bank.device().clone();
    assert_eq!(bank.stats().held, Bytes::ZERO);
    drop(bank);
    assert_eq!(device.live(), LiveCounts::default());
}

#[test]
fn a_finished_prompt_is_found_again_after_others_came_and_went() {
    for layers_per_row in 1..=3 {
        let bank = bank(400);
        let cache = cache(&bank, layers_per_row);
        let prefixes = PrefixCache::new(&bank, PrefixOptions::new());
        let tokens = prompt(1, 100);
        assert!(remember(&prefixes, &cache, &tokens));
        for seed in 2..6 {
            sequence(&cache, N_CTX, &prompt(seed, 150)).unwrap();
        }
        let held = prefixes.stats().held;
        let asked = [&tokens[..70], &prompt(9, 30)].concat();
        let Hit { mut sequence, matched } = prefixes.lookup(&key(&cache), &asked).unwrap().unwrap();
        assert_eq!(matched, 70);
        assert!(holds(&sequence, &tokens[..70]));
        assert_eq!(sequence.bytes_copied(), Bytes::ZERO);
        // It goes on by itself, and what is remembered stays.
        let mut so_far = tokens[..70].to_vec();
        append(&mut sequence, &mut so_far, &prompt(9, 30)).unwrap();
        assert!(holds(&sequence, &asked));
        drop(sequence);
        let Hit { sequence, matched } = prefixes.lookup(&key(&cache), &tokens).unwrap().unwrap();
        assert_eq!(matched, 100);
        assert!(holds(&sequence, &tokens));
        drop(sequence);
        assert!(prefixes.lookup(&key(&cache), &prompt(5, 20)).unwrap().is_none());
        let stats = prefixes.stats();
        assert_eq!((stats.hits, stats.misses, stats.tokens_saved), (2, 1, 170));
        assert_eq!((stats.entries, stats.tokens, stats.inserted, stats.held), (1, 100, 1, held));
        assert_eq!(prefixes.clear(), held);
        drop((prefixes, cache));
        nothing_is_left(bank);
    }
}

#[test]
fn remembering_copies_nothing_and_the_sequence_goes_on() {
    let bank = bank(400);
    let cache = cache(&bank, 3);
    let prefixes = PrefixCache::new(&bank, PrefixOptions::new());
    let mut tokens = prompt(1, 50);
    let mut one = sequence(&cache, N_CTX, &tokens).unwrap();
    let held = bank.stats().held;
    assert!(prefixes.insert(&key(&cache), &tokens, &mut one).unwrap());
    assert_eq!((bank.stats().held, prefixes.stats().held), (held, held));
    append(&mut one, &mut tokens, &prompt(2, 50)).unwrap();
    assert!(one.bytes_copied() <= Bytes::from_usize(GRANULE));
    assert!(prefixes.insert(&key(&cache), &tokens, &mut one).unwrap());
    // Nothing new in either: known already, and none at all.
    assert!(prefixes.insert(&key(&cache), &tokens[..80], &mut one).unwrap());
    assert!(prefixes.insert(&key(&cache), &[], &mut one).unwrap());
    // The shorter one is found in the longer one.
    assert_eq!((prefixes.stats().entries, prefixes.stats().inserted), (1, 2));
    for len in [20, 50, 51, 100] {
        let hit = prefixes.lookup(&key(&cache), &tokens[..len]).unwrap().unwrap();
        assert!(hit.matched == len && holds(&hit.sequence, &tokens[..len]));
    }
    let more = prompt(1, 120);
    assert!(matches!(
        prefixes.insert(&key(&cache), &more, &mut one),
        Err(granule_kv::Error::PastEnd { to: 120, len: 100 })
    ));
}

#[test]
fn what_was_computed_in_sight_of_tokens_that_are_gone_is_not_remembered() {
    let bank = bank(400);
    let cache = cache(&bank, 3);
    let prefixes = PrefixCache::new(&bank, PrefixOptions::new());
    let mut tokens = prompt(1, 100);
    let mut one = sequence(&cache, N_CTX, &tokens).unwrap();
    one.remove(30..40).unwrap();
    tokens.drain(30..40);
    assert!(!prefixes.insert(&key(&cache), &tokens, &mut one).unwrap());
    assert_eq!(known(&prefixes, &cache, &tokens), 30);
    let hit = prefixes.lookup(&key(&cache), &tokens).unwrap().unwrap();
    assert!(hit.matched == 30 && holds(&hit.sequence, &tokens[..30]));
    assert_eq!(hit.sequence.position(), 30);
    assert!(prefixes.insert(&key(&cache), &tokens[..30], &mut one).unwrap());
    one.keep(10..90).unwrap();
    assert!(!prefixes.insert(&key(&cache), &tokens[10..], &mut one).unwrap());
    assert_eq!(prefixes.stats().inserted, 1);
}

#[test]
fn whatever_changes_the_bytes_is_another_key() {
    let bank = bank(400);
    let cache = cache(&bank, 3);
    let prefixes = PrefixCache::new(&bank, PrefixOptions::new());
    let tokens = prompt(1, 20);
    let mut one = sequence(&cache, N_CTX, &tokens).unwrap();
    prefixes.insert(&key_of(&cache, b"model"), &tokens, &mut one).unwrap();
    let part = |model: &[u8], rope: &[u8], transform: &[u8]| Identity {
        model: model.to_vec(),
        rope: rope.to_vec(),
        transform: transform.to_vec(),
    };
    let other_layout = support::layout(cache.layout().k_type(), cache.layout().v_type(), 2);
    let others = [
        PrefixKey::new(&part(b"other", b"", b""), cache.layout(), N_CTX),
        PrefixKey::new(&part(b"mode", b"l", b""), cache.layout(), N_CTX),
        PrefixKey::new(&part(b"model", b"r", b""), cache.layout(), N_CTX),
        PrefixKey::new(&part(b"model", b"", b"t"), cache.layout(), N_CTX),
        PrefixKey::new(&part(b"model", b"", b""), &other_layout, N_CTX),
        PrefixKey::new(
            &part(b"model", b"", b""),
            &support::layout(cache.layout().v_type(), cache.layout().k_type(), 3),
            N_CTX,
        ),
    ];
    for other in &others {
        assert!(prefixes.lookup(other, &tokens).unwrap().is_none());
    }
    for other in &others[4..] {
        let refused = prefixes.insert(other, &tokens, &mut one);
        assert!(matches!(refused, Err(granule_kv::Error::OtherKey)));
    }
    assert!(prefixes.lookup(&key(&cache), &tokens).unwrap().is_some());
    // The size of the context makes no difference, but for what fits into it.
    for (n_ctx, matched) in [(N_CTX + 1, 20), (12, 12)] {
        let identity = Identity { model: b"model".to_vec(), ..Identity::default() };
        let hit =
            prefixes.lookup(&PrefixKey::new(&identity, cache.layout(), n_ctx), &tokens).unwrap().unwrap();
        assert_eq!((hit.matched, hit.sequence.n_ctx()), (matched, n_ctx));
        assert!(holds(&hit.sequence, &tokens[..matched]));
    }
}

#[test]
fn pressure_takes_the_least_recently_used_and_neither_the_pinned_nor_what_is_in_use() {
    let bank = bank(60);
    let cache = cache(&bank, 3);
    let prefixes = PrefixCache::new(&bank, PrefixOptions::new());
    let prompts: Vec<_> = (1..=5).map(|seed| prompt(seed, 60)).collect();
    prompts.iter().for_each(|tokens| assert!(remember(&prefixes, &cache, tokens)));
    let each = prefixes.stats().held.get() / 5;
    let (pinned, len) = prefixes.pin(&key(&cache), &prompts[0]).unwrap();
    assert_eq!(len, 60);
    let in_flight = prefixes.lookup(&key(&cache), &prompts[1]).unwrap().unwrap();
    // Used just now, after the fourth and the fifth.
    drop(prefixes.lookup(&key(&cache), &prompts[2]).unwrap());
    let left = || (0..5).map(|i| known(&prefixes, &cache, &prompts[i]) > 0).collect::<Vec<_>>();
    // Somebody else needs more than is free, by one granule.
    let free = bank.stats().budget.get() - bank.stats().held.get();
    let owner = granule_bank::Owner::new("somebody");
    let granules = |bytes: u64| usize::try_from(bytes / GRANULE as u64).unwrap();
    let first = bank.take(&owner, granules(free) + 1).unwrap();
    assert_eq!(prefixes.stats().evicted, 1);
    let second = bank.take(&owner, granules(each)).unwrap();
    assert_eq!(prefixes.stats().evicted, 2);
    assert_eq!(left(), [true, true, true, false, false]);
    // `left` has used the third, which is all that can go now.
    let third = bank.take(&owner, granules(each)).unwrap();
    assert_eq!(left(), [true, true, false, false, false]);
    assert!(bank.take(&owner, granules(2 * each)).is_err());
    assert!(holds(&in_flight.sequence, &prompts[1]));
    drop((pinned, in_flight));
    let fourth = bank.take(&owner, granules(2 * each)).unwrap();
    assert_eq!((prefixes.stats().entries, prefixes.stats().held), (0, Bytes::ZERO));
    drop((first, second, third, fourth, prefixes, cache));
    nothing_is_left(bank);
}

#[test]
fn limits_hold() {
    let bank = bank(400);
    let cache = cache(&bank, 3);
    let few = PrefixCache::new(&bank, PrefixOptions::new().entries(2));
    (1..=3).for_each(|seed| assert!(remember(&few, &cache, &prompt(seed, 60))));
    assert_eq!((few.stats().entries, few.stats().evicted), (2, 1));
    assert_eq!([1, 2, 3].map(|seed| known(&few, &cache, &prompt(seed, 60))), [0, 60, 60]);
    let _both = [2, 3].map(|seed| few.pin(&key(&cache), &prompt(seed, 60)).unwrap());
    assert!(!remember(&few, &cache, &prompt(4, 60)));
    assert_eq!((few.stats().entries, known(&few, &cache, &prompt(4, 60))), (2, 0));

    let each = few.stats().held.get() / 2;
    let small = PrefixCache::new(&bank, PrefixOptions::new().bytes(Bytes::new(2 * each)));
    (1..=5).for_each(|seed| assert!(remember(&small, &cache, &prompt(seed, 60))));
    assert_eq!((small.stats().entries, small.stats().held), (2, Bytes::new(2 * each)));
    assert!(!remember(&small, &cache, &prompt(6, 200)));
    assert_eq!(small.stats().entries, 2);
}

#[test]
fn a_fault_at_any_call_changes_nothing() {
    let bank = bank(400);
    let cache = cache(&bank, 2);
    let prefixes = PrefixCache::new(&bank, PrefixOptions::new());
    let old = prompt(1, 60);
    remember(&prefixes, &cache, &old);
    let tokens = prompt(2, 60);
    let mut one = sequence(&cache, N_CTX, &tokens).unwrap();
    let before = (bank.stats().held, bank.device().live());
    for nth in 1.. {
        let fault = bank.device().inject_fault(FaultPlan::nth(nth));
        let inserted = prefixes.insert(&key(&cache), &tokens, &mut one);
        drop(fault);
        assert!(holds(&one, &tokens));
        if inserted.is_ok() {
            assert!(nth > 1);
            break;
        }
        assert_eq!((bank.stats().held, bank.device().live()), before);
        assert_eq!((prefixes.stats().entries, known(&prefixes, &cache, &tokens)), (1, 0));
    }
    drop(one);
    let before = (bank.stats().held, bank.device().live());
    for nth in 1.. {
        let fault = bank.device().inject_fault(FaultPlan::nth(nth));
        let found = prefixes.lookup(&key(&cache), &old[..30]);
        drop(fault);
        if let Ok(found) = found {
            assert!(nth > 1 && holds(&found.unwrap().sequence, &old[..30]));
            break;
        }
        assert_eq!((bank.stats().held, bank.device().live()), before);
    }
    assert!(prefixes.clear() > Bytes::ZERO);
    drop((prefixes, cache));
    nothing_is_left(bank);
}

/// What a sequence has been asked to do.
#[derive(Clone, Debug)]
enum Op {
    /// Ends a sequence that began as asked, remembered or not.
    Finish(Vec<u32>, bool),
    Lookup(Vec<u32>),
    Pin(Vec<u32>),
    Unpin,
    /// Ends the oldest sequence that goes on.
    Drop,
    Clear,
    /// Somebody takes as many granules as there are, and gives them back.
    Press,
    Fault(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    // Few tokens, many times each: prefixes share beginnings, and a granule holds some of them.
    let tokens = || prop::collection::vec((0..3u32, 1..25usize), 1..5);
    let tokens = move || {
        tokens().prop_map(|runs| {
            runs.into_iter().flat_map(|(t, n)| std::iter::repeat_n(t, n)).collect::<Vec<_>>()
        })
    };
    let op = prop_oneof![
        6 => (tokens(), prop::bool::weighted(0.8)).prop_map(|(tokens, keep)| Op::Finish(tokens, keep)),
        4 => tokens().prop_map(Op::Lookup),
        1 => tokens().prop_map(Op::Pin),
        1 => Just(Op::Unpin),
        3 => Just(Op::Drop),
        1 => Just(Op::Clear),
        2 => Just(Op::Press),
        2 => (1..12u64).prop_map(Op::Fault),
    ];
    prop::collection::vec(op, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..Default::default() })]

    /// Whatever happens, what is found is what was asked for, and no memory is lost.
    #[test]
    fn it_never_answers_other_tokens_and_loses_nothing(
        ops in ops(), layers_per_row in 1..=3usize, entries in 1..6usize, budget in 20..80u64,
    ) {
        let bank = bank(budget);
        let cache = cache(&bank, layers_per_row);
        let prefixes = PrefixCache::new(&bank, PrefixOptions::new().entries(entries).least(1));
        let key = key(&cache);
        let mut remembered: Vec<Vec<u32>> = Vec::new();
        let mut live: Vec<(Sequence, Vec<u32>)> = Vec::new();
        let mut pins = Vec::new();
        let mut fault = None;
        for op in ops {
            match op {
                Op::Finish(tokens, keep) => {
                    // As an engine does: what is known is not computed again.
                    let found = prefixes.lookup(&key, &tokens[..tokens.len() - 1]).ok().flatten();
                    let mut one = match found {
                        Some(hit) => hit.sequence,
                        None => match cache.sequence(N_CTX) { Ok(one) => one, Err(_) => continue },
                    };
                    let (known, rest) = tokens.split_at(one.len());
                    let mut so_far = known.to_vec();
                    if append(&mut one, &mut so_far, rest).is_err() {
                        prop_assert!(holds(&one, &so_far));
                        continue;
                    }
                    if keep && prefixes.insert(&key, &tokens, &mut one).is_ok_and(|kept| kept) {
                        remembered.push(tokens.clone());
                    }
                    live.push((one, tokens));
                }
                Op::Lookup(tokens) => if let Ok(Some(Hit { sequence, matched })) = prefixes.lookup(&key, &tokens) {
                    let common = |known: &Vec<u32>| known.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
                    prop_assert!(matched > 0 && remembered.iter().any(|known| common(known) >= matched));
                    prop_assert!(holds(&sequence, &tokens[..matched]));
                    live.push((sequence, tokens[..matched].to_vec()));
                },
                Op::Pin(tokens) => pins.extend(prefixes.pin(&key, &tokens).map(|(pin, len)| (pin, tokens[..len].to_vec()))),
                Op::Unpin => drop(pins.pop()),
                Op::Drop => if !live.is_empty() {
                    live.remove(0);
                },
                Op::Clear => { prefixes.clear(); }
                Op::Press => {
                    let owner = granule_bank::Owner::new("somebody");
                    let _ = bank.take(&owner, usize::try_from(budget).unwrap());
                }
                Op::Fault(nth) => {
                    drop(fault.take());
                    fault = Some(bank.device().inject_fault(FaultPlan::nth(nth)));
                }
            }
            for (one, tokens) in &live {
                prop_assert!(holds(one, tokens));
            }
            for (_, tokens) in &pins {
                let still = prefixes.pin(&key, tokens).map(|(_, len)| len);
                prop_assert_eq!(still, Some(tokens.len()));
            }
            let stats = prefixes.stats();
            prop_assert!(stats.entries <= entries && stats.held <= bank.stats().held);
        }
        drop((fault, live, pins));
        prefixes.clear();
        prop_assert_eq!((prefixes.stats().entries, prefixes.stats().held), (0, Bytes::ZERO));
        drop((prefixes, cache));
        nothing_is_left(bank);
    }
}

#[test]
fn many_threads_share_one() {
    let bank = bank(120);
    let cache = cache(&bank, 3);
    let prefixes = PrefixCache::new(&bank, PrefixOptions::new());
    std::thread::scope(|scope| {
        for thread in 0..4u32 {
            let (bank, cache, prefixes) = (&bank, &cache, &prefixes);
            scope.spawn(move || {
                for round in 0..60u32 {
                    let tokens = prompt((thread + round) % 5, 40 + round % 30);
                    let found = prefixes.lookup(&key(cache), &tokens).unwrap();
                    let mut one = match found {
                        Some(hit) => hit.sequence,
                        None => cache.sequence(N_CTX).unwrap(),
                    };
                    assert!(holds(&one, &tokens[..one.len()]));
                    let (known, rest) = tokens.split_at(one.len());
                    let mut so_far = known.to_vec();
                    if append(&mut one, &mut so_far, rest).is_ok() {
                        let _ = prefixes.insert(&key(cache), &tokens, &mut one);
                    }
                    if round % 7 == thread {
                        let _ = bank.take(&granule_bank::Owner::new("somebody"), 100);
                    }
                }
            });
        }
    });
    assert!(prefixes.stats().hits > 0);
    prefixes.clear();
    drop((prefixes, cache));
    nothing_is_left(bank);
}
