//! State files of a context: what is loaded is what was saved, and what does not fit is refused and changes nothing.

use std::path::Path;
use std::sync::Arc;

use granule_kv::KvType;
use granule_kv::state::StateError;
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
