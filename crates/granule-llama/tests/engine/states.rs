//! State files of a context: what is loaded is what was saved, and what does not fit is refused and changes nothing.

use std::path::Path;
use std::sync::Arc;

use granule_device::Bytes;
use granule_kv::KvType;
use granule_kv::state::{SaveSequence, StateError, save};
use granule_llama::{Context, ContextOptions, Error, KvTransformMode, Model, SequenceId};

use crate::support::make::{Made, Shape};
use crate::{context, encode, ids, load, load_with_threads, options, tales};

const TEXT: &str = "Once upon a time the baker Mia and the sailor Leo lived near the harbor Eastwick.";

/// A context of three sequences, one of which had tokens removed.
fn three(model: &Arc<Model>, options: ContextOptions) -> Context {
    let mut context = Context::new(Arc::clone(model), options).unwrap();
    context.eval(&encode(model, TEXT)).unwrap();
    let first = context.first_sequence();
    let (fork, other) = (context.fork_prefix(first, 12).unwrap(), context.add_sequence().unwrap());
    let (a, b) = (ids([300, 301, 302]), ids([1, 381, 555]));
    context.eval_batch(&[(fork, &a), (other, &b)]).unwrap().count();
    context.slide_sequence(first, 4, 10).unwrap();
    context
}

fn names(context: &Context) -> Vec<SequenceId> {
    context.sequences().collect()
}

fn next(context: &mut Context) -> Vec<Vec<f32>> {
    let token = ids([500]);
    let items: Vec<_> = names(context).into_iter().map(|id| (id, &token[..])).collect();
    context.eval_batch(&items).unwrap().map(<[f32]>::to_vec).collect()
}

#[test]
fn loaded_sequences_go_on_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let model = load(tales());
    for kv in [KvType::F16, KvType::Q8_0, KvType::Q4_0] {
        let mut saved = three(&model, options(128, 16, kv));
        let len = saved.save_state(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), len.get());
        let tokens = |c: &Context| -> Vec<_> {
            c.sequences().map(|id| c.sequence_tokens(id).unwrap().to_vec()).collect()
        };
        // Another context, of another size, another number of layers in a row, another batch.
        let options = ContextOptions { layers_per_row: Some(1), ..options(256, 7, kv) };
        let mut loaded = Context::new(Arc::clone(&model), options).unwrap();
        let first = loaded.first_sequence();
        loaded.eval(&ids([1, 2, 3])).unwrap();
        let gone = loaded.add_sequence().unwrap();
        loaded.load_state(&path).unwrap();
        assert_eq!(tokens(&loaded), tokens(&saved));
        assert_eq!(loaded.first_sequence(), first);
        assert!(loaded.sequence_tokens(gone).is_err());
        assert_eq!(next(&mut loaded), next(&mut saved), "{kv}");
        let more = loaded.add_sequence().unwrap();
        assert_eq!(names(&loaded).last(), Some(&more));
    }
}

