//! Many sequences in one context: each is what it would be alone, and none of them sees another.

use std::sync::Arc;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, FaultPlan, HostOptions};
use granule_kv::KvType;
use granule_llama::{Context, Error, LoadOptions, Model, SequenceId, TokenId};

use crate::{argmax, context, distance, encode, ids, load, options, tales};

const TEXTS: [&str; 3] = [
    "Once upon a time the baker Mia and the sailor Leo lived near the harbor Eastwick.",
    "On Friday Hana took the lamp Ember to the mill Oakham.",
    "Long ago",
];

/// Sums of a batch are grouped by its number of rows; see `same_result.rs`.
const GROUPING: f64 = 2e-3;
/// Where that tips a value of the cache over to the next step.
const TIPPED: f64 = 5e-2;
/// As above; a step of four bits is as large as this.
const COARSE: f64 = 0.2;

/// Adds a sequence for each text but the first, which goes to the first sequence; nothing is evaluated.
fn three(context: &mut Context) -> [SequenceId; 3] {
    [context.first_sequence(), context.add_sequence().unwrap(), context.add_sequence().unwrap()]
}

fn batch(context: &mut Context, items: &[(SequenceId, &[TokenId])]) -> Vec<Vec<f32>> {
    context.eval_batch(items).unwrap().map(<[f32]>::to_vec).collect()
}

#[test]
fn a_sequence_in_a_batch_is_what_it_is_alone() {
    let model = load(tales());
    let texts = TEXTS.map(|text| encode(&model, text));
    for kv in [KvType::F32, KvType::F16, KvType::Q8_0, KvType::Q4_0] {
        let bound = match kv {
            KvType::F32 => GROUPING,
            KvType::Q4_0 => COARSE,
            _ => TIPPED,
        };
        // Prompts cut up over several steps, and in one.
        for n_batch in [7, 512] {
            let mut many = context(&model, 128, n_batch, kv);
            let names = three(&mut many);
            let items: Vec<_> = names.iter().zip(&texts).map(|(&id, text)| (id, &text[..])).collect();
            let mut logits = batch(&mut many, &items);
            let mut alone = texts.each_ref().map(|_| context(&model, 128, n_batch, kv));
            let mut one_by_one: Vec<_> =
                alone.iter_mut().zip(&texts).map(|(c, text)| c.eval(text).unwrap().to_vec()).collect();
            for step in 0..20 {
                for (got, want) in logits.iter().zip(&one_by_one) {
                    let far = distance(got, want);
                    assert!(far < bound, "{kv}, batches of {n_batch}, step {step}: {far}");
                }
                let next: Vec<[TokenId; 1]> = one_by_one.iter().map(|l| [argmax(l)]).collect();
                let items: Vec<_> = names.iter().zip(&next).map(|(&id, next)| (id, &next[..])).collect();
                logits = batch(&mut many, &items);
                one_by_one =
                    alone.iter_mut().zip(&next).map(|(c, next)| c.eval(next).unwrap().to_vec()).collect();
            }
            for (id, alone) in names.iter().zip(&alone) {
                assert_eq!(many.sequence_tokens(*id).unwrap(), alone.tokens());
            }
        }
    }
}

/// Bit for bit: what stands beside a sequence, and in which order, makes no difference as long as the number of rows is the
/// same.
#[test]
fn neighbours_and_their_order_change_no_bit() {
    let model = load(tales());
    let texts = TEXTS.map(|text| encode(&model, text));
    for kv in [KvType::F16, KvType::Q4_0] {
        let run = |order: [usize; 3], neighbour: u32| {
            let mut context = context(&model, 128, 512, kv);
            let names = three(&mut context);
            for (&id, text) in names.iter().zip(&texts) {
                context.eval_batch(&[(id, text)]).unwrap().count();
            }
            let mut steps = Vec::new();
            for step in 0..10 {
                let next = [ids([300 + step]), ids([neighbour + step]), ids([neighbour + step])];
                let items: Vec<_> = order.iter().map(|&i| (names[i], &next[i][..])).collect();
                let at = order.iter().position(|&i| i == 0).unwrap();
                steps.push(batch(&mut context, &items).swap_remove(at));
            }
            steps
        };
        let want = run([0, 1, 2], 400);
        assert_eq!(run([2, 0, 1], 400), want, "another order, {kv}");
        assert_eq!(run([0, 1, 2], 500), want, "other neighbours, {kv}");
    }
}

