//! Prompts that are remembered: found again after others came and went, by any context, and forgotten when memory is short.

use std::sync::Arc;

use granule_bank::{Bank, BankOptions, Owner};
use granule_device::{Bytes, Device, FaultPlan, HostOptions};
use granule_kv::KvType;
use granule_llama::{
    Context, ContextOptions, Error, GenerateOptions, LoadOptions, Model, SamplingOptions, TokenId,
};

use crate::{context, distance, encode, ids, load, options, precise, tales};

const TEXT: &str = "Once upon a time the baker Mia and the sailor Leo lived near the harbor Eastwick. ";
const TIPPED: f64 = 5e-2;

fn remembering(model: &Arc<Model>, n_ctx: usize, kv: KvType) -> Context {
    let options = ContextOptions { prefix_cache: true, ..options(n_ctx, 512, kv) };
    Context::new(Arc::clone(model), options).unwrap()
}

fn prompt(context: &mut Context, tokens: &[TokenId]) -> (usize, Vec<f32>) {
    let mut told = Vec::new();
    let reused = context.eval_prompt(tokens, &mut |done| told.push(done)).unwrap();
    assert!(told.first().is_some_and(|&first| first > reused) && told.last() == Some(&tokens.len()));
    (reused, context.logits().unwrap().to_vec())
}

fn bank(mib: u64) -> Bank {
    let device =
        Device::host_with(HostOptions::new().granule(Bytes::kib(64)).capacity(Bytes::mib(256))).unwrap();
    Bank::new(device, BankOptions::new().budget(Bytes::mib(mib))).unwrap()
}

