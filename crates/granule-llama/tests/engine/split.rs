//! Layers that are split over ranks: the same text as of one device, whatever has which heads.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, HostOptions};
use granule_kv::KvType;
use granule_llama::{CancelToken, Context, ContextOptions, Error, LoadOptions, Model, Placement};
use granule_quant::DType;
use granule_split::Shares;

use crate::support::make::{Made, Shape};
use crate::{argmax, context, distance, encode, greedy, load, options, precise, tales};

/// What sums in another order move a logit by.
const ORDER: f64 = 1e-2;
const PROMPT: &str = "Once upon a time the baker Mia and the sailor Leo lived near the harbor Eastwick.";

fn host_bank() -> Bank {
    let device = Device::host_with(HostOptions::new().capacity(Bytes::mib(512))).unwrap();
    Bank::new(device, BankOptions::new()).unwrap()
}

/// What is held and paid for.
fn used(bank: &Bank) -> Bytes {
    bank.stats().held
}

fn banks(n: usize) -> Vec<Bank> {
    (0..n).map(|_| host_bank()).collect()
}

/// All of a model's layers split in these shares, each rank in a bank of its own.
fn split(path: &Path, shares: &[u64], threads: usize) -> Result<Arc<Model>, Error> {
    let n_layers = granule_llama::ModelPlan::open(path)?.config().n_layers;
    let placement = Placement::new().split(&banks(shares.len()), Shares::ratio(shares)?, n_layers);
    let threads = NonZeroUsize::new(threads);
    Model::load(path, LoadOptions { placement: Some(placement), threads, ..precise() })
}

#[test]
fn ranks_say_what_one_device_says() {
    let whole = load(tales());
    let prompt = encode(&whole, PROMPT);
    for kv in [KvType::F16, KvType::Q8_0] {
        let mut alone = context(&whole, 256, 64, kv);
        let logits = alone.eval(&prompt).unwrap().to_vec();
        alone.clear().unwrap();
        let text = greedy(&mut alone, &prompt, 40);
        for shares in [&[1, 1][..], &[3, 1], &[1, 1, 1], &[1, 2, 1, 1]] {
            let model = split(tales(), shares, 2).unwrap();
            let mut ranks = context(&model, 256, 64, kv);
            let far = distance(ranks.eval(&prompt).unwrap(), &logits);
            assert!(far < ORDER, "{shares:?} {kv}: {far}");
            ranks.clear().unwrap();
            assert_eq!(greedy(&mut ranks, &prompt, 40), text, "{shares:?} {kv}");
        }
    }
}

