//! The same text in, the same numbers out: however it is cut into batches, forked, cleared, or spread over threads.

use granule_kv::KvType;
use granule_llama::{LoadOptions, Model, TokenId};
use granule_ops::Threads;
use granule_quant::DType;

use crate::support::make::{Made, Shape};
use crate::{argmax, context, distance, encode, greedy, ids, load, load_with_two_kinds_of_threads, tales};

/// Sums of a batch are grouped in another way than those of a single token; activations in front of quantized weights
/// keep 15 bits.
const GROUPING: f64 = 2e-3;
/// Where the cache is rounded to few bits, that now and then tips a value over to the next step.
const TIPPED: f64 = 5e-2;

const PROMPT: &str = "Once upon a time the baker Mia and the sailor Leo lived near the harbor Eastwick.";

#[test]
fn one_batch_batches_of_seven_and_token_by_token() {
    let dir = tempfile::tempdir().unwrap();
    let odd = Shape { n_embd: 52, n_heads: 6, n_kv_heads: 2, head_dim: Some(32), ..Shape::default() };
    for path in [tales().to_owned(), Made::new(&odd).write(dir.path())] {
        let model = load(&path);
        let prompt = encode(&model, PROMPT);
        for kv in [KvType::F32, KvType::F16, KvType::Q8_0, KvType::Q4_0] {
            let bound = if kv == KvType::F32 { GROUPING } else { TIPPED };
            let whole = context(&model, 256, 256, kv).eval(&prompt).unwrap().to_vec();
            let sevens = context(&model, 256, 7, kv).eval(&prompt).unwrap().to_vec();
            let mut single = context(&model, 256, 1, kv);
            let singles = prompt.iter().map(|&t| single.eval(&[t]).unwrap().to_vec()).last().unwrap();
            for (cut, logits) in [("batches of 7", sevens), ("token by token", singles)] {
                let far = distance(&logits, &whole);
                assert!(far < bound, "{cut}, {kv} cache, {path:?}: {far}");
                assert_eq!(argmax(&logits), argmax(&whole), "{cut}, {kv} cache, {path:?}");
            }
        }
    }
}

/// What prompts of 8 bits move a logit by, of this model: about 0.03 at most.
const EIGHT_BITS: f64 = 0.1;

#[test]
fn fast_prompts_are_near_precise_ones() {
    let dir = tempfile::tempdir().unwrap();
    let made = Made::new(&Shape { weights: vec![DType::F16], ..Shape::default() }).write(dir.path());
    for path in [tales().to_owned(), made] {
        let fast = Model::load(&path, LoadOptions::default()).unwrap();
        let in_place = Model::load(&path, LoadOptions { no_repack: true, ..LoadOptions::default() }).unwrap();
        let precise = load(&path);
        let mut prompt = encode(&fast, &PROMPT.repeat(5));
        prompt.truncate(100);
        let short = &prompt[..40];
        let logits = |model| context(model, 256, 256, KvType::F16).eval(&prompt).unwrap().to_vec();
        let exact = logits(&precise);
        for (way, logits) in [("packed", logits(&fast)), ("in place", logits(&in_place))] {
            let far = distance(&logits, &exact);
            assert!(far > 0.0 && far < EIGHT_BITS, "{way}, {path:?}: {far}");
            assert_eq!(argmax(&logits), argmax(&exact), "{way}, {path:?}");
        }
        // A lone token is the same in both, and so is a short prompt.
        for tokens in [&short[..1], short] {
            let few = |model| context(model, 256, 256, KvType::F16).eval(tokens).unwrap().to_vec();
            assert_eq!(few(&fast), few(&precise), "{path:?}");
        }
    }
}

#[test]
fn all_rows_are_the_rows_one_by_one() {
    let model = load(tales());
    let prompt = encode(&model, PROMPT);
    let mut at_once = context(&model, 64, 16, KvType::F16);
    let all = at_once.eval_all(&prompt).unwrap().to_vec();
    let mut single = context(&model, 64, 16, KvType::F16);
    for (row, &token) in all.chunks(model.config().n_vocab).zip(&prompt) {
        assert!(distance(single.eval(&[token]).unwrap(), row) < TIPPED);
    }
}