#[track_caller]
fn refused(context: &mut Context, path: &Path, words: &str) {
    let before = (context.tokens().to_vec(), names(context));
    let error = context.load_state(path).unwrap_err();
    assert!(matches!(error, Error::State(_)), "{error:?}");
    assert!(error.to_string().contains(words), "{error}");
    assert_eq!((context.tokens().to_vec(), names(context)), before);
    context.eval(&ids([5])).unwrap();
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let model = load(tales());
    three(&model, options(128, 16, KvType::Q4_0)).save_state(&path).unwrap();
    let mut same = context(&model, 128, 16, KvType::Q4_0);
    refused(&mut same, &dir.path().join("none"), "none");
    refused(&mut context(&model, 128, 16, KvType::F16), &path, "keys of q4_0");
    let plain = ContextOptions { kv_transform: KvTransformMode::None, ..options(128, 16, KvType::Q4_0) };
    refused(&mut Context::new(Arc::clone(&model), plain).unwrap(), &path, "--kv-transform");
    refused(&mut context(&model, 13, 16, KvType::Q4_0), &path, "holds 13");
    // Two models that differ in nothing but their weights' numbers.
    let made = |seed| {
        let shape = Shape { seed, head_dim: Some(32), ..Shape::default() };
        // A folder each: a file that is mapped must not be written.
        let folder = tempfile::tempdir_in(dir.path()).unwrap().keep();
        load(&Made::new(&shape).write(&folder))
    };
    let [one, two] = [1, 2].map(made);
    let tokens = ids([1, 2, 3]);
    let mut of_one = context(&one, 64, 16, KvType::F16);
    of_one.eval(&tokens).unwrap();
    of_one.save_state(&path).unwrap();
    refused(&mut context(&two, 64, 16, KvType::F16), &path, "another model");
    let mut again = context(&made(1), 64, 16, KvType::F16);
    again.load_state(&path).unwrap();
    assert_eq!(again.tokens(), tokens);
    // Any byte that is not what was saved, and any cut: granule-kv's own tests go through all of them.
    let good = std::fs::read(&path).unwrap();
    let mut bad = good.clone();
    bad[good.len() / 2] ^= 4;
    std::fs::write(&path, &bad).unwrap();
    refused(&mut again, &path, "damaged");
    std::fs::write(&path, &good[..good.len() - 1]).unwrap();
    refused(&mut again, &path, "cut");
    // What is no state file is not overwritten.
    std::fs::write(&path, "a letter").unwrap();
    let error = again.save_state(&path).unwrap_err();
    assert!(matches!(error, Error::State(StateError::NotAStateFile { .. })), "{error:?}");
    assert_eq!(std::fs::read(&path).unwrap(), b"a letter");
}

/// A token that the model does not have is refused where it comes from a file as where it comes from a call.
#[test]
fn tokens_of_a_file_are_held_against_the_vocabulary() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let model = load(tales());
    let mut context = context(&model, 128, 16, KvType::F16);
    context.eval(&ids([1, 300, 301])).unwrap();
    let before = context.logits().unwrap().to_vec();
    for (last, fits) in [(1023, true), (1024, false), (u32::MAX, false)] {
        let saved = SaveSequence {
            sequence: context.sequence(),
            further: &[],
            heads: &[],
            tokens: &[1, 300, last],
            extra: b"",
        };
        save(&path, &context.kv_identity().unwrap(), &[saved]).unwrap();
        let loaded = context.load_state(&path);
        if fits {
            loaded.unwrap();
            assert_eq!(context.tokens()[2].get(), last);
            assert!(matches!(context.logits(), Err(Error::NoLogits)));
            context.clear().unwrap();
            context.eval(&ids([1, 300, 301])).unwrap();
        } else {
            assert!(matches!(loaded, Err(Error::TokenOutOfRange { id, n_vocab: 1024 }) if id == last));
            assert_eq!((context.tokens(), context.logits().unwrap()), (&ids([1, 300, 301])[..], &before[..]));
        }
    }
}

/// A context whose transform's tables are those of another machine: all constants and scales are off by some bits.
fn elsewhere(model: &Arc<Model>, dir: &Path) -> Context {
    let mut context = context(model, 128, 16, KvType::Q4_0);
    let mut identity = context.kv_identity().unwrap();
    for number in identity.transform[24..].as_chunks_mut::<4>().0 {
        *number = (f32::from_le_bytes(*number) * (1.0 + 1e-5)).to_le_bytes();
    }
    let path = dir.join("elsewhere");
    let empty =
        SaveSequence { sequence: context.sequence(), further: &[], heads: &[], tokens: &[], extra: b"" };
    save(&path, &identity, &[empty]).unwrap();
    context.load_state(&path).unwrap();
    assert_eq!(context.kv_identity().unwrap(), identity);
    context
}