#[test]
fn forks_prefixes_and_what_is_removed() {
    let model = load(tales());
    let text = encode(&model, TEXTS[0]);
    let mut context = context(&model, 128, 512, KvType::F16);
    let first = context.first_sequence();
    let end = context.eval(&text).unwrap().to_vec();
    let (whole, part) = (context.fork_sequence(first).unwrap(), context.fork_prefix(first, 10).unwrap());
    assert_eq!(context.sequence_tokens(whole).unwrap(), text);
    assert_eq!(context.sequence_tokens(part).unwrap(), &text[..10]);
    assert_eq!(context.sequences().collect::<Vec<_>>(), [first, whole, part]);
    // The parent goes on elsewhere; the forks do not see it.
    context.eval(&ids([300, 301, 302])).unwrap();
    let again = batch(&mut context, &[(part, &text[10..])]).remove(0);
    assert!(distance(&again, &end) < TIPPED);
    let next = ids([400]);
    let [a, b] = [whole, part].map(|id| batch(&mut context, &[(id, &next)]).remove(0));
    assert!(distance(&a, &b) < TIPPED && argmax(&a) == argmax(&b));
    context.truncate_sequence(whole, 5).unwrap();
    assert_eq!(context.sequence_tokens(whole).unwrap(), &text[..5]);
    context.remove_sequence(whole).unwrap();
    assert!(matches!(context.sequence_tokens(whole), Err(Error::NoSuchSequence { id }) if id == whole));
    assert!(matches!(context.remove_sequence(whole), Err(Error::NoSuchSequence { .. })));
    assert!(matches!(context.remove_sequence(first), Err(Error::FirstSequence)));
    let fork = context.fork().unwrap();
    assert_eq!((fork.tokens(), fork.sequences().len()), (context.tokens(), 1));
    assert!(fork.sequence_tokens(first).is_err(), "a name of another context");
}

/// Llama's keys are rotated, and rotation is relative: in a model of one layer, whose values know of no other token, what is left
/// of a text stands as if it had been there alone.
#[test]
fn removed_tokens_are_as_if_they_had_never_been_in_a_model_of_one_layer() {
    use crate::support::make::{Made, Shape};
    let dir = tempfile::tempdir().unwrap();
    let model = load(&Made::new(&Shape { n_layers: 1, ..Shape::default() }).write(dir.path()));
    let tokens: Vec<TokenId> = (0..40u32).map(|i| TokenId::new(1 + i * 7 % 50)).collect();
    let mut cut = context(&model, 64, 512, KvType::F32);
    let id = cut.first_sequence();
    cut.eval(&tokens).unwrap();
    cut.remove_tokens(id, 5..17).unwrap();
    assert_eq!(cut.slide_sequence(id, 4, 12).unwrap(), 12);
    assert_eq!(cut.slide_sequence(id, 4, 12).unwrap(), 0);
    let left = [&tokens[..4], &tokens[28..]].concat();
    assert_eq!(cut.tokens(), left);
    let mut alone = context(&model, 64, 512, KvType::F32);
    alone.eval(&left).unwrap();
    let next = ids([9]);
    assert!(distance(cut.eval(&next).unwrap(), alone.eval(&next).unwrap()) < 1e-4);
    cut.keep_tokens(id, 2..9).unwrap();
    assert_eq!(cut.tokens(), &left[2..9]);
}

/// A window that slides over a text of many times the context gives back what is behind it.
#[test]
fn a_window_slides_on_and_on() {
    let host = HostOptions::new().granule(Bytes::kib(64)).capacity(Bytes::mib(256));
    let bank = Bank::new(Device::host_with(host).unwrap(), BankOptions::default()).unwrap();
    let model = Model::load(tales(), LoadOptions { bank: Some(bank), ..LoadOptions::default() }).unwrap();
    let mut context = context(&model, 128, 512, KvType::F16);
    let id = context.first_sequence();
    let text = encode(&model, &TEXTS[0].repeat(8));
    let mut most = 0;
    for (i, &token) in text.iter().cycle().take(600).enumerate() {
        if context.tokens().len() == 128 {
            assert_eq!(context.slide_sequence(id, 4, 60).unwrap(), 64);
        }
        let logits = context.eval(&[token]).unwrap();
        assert!(logits.iter().all(|l| l.is_finite()), "token {i}");
        most = most.max(context.memory_info().kv.get());
    }
    // 128 rows of 3 KiB, 64 ahead, and a part-filled granule at each end of three runs.
    assert!(most < (192 * 3 + 6 * 64) << 10, "{most} bytes");
}

