//! Transforms of keys and values: made once, the same for everybody, and worth it.

use std::sync::Arc;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device};
use granule_kv::KvType;
use granule_llama::{CancelToken, Context, ContextOptions, Error, KvTransformMode, LoadOptions, Model};

use crate::{context, encode, load, load_with_threads, options, tales};

fn with_mode(model: &Arc<Model>, kv: KvType, kv_transform: KvTransformMode) -> Context {
    Context::new(Arc::clone(model), ContextOptions { kv_transform, ..options(256, 64, kv) }).unwrap()
}

/// What the bank counts as an owner's.
fn held(bank: &Bank, owner: &str) -> Bytes {
    let stats = bank.stats();
    let found = stats.owners.iter().find(|stats| stats.owner.to_string() == owner);
    found.map_or(Bytes::ZERO, |stats| stats.current)
}

/// What state files and remembered prompts say of it: its tables.
fn id(context: &Context) -> Option<Vec<u8>> {
    Some(context.kv_identity().unwrap().transform).filter(|transform| !transform.is_empty())
}

#[test]
fn the_same_for_every_context_fork_and_number_of_threads() {
    let model = load(tales());
    let mut first = context(&model, 256, 64, KvType::Q4_0);
    let known = id(&first).unwrap();
    first.eval(&encode(&model, "Once upon a time")).unwrap();
    assert_eq!(id(&first.fork().unwrap()).as_ref(), Some(&known));
    assert_eq!(id(&context(&model, 64, 1, KvType::Q4_0)).as_ref(), Some(&known));
    for threads in [1, 3] {
        let again = context(&load_with_threads(tales(), threads), 256, 64, KvType::Q4_0);
        assert_eq!(id(&again).as_ref(), Some(&known));
    }
}

#[test]
fn only_what_gains_is_transformed() {
    let model = load(tales());
    for kv in [KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0] {
        let plain = context(&model, 256, 64, kv);
        assert_eq!(id(&plain), None, "{kv}");
        assert_eq!(plain.memory_info().kv_transform, Bytes::ZERO);
    }
    assert_eq!(id(&with_mode(&model, KvType::Q4_0, KvTransformMode::None)), None);
    let both = context(&model, 256, 64, KvType::Q4_0);
    let mixed = |type_k, type_v| {
        let options = ContextOptions { type_k, type_v, ..options(256, 64, KvType::F16) };
        Context::new(Arc::clone(&model), options).unwrap()
    };
    let (keys, values) = (mixed(KvType::Q4_0, KvType::F16), mixed(KvType::Q8_0, KvType::Q4_0));
    let sides = |context: &Context| {
        let layer = context.kv_transforms().unwrap().layer(5).unwrap();
        (layer.key_fold().is_some(), layer.value_fold().is_some())
    };
    assert_eq!([sides(&both), sides(&keys), sides(&values)], [(true, true), (true, false), (false, true)]);
    let ids = [id(&both), id(&keys), id(&values)];
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
}

/// Six layers of two heads of 64, keys and values, three tables each; and what of it a state file has, where the values' scales and
/// the inverses are not told.
#[test]
fn the_tables_are_counted_once_and_stay_with_the_model() {
    let bank = Bank::new(Device::host().unwrap(), BankOptions::default()).unwrap();
    let options = LoadOptions { bank: Some(bank.clone()), ..LoadOptions::default() };
    let model = Model::load(tales(), options).unwrap();
    let tables = Bytes::from_usize(6 * 2 * 3 * 128 * 4 + 24 + 6 * 3 * 128 * 4);
    let (a, b) = (context(&model, 64, 64, KvType::Q4_0), context(&model, 64, 64, KvType::Q4_0));
    for context in [&a, &b] {
        let info = context.memory_info();
        assert_eq!(info.kv_transform, tables);
        let parts = [info.model, info.kv, info.kv_transform, info.activations, info.scratch];
        assert_eq!(info.total.get(), parts.iter().map(|part| part.get()).sum::<u64>());
    }
    assert_eq!(held(&bank, "kv transform"), tables);
    drop((a, b));
    assert_eq!(held(&bank, "kv transform"), tables);
    assert_eq!(bank.stats().held.get(), model.bytes().get() + tables.get());
    drop(model);
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

/// How far logits are off a 32-bit cache's, in the mean over a text: what four bits lose.
#[test]
fn four_bits_lose_less_with_transforms() {
    let model = load(tales());
    let text = "Long ago the doctor Nora, the farmer Egon and the tailor Kofi lived near the mill Kingsport. Nora loved \
                the pony Rusty and the ladder Tempest. In her bag there were buns, seven of them.";
    let tokens = encode(&model, text);
    let want = context(&model, 256, 64, KvType::F32).eval_all(&tokens).unwrap();
    let lost = |mode| {
        let got = with_mode(&model, KvType::Q4_0, mode).eval_all(&tokens).unwrap();
        got.iter().zip(&want).map(|(got, want)| f64::from(got - want).powi(2)).sum::<f64>()
    };
    let (auto, none) = (lost(KvTransformMode::Auto), lost(KvTransformMode::None));
    // This model hardly notices four bits either way; larger ones gain far more.
    assert!(auto < 0.9 * none, "squares of {auto} with transforms, {none} without");
}

#[test]
fn making_them_is_told_and_can_be_stopped() {
    let model = load(tales());
    let before = model.bank().stats().held;
    let cancel = CancelToken::default();
    let made = |stop_at: usize| {
        let mut told = Vec::new();
        let context = Context::new_reporting(
            Arc::clone(&model),
            options(64, 16, KvType::Q4_0),
            cancel.clone(),
            &mut |done, total| {
                assert_eq!(total, 256);
                told.push(done);
                if done == stop_at {
                    cancel.cancel();
                }
            },
        );
        (context, told)
    };
    for stop_at in [0, 128] {
        let (stopped, told) = made(stop_at);
        assert!(matches!(stopped, Err(Error::Cancelled)), "{:?}", stopped.map(|_| ()));
        assert_eq!(told.last(), Some(&stop_at));
        assert_eq!(model.bank().stats().held, before, "nothing stays of half a transform");
        cancel.reset();
    }
    let (context, told) = made(usize::MAX);
    let mut context = context.unwrap();
    assert_eq!(told, [0, 64, 128, 192, 256]);
    // Once made, it is there at once; and the flag is the context's from here on.
    assert!(made(0).1.is_empty());
    cancel.cancel();
    assert!(matches!(context.eval(&crate::ids([1])).map(|_| ()), Err(Error::Cancelled)));
}

#[test]
fn no_memory_for_the_text_is_an_error_and_no_harm() {
    let model = load(tales());
    let needed = model.bytes();
    let options =
        LoadOptions { memory_limit: Some(needed.saturating_add(Bytes::mib(3))), ..LoadOptions::default() };
    let small = Model::load(tales(), options).unwrap();
    let refused = Context::new(Arc::clone(&small), crate::options(64, 16, KvType::Q4_0));
    assert!(matches!(refused, Err(Error::Kv(_) | Error::Pool(_) | Error::Bank(_))), "{:?}", refused.err());
    assert_eq!(small.bank().stats().held, needed);
    let weights = held(small.bank(), "weights").saturating_add(held(small.bank(), "packed weights"));
    assert_eq!(weights, needed);
}