#[test]
fn a_state_brings_the_tables_that_its_rows_were_made_with() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let model = load(tales());
    let mut other = elsewhere(&model, dir.path());
    other.eval(&encode(&model, TEXT)).unwrap();
    other.save_state(&path).unwrap();
    let mut here = context(&model, 128, 16, KvType::Q4_0);
    let own = here.kv_identity().unwrap();
    assert_ne!(own, other.kv_identity().unwrap());
    here.load_state(&path).unwrap();
    assert_eq!(here.kv_identity().unwrap(), other.kv_identity().unwrap());
    assert!(here.memory_info().kv_transform > Bytes::ZERO);
    for _ in 0..3 {
        assert_eq!(next(&mut here), next(&mut other));
        let (first, again) = (here.first_sequence(), other.first_sequence());
        let (fork, twin) = (here.fork_sequence(first).unwrap(), other.fork_sequence(again).unwrap());
        assert_eq!(next(&mut here), next(&mut other), "{fork:?} and {twin:?}");
    }
    // The tables are the context's, and a fork's; nobody else's.
    assert_eq!(here.fork().unwrap().kv_identity().unwrap(), here.kv_identity().unwrap());
    assert_eq!(context(&model, 128, 16, KvType::Q4_0).kv_identity().unwrap(), own);
    // What one remembers the other does not find.
    let remembering = ContextOptions { prefix_cache: true, ..options(128, 16, KvType::Q4_0) };
    let remembering = || Context::new(Arc::clone(&model), remembering).unwrap();
    let (mut with_theirs, mut with_own) = (remembering(), remembering());
    with_theirs.load_state(&path).unwrap();
    with_theirs.clear().unwrap();
    let prompt = encode(&model, TEXT);
    for (context, reused) in
        [(&mut with_theirs, 0), (&mut with_own, 0), (&mut remembering(), prompt.len() - 1)]
    {
        assert_eq!(context.eval_prompt(&prompt, &mut |_| {}).unwrap(), reused);
    }
    with_theirs.clear().unwrap();
    assert_eq!(with_theirs.eval_prompt(&prompt, &mut |_| {}).unwrap(), prompt.len() - 1);
}

#[test]
fn tables_that_are_none_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let model = load(tales());
    let mut context = context(&model, 128, 16, KvType::Q4_0);
    context.eval(&ids([1, 300])).unwrap();
    let good = context.kv_identity().unwrap();
    let held = model.bank().stats().held;
    let mut bad = Vec::new();
    bad.push(good.transform[..good.transform.len() - 4].to_vec());
    bad.push([&good.transform[..], &[0; 4]].concat());
    // Another kind, another shape, keys alone.
    for at in [0, 4, 8, 12, 20] {
        bad.push(good.transform.clone());
        bad.last_mut().unwrap()[at] ^= 1;
    }
    // A constant and a scale that are no numbers, a scale of nothing.
    let scales = 24 + 128 * 4;
    for (at, number) in [(24, f32::NAN), (scales, f32::INFINITY), (scales, 0.0), (scales, -1.0)] {
        bad.push(good.transform.clone());
        bad.last_mut().unwrap()[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    // Tables of values alone, which a cache of other types has.
    let values = ContextOptions { type_k: KvType::F16, ..options(128, 16, KvType::Q4_0) };
    bad.push(Context::new(Arc::clone(&model), values).unwrap().kv_identity().unwrap().transform);
    for transform in bad {
        let identity = granule_kv::Identity { transform, ..good.clone() };
        let saved = SaveSequence {
            sequence: context.sequence(),
            further: &[],
            heads: &[],
            tokens: &[1, 300],
            extra: b"",
        };
        save(&path, &identity, &[saved]).unwrap();
        refused(&mut context, &path, "transform");
        context.truncate(2).unwrap();
        assert_eq!(context.kv_identity().unwrap(), good);
    }
    context.trim().unwrap();
    assert!(model.bank().stats().held <= held, "nothing stays of what was refused");
}

#[test]
fn a_model_is_itself_however_it_is_loaded_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let identity = load(tales()).identity().unwrap().clone();
    assert_eq!(load_with_threads(tales(), 1).identity().unwrap(), &identity);
    let shape = Shape::default();
    let of = |shape: &Shape| load(&Made::new(shape).write(dir.path())).identity().unwrap().clone();
    let plain = of(&shape);
    assert_eq!(of(&shape), plain);
    assert_ne!(plain, identity);
    assert_ne!(of(&Shape { seed: shape.seed + 1, ..shape.clone() }).model, plain.model);
    let turned = of(&Shape { rope_base: Some(500_000.0), ..shape });
    assert_ne!(turned.rope, plain.rope);
}