#[test]
fn a_prompt_is_found_again_after_others_came_and_went() {
    let bank = bank(256);
    let load = LoadOptions { bank: Some(bank.clone()), ..precise() };
    let model = Model::load(tales(), load).unwrap();
    for kv in [KvType::F16, KvType::Q4_0] {
        let tokens = encode(&model, &TEXT.repeat(6));
        let (cut, n) = (tokens.len() - 20, tokens.len());
        let (none, first) = prompt(&mut remembering(&model, 512, kv), &tokens);
        assert_eq!(none, 0);
        for other in 0..20u32 {
            let mut context = remembering(&model, 512, kv);
            let (reused, _) = prompt(&mut context, &vec![TokenId::new(300 + other); 100]);
            assert_eq!(reused, 0);
            context.eval(&ids([7; 20])).unwrap();
        }
        let mut again = remembering(&model, 512, kv);
        let (reused, logits) = prompt(&mut again, &tokens);
        assert_eq!((reused, again.tokens()), (n - 1, &tokens[..]));
        assert!(distance(&logits, &first) < TIPPED, "{kv}");
        // Another ending, in the same context.
        again.clear().unwrap();
        let mut other = tokens[..cut].to_vec();
        other.extend(ids([300, 301]));
        assert_eq!(prompt(&mut again, &other).0, cut);
        let want = context(&model, 512, 512, kv).eval(&other).unwrap().to_vec();
        assert!(distance(again.logits().unwrap(), &want) < TIPPED, "{kv}");
        // In a context of any size.
        assert_eq!(prompt(&mut remembering(&model, 300, kv), &tokens).0, n - 1);
        // Not where the bytes are others, and not where nobody asked for it.
        let other = if kv == KvType::F16 { KvType::Q8_0 } else { KvType::F32 };
        assert_eq!(prompt(&mut remembering(&model, 512, other), &tokens).0, 0);
        assert_eq!(prompt(&mut context(&model, 512, 512, kv), &tokens).0, 0);
    }
    // It shows, by name, and goes with the model.
    let context = remembering(&model, 512, KvType::F16);
    let info = context.memory_info();
    assert!(info.kv_prefixes > Bytes::ZERO && info.kv_prefixes <= model.prefixes().stats().held, "{info:?}");
    drop((context, model));
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

#[test]
fn generation_takes_what_is_remembered() {
    let model = load(tales());
    let tokens = encode(&model, &TEXT.repeat(3));
    let write = |context: &mut Context| {
        let sampling = SamplingOptions::greedy();
        let options = GenerateOptions { sampling, n_predict: Some(5), ..GenerateOptions::default() };
        let mut generation = context.generate(&tokens, options).unwrap();
        let text: String = generation.by_ref().map(|piece| piece.unwrap().text).collect();
        (text, generation.stats().n_prompt)
    };
    let (text, computed) = write(&mut remembering(&model, 256, KvType::F16));
    assert_eq!(computed, tokens.len());
    assert_eq!(write(&mut remembering(&model, 256, KvType::F16)), (text, 1));
}

#[test]
fn remembered_prompts_go_when_somebody_needs_the_memory() {
    // Weights of 5 MiB and some 30 for the rest.
    let bank = bank(40);
    let load = LoadOptions { bank: Some(bank.clone()), ..precise() };
    let model = Model::load(tales(), load).unwrap();
    let mut evaluated = 0;
    for other in 0..60u32 {
        let mut context = remembering(&model, 1024, KvType::F32);
        // 3 MiB each: 60 of them do not fit.
        context.eval_prompt(&vec![TokenId::new(300 + other); 500], &mut |_| {}).unwrap();
        evaluated += 1;
    }
    assert_eq!(evaluated, 60);
    let stats = model.prefixes().stats();
    assert!(stats.evicted > 40 && stats.entries > 0, "{stats:?}");
    assert!(bank.stats().held <= Bytes::mib(40));
    let mut last = remembering(&model, 1024, KvType::F32);
    assert_eq!(last.eval_prompt(&vec![TokenId::new(359); 500], &mut |_| {}).unwrap(), 499);
}

/// A sequence that began with a part of a remembered prompt has what it took, and no claim on the rest.
#[test]
fn a_short_match_keeps_no_long_prompt() {
    let bank = bank(40);
    let load = LoadOptions { bank: Some(bank.clone()), ..precise() };
    let model = Model::load(tales(), load).unwrap();
    let text = encode(&model, &TEXT.repeat(20));
    let long = &text[..400];
    // 6 KiB a token: 37 granules of 64 KiB.
    remembering(&model, 512, KvType::F32).eval_prompt(long, &mut |_| {}).unwrap();
    let mut short = remembering(&model, 512, KvType::F32);
    let mut other = long[..30].to_vec();
    other.extend(ids([300, 301]));
    assert_eq!(short.eval_prompt(&other, &mut |_| {}).unwrap(), 30);
    let free = (Bytes::mib(40).get() - bank.stats().held.get()) / Bytes::kib(64).get();
    let taken = bank.take(&Owner::new("somebody else"), free as usize + 25).unwrap();
    assert!(model.prefixes().stats().evicted > 0, "{:?}", model.prefixes().stats());
    drop(taken);
    let next = ids([302]);
    let got = short.eval(&next).unwrap().to_vec();
    let mut alone = context(&model, 512, 512, KvType::F32);
    alone.eval(&other).unwrap();
    assert!(distance(&got, alone.eval(&next).unwrap()) < TIPPED);
}

/// Remembering saves time, and costs no request.
#[test]
fn what_cannot_be_shared_is_computed() {
    let bank = bank(256);
    let load = LoadOptions { bank: Some(bank.clone()), ..precise() };
    let model = Model::load(tales(), load).unwrap();
    let tokens = encode(&model, &TEXT.repeat(6));
    let (_, right) = prompt(&mut remembering(&model, 512, KvType::F16), &tokens);
    let mut again = remembering(&model, 512, KvType::F16);
    // The first thing that it asks of the device is addresses for a fork.
    let guard = bank.device().inject_fault(FaultPlan::nth(1));
    let (reused, logits) = prompt(&mut again, &tokens);
    assert!(guard.fired());
    drop(guard);
    assert_eq!((reused, again.tokens()), (0, &tokens[..]));
    assert!(distance(&logits, &right) < TIPPED);
    let stats = model.prefixes().stats();
    assert_eq!((stats.failed, stats.hits), (1, 0), "{stats:?}");
    again.clear().unwrap();
    assert_eq!(prompt(&mut again, &tokens).0, tokens.len() - 1);
}

#[test]
fn a_prompt_that_fails_leaves_the_context_empty() {
    let model = load(tales());
    let mut context = remembering(&model, 256, KvType::F16);
    let tokens = encode(&model, TEXT);
    prompt(&mut context, &tokens);
    context.clear().unwrap();
    context.cancel_token().cancel();
    assert!(matches!(context.eval_prompt(&tokens, &mut |_| {}), Err(Error::Cancelled)));
    assert!(context.tokens().is_empty() && context.sequence().is_empty());
    context.cancel_token().reset();
    assert!(matches!(context.eval_prompt(&[], &mut |_| {}), Err(Error::NoTokens)));
    assert_eq!(prompt(&mut context, &tokens).0, tokens.len() - 1);
}

#[test]
fn what_had_tokens_removed_is_remembered_as_far_as_it_is_whole() {
    let model = load(tales());
    let tokens = encode(&model, &TEXT.repeat(3));
    let mut context = remembering(&model, 256, KvType::F16);
    let id = context.first_sequence();
    context.eval(&tokens).unwrap();
    context.slide_sequence(id, 10, 20).unwrap();
    assert!(!context.remember(id).unwrap());
    let (reused, _) = prompt(&mut remembering(&model, 256, KvType::F16), &tokens);
    assert_eq!(reused, 10);
}