/// The logits behind the prompt, as bits.
fn bits(model: &Arc<Model>, kv: KvType) -> Vec<u32> {
    let prompt = encode(model, PROMPT);
    context(model, 128, 32, kv).eval(&prompt).unwrap().iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn the_same_split_has_the_same_bits_with_any_number_of_threads() {
    for shares in [&[1, 1][..], &[1, 2, 1]] {
        let once = bits(&split(tales(), shares, 2).unwrap(), KvType::F16);
        for threads in [1, 2, 8] {
            let model = split(tales(), shares, threads).unwrap();
            for _ in 0..3 {
                assert!(bits(&model, KvType::F16) == once, "{shares:?}, {threads} threads");
            }
        }
    }
}

#[test]
fn layers_before_and_behind_may_be_elsewhere() {
    let whole = load(tales());
    let prompt = encode(&whole, PROMPT);
    let logits = context(&whole, 128, 32, KvType::F16).eval(&prompt).unwrap().to_vec();
    let (one, two, three) = (host_bank(), host_bank(), host_bank());
    let pair = || Shares::equal(2).unwrap();
    for placement in [
        Placement::new().layers(&one, 2).split(&[two.clone(), three.clone()], pair(), 4),
        Placement::new().split(&[two.clone(), three.clone()], pair(), 4).layers(&one, 2),
        Placement::new().layers(&one, 1).split(&[two.clone(), three.clone()], pair(), 3).layers(&two, 2),
        Placement::new().split(&[one.clone(), two.clone()], pair(), 3).split(&[two, three], pair(), 3),
        // And two devices one after the other.
        Placement::new().layers(&one, 2).layers(&host_bank(), 4),
    ] {
        let model =
            Model::load(tales(), LoadOptions { placement: Some(placement.clone()), ..precise() }).unwrap();
        let mut parts = context(&model, 128, 32, KvType::F16);
        let far = distance(parts.eval(&prompt).unwrap(), &logits);
        assert!(far < ORDER, "{placement:?}: {far}");
    }
}

#[test]
fn transformed_caches_are_cut_by_heads() {
    let whole = load(tales());
    let prompt = encode(&whole, PROMPT);
    let mut alone = context(&whole, 256, 64, KvType::Q4_0);
    let logits = alone.eval(&prompt).unwrap().to_vec();
    assert!(alone.kv_transforms().is_some());
    for shares in [&[1, 1][..], &[1, 1, 2]] {
        let model = split(tales(), shares, 2).unwrap();
        let mut ranks = context(&model, 256, 64, KvType::Q4_0);
        // Its tables are of sums in another order, too.
        let far = distance(ranks.eval(&prompt).unwrap(), &logits);
        assert!(far < 0.1, "{shares:?}: {far}");
        assert_eq!(argmax(ranks.logits().unwrap()), argmax(&logits), "{shares:?}");
    }
}

#[test]
fn many_sequences_forks_and_remembered_prompts() {
    let model = split(tales(), &[1, 1], 2).unwrap();
    let prompt = encode(&model, PROMPT);
    let whole = load(tales());
    let expected = greedy(&mut context(&whole, 256, 64, KvType::F16), &prompt, 12);
    let prefix_cache = ContextOptions { prefix_cache: true, ..options(256, 64, KvType::F16) };
    let mut ranks = Context::new(Arc::clone(&model), prefix_cache).unwrap();
    assert_eq!(ranks.eval_prompt(&prompt, &mut |_| {}).unwrap(), 0);
    let first = ranks.first_sequence();
    let fork = ranks.fork_sequence(first).unwrap();
    let mut next = argmax(ranks.logits().unwrap());
    for &token in &expected {
        assert_eq!(next, token);
        let rows: Vec<Vec<f32>> =
            ranks.eval_batch(&[(first, &[next]), (fork, &[next])]).unwrap().map(<[f32]>::to_vec).collect();
        assert!(distance(&rows[0], &rows[1]) < 1e-6);
        next = argmax(&rows[0]);
    }
    drop(ranks);
    let mut again = Context::new(Arc::clone(&model), prefix_cache).unwrap();
    assert_eq!(again.eval_prompt(&prompt, &mut |_| {}).unwrap(), prompt.len() - 1);
    assert_eq!(argmax(again.logits().unwrap()), expected[0]);
    assert!(!model.forget_prefixes().is_zero());
}

#[test]
fn what_cannot_be_split_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    // Blocks of 256 over four heads of 64: all of them are one block.
    let wide = Shape {
        n_embd: 256,
        n_heads: 4,
        n_kv_heads: 2,
        n_ff: 512,
        weights: vec![DType::Q4_K],
        ..Shape::default()
    };
    let path = Made::new(&wide).write(dir.path());
    let refused = split(&path, &[1, 1], 2).unwrap_err();
    let Error::Split(granule_split::Error::Indivisible { dimension, legal, .. }) = &refused else {
        panic!("{refused}");
    };
    assert_eq!((*dimension, &legal[..]), ("key-value heads", &[1][..]));
    assert!(refused.to_string().contains("key-value heads"), "{refused}");
    let five = split(tales(), &[1; 5], 2).unwrap_err();
    assert!(matches!(five, Error::Split(granule_split::Error::Indivisible { ranks: 5, .. })), "{five}");
    let two_for_three = Placement::new().split(&banks(2), Shares::equal(3).unwrap(), 6);
    let load = LoadOptions { placement: Some(two_for_three), ..precise() };
    assert!(matches!(Model::load(tales(), load).unwrap_err(), Error::SplitShares { shares: 3, ranks: 2 }));
}

#[test]
fn a_step_that_is_stopped_or_has_no_memory_leaves_the_context_as_it_was() {
    let n_layers = 6;
    let small = Bank::new(
        Device::host_with(HostOptions::new().capacity(Bytes::mib(512))).unwrap(),
        BankOptions::new(),
    )
    .unwrap();
    let placement =
        Placement::new().split(&[host_bank(), small.clone()], Shares::equal(2).unwrap(), n_layers);
    let model = Model::load(tales(), LoadOptions { placement: Some(placement), ..precise() }).unwrap();
    let prompt = encode(&model, PROMPT);
    let mut ranks = context(&model, 4096, 512, KvType::F16);
    let before = ranks.eval(&prompt).unwrap().to_vec();
    let stop = CancelToken::default();
    ranks.set_cancel_token(stop.clone());
    stop.cancel();
    assert!(matches!(ranks.eval(&prompt).map(<[f32]>::len), Err(Error::Cancelled)));
    ranks.set_cancel_token(CancelToken::default());
    assert_eq!((ranks.tokens(), ranks.logits().unwrap()), (&prompt[..], &before[..]));
    // One rank's device is full: all of them say so.
    let free = small.stats().budget.saturating_sub(used(&small));
    let rest = small.charge(&granule_bank::Owner::new("other"), free).unwrap();
    let long = prompt.repeat(40);
    let full = ranks.eval(&long).map(<[f32]>::len).unwrap_err();
    assert!(matches!(full, Error::Kv(_) | Error::Pool(_) | Error::Bank(_)), "{full}");
    assert_eq!(ranks.tokens(), &prompt[..]);
    drop(rest);
    ranks.eval(&long).unwrap();
    assert_eq!(ranks.tokens().len(), 41 * prompt.len());
}