#[test]
fn a_batch_is_done_whole_or_not_at_all() {
    let host = HostOptions::new().granule(Bytes::kib(64)).capacity(Bytes::mib(256));
    let device = Device::host_with(host).unwrap();
    let bank = Bank::new(device.clone(), BankOptions::default()).unwrap();
    let model = Model::load(tales(), LoadOptions { bank: Some(bank), ..LoadOptions::default() }).unwrap();
    let texts = TEXTS.map(|text| encode(&model, text));
    let made = |kv| {
        let mut context = context(&model, 128, 16, kv);
        let names = three(&mut context);
        context.eval_batch(&[(names[0], &texts[0][..5]), (names[2], &texts[2])]).unwrap().count();
        (context, names)
    };
    let more = |names: [SequenceId; 3]| {
        [(names[1], &texts[0][..]), (names[0], &texts[0][5..]), (names[2], &texts[1][..])]
    };
    let want = {
        let (mut context, names) = made(KvType::F16);
        batch(&mut context, &more(names))
    };
    // Whatever fails on the way, and the call again.
    let mut failures = 0;
    for k in 1.. {
        let (mut context, names) = made(KvType::F16);
        let tokens = |c: &Context| names.map(|id| c.sequence_tokens(id).unwrap().to_vec());
        let before = tokens(&context);
        // All calls from the k-th on: one alone may strike what is mapped ahead.
        let guard = device.inject_fault(FaultPlan::from_nth(k));
        let failed = context.eval_batch(&more(names)).map(|_| ()).is_err();
        let fired = guard.fired();
        drop(guard);
        if failed {
            failures += 1;
            assert_eq!(tokens(&context), before, "call {k}");
            assert_eq!(batch(&mut context, &more(names)), want, "call {k}");
        }
        if !fired {
            break;
        }
    }
    assert!(failures > 1, "{failures}");
    // A call that is cancelled, and calls that make no sense.
    let (mut context, names) = made(KvType::F16);
    let before = names.map(|id| context.sequence_tokens(id).unwrap().to_vec());
    context.cancel_token().cancel();
    assert!(matches!(context.eval_batch(&more(names)).map(|_| ()), Err(Error::Cancelled)));
    context.cancel_token().reset();
    let (some, none) = (ids([5]), ids([]));
    let mut refused = |items: &[(SequenceId, &[TokenId])]| context.eval_batch(items).map(|_| ()).unwrap_err();
    assert!(matches!(refused(&[]), Error::NoTokens));
    assert!(matches!(refused(&[(names[1], &some), (names[0], &none)]), Error::NoTokens));
    let twice = refused(&[(names[0], &some), (names[1], &some), (names[0], &some)]);
    assert!(matches!(twice, Error::SequenceTwice { id } if id == names[0]));
    let full = refused(&[(names[1], &some), (names[0], &[some[0]; 124])]);
    assert!(matches!(full, Error::ContextFull { added: 124, used: 5, n_ctx: 128 }));
    let unknown = refused(&[(names[0], &some), (names[1], &ids([99_999]))]);
    assert!(matches!(unknown, Error::TokenOutOfRange { id: 99_999, .. }));
    assert_eq!(names.map(|id| context.sequence_tokens(id).unwrap().to_vec()), before);
    assert_eq!(batch(&mut context, &more(names)), want);
}

/// A call that fails in a later step, when others of its sequences have ended or are far on: none of them keeps a token of it, and
/// the caller hears of the first failure, whatever becomes of the memory that is given back.
#[test]
fn a_batch_that_fails_late_leaves_every_sequence_as_it_was() {
    let host = HostOptions::new().granule(Bytes::kib(64)).capacity(Bytes::mib(256));
    let device = Device::host_with(host).unwrap();
    let bank = Bank::new(device.clone(), BankOptions::default()).unwrap();
    let model = Model::load(tales(), LoadOptions { bank: Some(bank), ..LoadOptions::default() }).unwrap();
    let (short, long) = ([ids([300])[0]; 30], [ids([301])[0]; 200]);
    let mut failures = 0;
    for k in 1.. {
        let mut context = context(&model, 256, 16, KvType::F16);
        let names = [context.first_sequence(), context.add_sequence().unwrap()];
        let guard = device.inject_fault(FaultPlan::from_nth(k));
        let failed = context.eval_batch(&[(names[0], &short), (names[1], &long)]).map(|_| ()).err();
        let fired = guard.fired();
        drop(guard);
        if let Some(error) = failed {
            failures += 1;
            let left = names.map(|id| {
                (context.sequence_tokens(id).unwrap().len(), context.sequence_of(id).unwrap().len())
            });
            assert_eq!(left, [(0, 0); 2], "call {k}: {error}");
            // What it asked for is what failed, not what it gave back.
            assert!(matches!(error, Error::Kv(_) | Error::Pool(_)), "call {k}: {error:?}");
        }
        if !fired {
            break;
        }
    }
    assert!(failures > 10, "{failures}");
}