#[test]
fn a_fork_continues_as_its_parent_would_and_apart_from_it() {
    let model = load(tales());
    let prompt = encode(&model, PROMPT);
    for kv in [KvType::F16, KvType::Q8_0] {
        let mut parent = context(&model, 512, 64, kv);
        let next = argmax(parent.eval(&prompt).unwrap());
        let mut fork = parent.fork().unwrap();
        // Another history in the parent first: the fork must not see it.
        let other = greedy(&mut parent.fork().unwrap(), &ids([next.get() + 1]), 40);
        let forked = greedy(&mut fork, &[next], 40);
        let own = greedy(&mut parent, &[next], 40);
        assert_eq!(forked, own);
        assert_ne!(forked, other);
        assert_eq!(
            greedy(&mut context(&model, 512, 64, kv), &[prompt.as_slice(), &[next]].concat(), 40),
            own
        );
    }
}

#[test]
fn truncating_takes_back_what_was_written() {
    let model = load(tales());
    let prompt = encode(&model, PROMPT);
    let mut context = context(&model, 512, 64, KvType::F16);
    let (last, before) = prompt.split_last().unwrap();
    context.eval(before).unwrap();
    let first = greedy(&mut context, &[*last], 30);
    context.truncate(before.len()).unwrap();
    assert_eq!(context.tokens(), before);
    assert_eq!(greedy(&mut context, &[*last], 30), first);
}

#[test]
fn clear_and_reuse_gives_the_same_text_again() {
    let model = load(tales());
    let prompt = encode(&model, PROMPT);
    let mut context = context(&model, 512, 64, KvType::F16);
    let first = greedy(&mut context, &prompt, 50);
    context.clear().unwrap();
    assert!(context.tokens().is_empty());
    assert_eq!(greedy(&mut context, &prompt, 50), first);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    // So long that attention cuts the context into pieces.
    let prompt: Vec<TokenId> = encode(&load(tales()), PROMPT).into_iter().cycle().take(900).collect();
    for kv in [KvType::F16, KvType::Q4_0] {
        let logits = |threads, threads_batch| {
            let model = load_with_two_kinds_of_threads(tales(), threads, threads_batch);
            let mut context = context(&model, 1024, 100, kv);
            let prompt_end = context.eval(&prompt).unwrap().to_vec();
            let decoded = context.eval(&ids([300])).unwrap().to_vec();
            let fork = context.fork_sequence(context.first_sequence()).unwrap();
            let (next, other) = (ids([301]), ids([302]));
            let batch = [(context.first_sequence(), &next[..]), (fork, &other[..])];
            let both: Vec<Vec<f32>> = context.eval_batch(&batch).unwrap().map(<[f32]>::to_vec).collect();
            (prompt_end, decoded, both)
        };
        let one = logits(1, None);
        for (threads, threads_batch) in [(2, None), (3, None), (5, Some(2)), (1, Some(4)), (20, None)] {
            assert_eq!(logits(threads, threads_batch), one, "{kv}, {threads} and {threads_batch:?} threads");
        }
    }
}

#[test]
fn steps_of_one_token_and_of_more_have_threads_of_their_own() {
    let counts = |one, more| {
        let model = load_with_two_kinds_of_threads(tales(), one, more);
        (model.threads().count(), model.threads_batch().count())
    };
    assert_eq!(counts(3, None), (3, 3));
    assert_eq!(counts(1, Some(4)), (1, 4));
    assert_eq!(counts(4, Some(2)), (4, 2));
    let usual = Threads::default_count().get();
    assert_eq!(counts(0, None), (usual, usual));
    assert_eq!(counts(0, Some(usual + 2)), (usual, usual + 2));
    assert_eq!(counts(0, Some(1)), (usual, 1));
}

#[test]
fn two_contexts_of_one_model_do_not_disturb_each_other() {
    let model = load(tales());
    let prompt = encode(&model, PROMPT);
    let alone = greedy(&mut context(&model, 256, 32, KvType::F16), &prompt, 30);
    std::thread::scope(|scope| {
        let both =
            [0, 1].map(|_| scope.spawn(|| greedy(&mut context(&model, 256, 32, KvType::F16), &prompt, 30)));
        for one in both {
            assert_eq!(one.join().unwrap(), alone);
        }
    });
}