#[test]
fn weights_in_place_and_what_each_rank_holds() {
    let whole = load(tales());
    let prompt = encode(&whole, PROMPT);
    let logits = context(&whole, 128, 32, KvType::F16).eval(&prompt).unwrap().to_vec();
    for (no_repack, no_mmap) in [(false, false), (true, false), (false, true), (true, true)] {
        let banks = banks(2);
        let placement = Placement::new().split(&banks, Shares::equal(2).unwrap(), 6);
        let load = LoadOptions { placement: Some(placement), no_repack, no_mmap, ..precise() };
        let model = Model::load(tales(), load).unwrap();
        let mut ranks = context(&model, 128, 32, KvType::F16);
        let far = distance(ranks.eval(&prompt).unwrap(), &logits);
        assert!(far < ORDER, "{no_repack} {no_mmap}: {far}");
        let info = ranks.memory_info();
        assert_eq!(info.devices.len(), 2);
        for (device, bank) in info.devices.iter().zip(&banks) {
            assert_eq!(device.total, used(bank), "{no_repack} {no_mmap}");
            assert_eq!(device.layers, 6);
        }
        // The cache is split evenly.
        assert_eq!(info.devices[0].kv, info.devices[1].kv);
        drop((ranks, model));
        assert!(banks.iter().all(|bank| used(bank).is_zero()), "{no_repack} {no_mmap}");
    }
}

#[test]
fn state_files_do_not_tell_how_heads_were_split() {
    let dir = tempfile::tempdir().unwrap();
    let paths = ["whole", "ranks"].map(|name| dir.path().join(name));
    let whole = load(tales());
    let prompt = encode(&whole, PROMPT);
    for kv in [KvType::F16, KvType::Q4_0] {
        let mut one = context(&whole, 64, 32, kv);
        one.eval(&prompt).unwrap();
        one.save_state(&paths[0]).unwrap();
        let next = one.eval(&prompt[..1]).unwrap().to_vec();
        for shares in [&[1, 1][..], &[3, 1], &[1, 1, 1, 1]] {
            let model = split(tales(), shares, 2).unwrap();
            let mut ranks = context(&model, 128, 16, kv);
            ranks.load_state(&paths[0]).unwrap();
            assert_eq!(ranks.tokens(), &prompt[..]);
            ranks.save_state(&paths[1]).unwrap();
            assert!(std::fs::read(&paths[0]).unwrap() == std::fs::read(&paths[1]).unwrap(), "{shares:?}");
            let far = distance(ranks.eval(&prompt[..1]).unwrap(), &next);
            assert!(far < ORDER, "{kv} {shares:?}: {far}");
            // And back to one place.
            let mut back = context(&whole, 64, 32, kv);
            back.load_state(&paths[1]).unwrap();
            assert_eq!(back.eval(&prompt[..1]).unwrap(), &next[..]);
        }
    }
}

/// Two sums of n_embd numbers a layer and token, each rank sending its part to all others twice over: 2 (N - 1) / N of the numbers.
#[test]
fn a_token_sends_what_the_formula_says() {
    for n in [2, 3, 4] {
        let model = split(tales(), &vec![1; n], 2).unwrap();
        let prompt = encode(&model, PROMPT);
        let mut ranks = context(&model, 128, 128, KvType::F16);
        let mut sent = 0;
        for tokens in [&prompt[..], &prompt[..1]] {
            ranks.eval(tokens).unwrap();
            let now: u64 = ranks.traffic().iter().map(|rank| rank.sent.get()).sum();
            let (layers, n_embd) = (model.config().n_layers, model.config().n_embd);
            let all = tokens.len() * layers * 2 * 2 * (n - 1) * n_embd * size_of::<f32>();
            assert_eq!(now - sent, all as u64, "{n} ranks, {} tokens", tokens.len());
            sent = now;
        }
        assert_eq!(ranks.traffic().len(), n);
    }
}