#[test]
#[allow(clippy::reversed_empty_ranges, reason = "what is tested")]
fn ranges_that_are_none_are_refused() {
    let model = load(tales());
    let mut context = context(&model, 64, 16, KvType::F16);
    let id = context.first_sequence();
    let tokens = ids([1, 300, 301, 302, 303]);
    context.eval(&tokens).unwrap();
    for range in [4..2, 9..4, 5..3, 3..6, 6..6, 6..9, usize::MAX..0] {
        for keep in [false, true] {
            let change = if keep { Context::keep_tokens } else { Context::remove_tokens };
            let refused = change(&mut context, id, range.clone()).unwrap_err();
            assert!(
                matches!(refused, Error::Kv(granule_kv::Error::NoSuchTokens { .. })),
                "{range:?}: {refused:?}"
            );
            assert_eq!((context.tokens(), context.sequence().len()), (&tokens[..], 5), "{range:?}");
        }
    }
    for nothing in [0..0, 3..3, 5..5] {
        context.remove_tokens(id, nothing).unwrap();
    }
    assert_eq!(context.tokens(), tokens);
}

#[test]
fn shared_memory_counts_once() {
    let host = HostOptions::new().granule(Bytes::kib(64)).capacity(Bytes::mib(256));
    let bank = Bank::new(Device::host_with(host).unwrap(), BankOptions::default()).unwrap();
    let model = Model::load(tales(), LoadOptions { bank: Some(bank), ..LoadOptions::default() }).unwrap();
    let before = model.bank().stats().held;
    let mut context = context(&model, 1024, 512, KvType::F16);
    let first = context.first_sequence();
    context.eval(&vec![ids([9])[0]; 400]).unwrap();
    let names: Vec<SequenceId> = (0..5).map(|_| context.fork_sequence(first).unwrap()).collect();
    let token = ids([7]);
    for _ in 0..40 {
        let items: Vec<_> = names.iter().map(|&id| (id, &token[..])).collect();
        context.eval_batch(&items).unwrap().count();
        let info = context.memory_info();
        let parts = [info.kv, info.kv_parked, info.activations, info.scratch];
        let sum: u64 = parts.iter().map(|part| part.get()).sum();
        // What is mapped ahead at this moment may come between the two looks.
        let held = model.bank().stats().held.get() - before.get();
        assert!(held.abs_diff(sum) <= 6 * (64 << 10), "{held} and {info:?}");
        assert_eq!(info.sequences.len(), 6);
        assert_eq!(info.total.get(), sum + info.model.get());
    }
    // 400 tokens of 3 KiB once, and of each fork its last 40, what is mapped ahead, and the granule where it parted.
    let info = context.memory_info();
    assert!(info.kv.get() < (400 * 3 + 6 * ((40 + 64) * 3 + 3 * 64)) << 10, "{info:?}");
    assert!(info.kv_shared.get() >= (400 * 3 - 64) << 10, "{info:?}");
    assert!(info.kv_used.get() > 2 * info.kv_shared.get(), "tokens count in each");
    let alone: u64 = info.sequences.iter().map(|sequence| sequence.kv.held.get()).sum();
    assert!(alone > info.kv.get());
    for id in names {
        context.remove_sequence(id).unwrap();
    }
    assert!(context.memory_info().kv_parked > Bytes::ZERO);
    drop(context);
    assert_eq!(model.bank().stats().held, before, "the cache goes with its last context");
}

#[test]
fn contexts_of_the_same_types_have_one_cache() {
    let model = load(tales());
    let mut one = context(&model, 128, 16, KvType::F16);
    let two = Context::new(Arc::clone(&model), options(256, 16, KvType::F16)).unwrap();
    let other = context(&model, 128, 16, KvType::Q8_0);
    one.eval(&ids([1; 60])).unwrap();
    // Statistics are the cache's.
    let mapped = |context: &Context| context.sequence().cache().stats().mapped_now;
    assert!(mapped(&one) > 0);
    assert_eq!((mapped(&two), mapped(&other)), (mapped(&one), 0));
    drop((one, two));
    assert_eq!(mapped(&context(&model, 128, 16, KvType::F16)), 0, "a new cache");
}
