//! Models whose layers are in several places: what they compute beside the host alone, what they hold where, what they refuse.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device};
use granule_kv::KvType;
use granule_llama::{
    Context, ContextOptions, Error, GenerateOptions, LoadOptions, Model, Placement, Precision,
    SamplingOptions,
};

use granule_quant::DType;

use super::super::{argmax, distance, load_on, options, tales, tokens};
use super::{BESIDE, PROMPT};
use crate::support::make::{Made, Shape};

/// "host", or the number of a GPU, and how many layers are there.
type Runs<'a> = &'a [(Option<usize>, usize)];

const HOST: Option<usize> = None;

/// Banks of a device each, those of the host one.
fn placed(runs: Runs<'_>) -> (Placement, Vec<Bank>) {
    let mut banks: Vec<(Option<usize>, Bank)> = Vec::new();
    let mut placement = Placement::new();
    for &(gpu, n) in runs {
        if !banks.iter().any(|(known, _)| *known == gpu) {
            let device = gpu.map_or_else(Device::host, Device::cuda).unwrap();
            banks.push((gpu, Bank::new(device, BankOptions::new()).unwrap()));
        }
        let (_, bank) = banks.iter().find(|(known, _)| *known == gpu).unwrap();
        placement = placement.layers(bank, n);
    }
    (placement, banks.into_iter().map(|(_, bank)| bank).collect())
}

fn load(placement: Placement, path: &Path) -> Result<Arc<Model>, Error> {
    let (placement, threads) = (Some(placement), NonZeroUsize::new(1));
    Model::load(
        path,
        LoadOptions { placement, threads, precision: Precision::Precise, ..LoadOptions::default() },
    )
}

/// What a context does, as logits: a prompt, single tokens, a batch of a fork and its parent, a turn, what was forgotten, a state.
fn story(context: &mut Context, state: &Path) -> Vec<Vec<f32>> {
    let mut rows = vec![context.eval(&tokens((0..12).map(|i| 1 + i * 23))).unwrap().to_vec()];
    for token in [20, 21, 22] {
        rows.push(context.eval(&tokens([token])).unwrap().to_vec());
    }
    let first = context.first_sequence();
    let fork = context.fork_sequence(first).unwrap();
    for (one, two) in [(&[5][..], &[6][..]), (&[7], &[8]), (&[9], &[10; 30])] {
        let (one, two) = (tokens(one.iter().copied()), tokens(two.iter().copied()));
        let batch = context.eval_batch(&[(first, &one), (fork, &two)]).unwrap();
        rows.extend(batch.map(<[f32]>::to_vec));
    }
    context.remove_tokens(fork, 3..7).unwrap();
    let batch = context.eval_batch(&[(fork, &tokens([11])), (first, &tokens([12, 13]))]).unwrap();
    rows.extend(batch.map(<[f32]>::to_vec));
    context.save_state(state).unwrap();
    context.truncate(5).unwrap();
    rows.push(context.eval(&tokens([16])).unwrap().to_vec());
    context.load_state(state).unwrap();
    rows.push(context.eval(&tokens([17])).unwrap().to_vec());
    rows
}

/// Wherever the layers are, the story is the host's; and a state that was saved in one place is gone on with in another.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_split_model_is_the_hosts() {
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape { n_layers: 3, n_heads: 2, n_kv_heads: 1, ..Shape::default() };
    let path = Made::new(&shape).write(dir.path());
    let splits: [Runs<'_>; 5] = [
        &[(HOST, 1), (Some(0), 2)],
        &[(Some(0), 1), (Some(1), 2)],
        &[(Some(1), 2), (HOST, 1)],
        &[(HOST, 1), (Some(0), 1), (HOST, 1)],
        &[(HOST, 1), (Some(0), 1), (Some(1), 1)],
    ];
    for (k, v, layers_per_row) in [(KvType::F32, KvType::Q8_0, Some(1)), (KvType::F16, KvType::BF16, Some(3))]
    {
        let options = ContextOptions { layers_per_row, ..options(96, 48, k, v) };
        let host = load(placed(&[(HOST, 3)]).0, &path).unwrap();
        let mut whole = Context::new(Arc::clone(&host), options).unwrap();
        let want = story(&mut whole, &dir.path().join("whole"));
        // Where rows are rounded to few bits, sums in another order tip values over: not as much as those bits cost.
        let exact = ContextOptions { type_k: KvType::F16, type_v: KvType::F16, ..options };
        let exact = story(&mut Context::new(host, exact).unwrap(), &dir.path().join("exact"));
        let costs = want.iter().zip(&exact).map(|(row, exact)| distance(row, exact));
        let most = costs.fold(BESIDE, f64::max);
        let own = whole.eval(&tokens([18])).unwrap().to_vec();
        for (i, runs) in splits.into_iter().enumerate() {
            let (placement, banks) = placed(runs);
            let model = load(placement, &path).unwrap();
            let stages: Vec<_> = model.stages().map(|stage| stage.layers).collect();
            assert_eq!(stages.len(), runs.len());
            assert_eq!(stages.last().map(|layers| layers.end), Some(3));
            // As much of each without graphs.
            let graphs = i % 2 == 0;
            let options = ContextOptions { graphs, ..options };
            let mut context = Context::new(Arc::clone(&model), options).unwrap();
            let got = story(&mut context, &dir.path().join("split"));
            assert_eq!(got.len(), want.len());
            for (row, (got, want)) in got.iter().zip(&want).enumerate() {
                let far = distance(got, want);
                assert!(far <= most, "{runs:?}, {k} {v}, graphs {graphs}, row {row}: {far}, {most} allowed");
            }
            // The other's rows, as bytes.
            context.load_state(dir.path().join("whole")).unwrap();
            context.eval(&tokens([17])).unwrap();
            let far = distance(context.eval(&tokens([18])).unwrap(), &own);
            assert!(far <= most, "{runs:?}, {k} {v}: {far}, {most} allowed");
            let info = context.memory_info();
            assert_eq!(info.devices.iter().map(|device| device.layers).sum::<usize>(), 3);
            let sum = info.devices.iter().map(|device| device.total).fold(Bytes::ZERO, Bytes::saturating_add);
            assert_eq!(info.total, sum);
            for (device, bank) in info.devices.iter().zip(&banks) {
                assert_eq!(device.device, bank.device().name());
                assert!(bank.stats().held <= device.total, "{device:?}");
            }
            drop((context, model));
            for bank in banks {
                bank.trim();
                assert_eq!(bank.stats().held, Bytes::ZERO, "{runs:?}");
            }
        }
    }
}

/// The model that was trained, with caches of 4 bits and their transform, which is made over all stages; and what it writes when
/// tokens are drawn on the last one.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_tale_of_two_places_is_the_hosts() {
    let options = options(96, 32, KvType::Q4_0, KvType::Q8_0);
    let written = |model: Arc<Model>| {
        let mut context = Context::new(model, options).unwrap();
        let generate = GenerateOptions {
            sampling: SamplingOptions::greedy(),
            n_predict: Some(10),
            ..GenerateOptions::default()
        };
        let pieces = context.generate(&tokens(PROMPT), generate).unwrap();
        pieces.map(|piece| piece.unwrap().token).collect::<Vec<_>>()
    };
    let want = written(load_on(Device::host().unwrap(), tales()));
    for runs in [&[(HOST, 2), (Some(0), 4)][..], &[(Some(0), 5), (Some(1), 1)], &[(Some(0), 3), (HOST, 3)]] {
        let (placement, _) = placed(runs);
        let model = load(placement, tales()).unwrap();
        assert_eq!(written(Arc::clone(&model)), want, "{runs:?}");
        goes_on_with_states(model, options, runs);
    }
}

/// Rows of 4 bits with the tables of their transform, from the host to where the layers are and back: both attend to the same bytes.
fn goes_on_with_states(model: Arc<Model>, options: ContextOptions, runs: Runs<'_>) {
    let dir = tempfile::tempdir().unwrap();
    let mut host = Context::new(load_on(Device::host().unwrap(), tales()), options).unwrap();
    let mut split = Context::new(model, options).unwrap();
    for (i, path) in [dir.path().join("host"), dir.path().join("split")].into_iter().enumerate() {
        let (from, to) = if i == 0 { (&mut host, &mut split) } else { (&mut split, &mut host) };
        from.clear().unwrap();
        from.eval(&tokens(PROMPT)).unwrap();
        from.save_state(&path).unwrap();
        to.load_state(&path).unwrap();
        for token in [20, 21] {
            let (there, here) = (to.eval(&tokens([token])).unwrap(), from.eval(&tokens([token])).unwrap());
            let far = distance(there, here);
            assert!(far <= BESIDE, "{runs:?}: {far}");
        }
    }
}

/// Weights that serve as table and output alike, whichever of the two the host needs, and however the file is brought in; and what is
/// booked for them is what is said.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_tied_table_is_where_it_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape { n_layers: 2, weights: vec![DType::Q4_0], ..Shape::default() };
    let path = Made::new(&shape).write(dir.path());
    let prompt = tokens([1, 7, 9]);
    let options = options(64, 16, KvType::F16, KvType::F16);
    let mut whole = Context::new(load(placed(&[(HOST, 2)]).0, &path).unwrap(), options).unwrap();
    let want = whole.eval(&prompt).unwrap().to_vec();
    for runs in [&[(HOST, 1), (Some(0), 1)][..], &[(Some(0), 1), (HOST, 1)]] {
        for (no_mmap, mlock, no_repack) in
            [(false, false, false), (false, false, true), (true, false, false), (true, true, true)]
        {
            let (placement, banks) = placed(runs);
            let how = LoadOptions {
                placement: Some(placement),
                threads: NonZeroUsize::new(1),
                precision: Precision::Precise,
                no_mmap,
                mlock,
                no_repack,
                ..LoadOptions::default()
            };
            let model = match Model::load(&path, how) {
                // Where nobody may lock as much.
                Err(error) if mlock => {
                    assert!(error.to_string().contains("lock"), "{error}");
                    continue;
                }
                loaded => loaded.unwrap(),
            };
            let booked = banks.iter().map(|bank| bank.stats().held).fold(Bytes::ZERO, Bytes::saturating_add);
            assert_eq!(booked, model.bytes(), "{runs:?} {no_mmap} {mlock} {no_repack}");
            let mut context = Context::new(model, options).unwrap();
            let far = distance(context.eval(&prompt).unwrap(), &want);
            assert!(far <= BESIDE, "{runs:?} {no_mmap} {mlock} {no_repack}: {far}");
        }
    }
}

/// A prompt that was computed is found again in all stages, and where one has forgotten it, computed anew.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn prompts_are_remembered_by_all_stages() {
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape { n_layers: 2, n_heads: 2, n_kv_heads: 1, ..Shape::default() };
    let path = Made::new(&shape).write(dir.path());
    let (placement, banks) = placed(&[(HOST, 1), (Some(0), 1)]);
    let model = load(placement, &path).unwrap();
    let options = ContextOptions { prefix_cache: true, ..options(128, 64, KvType::F16, KvType::F16) };
    let prompt = tokens((0..40).map(|i| 1 + i * 7 % 90));
    let eval = |prompt: &[_]| {
        let mut context = Context::new(Arc::clone(&model), options).unwrap();
        let reused = context.eval_prompt(prompt, &mut |_| {}).unwrap();
        (reused, context.logits().unwrap().to_vec())
    };
    let (none, want) = eval(&prompt);
    let (all, again) = eval(&prompt);
    assert_eq!((none, all), (0, 39));
    assert!(distance(&again, &want) <= BESIDE);
    assert_eq!(argmax(&again), argmax(&want));
    // The first stage's goes; the other's alone is of no use.
    assert!(model.prefixes().clear() > Bytes::ZERO);
    let (gone, anew) = eval(&prompt);
    assert_eq!(gone, 0);
    assert!(distance(&anew, &want) <= BESIDE);
    assert_eq!(eval(&prompt).0, 39);
    model.forget_prefixes();
    assert_eq!(eval(&prompt).0, 0);
    drop(model);
    for bank in banks {
        // What is being mapped ahead goes back when that thread is done.
        bank.trim();
        assert_eq!(bank.stats().held, Bytes::ZERO);
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_cannot_be_placed_is_refused() {
    for (placed_layers, runs) in [(5, &[(HOST, 2), (Some(0), 3)][..]), (7, &[(Some(0), 7)]), (0, &[])] {
        let error = load(placed(runs).0, tales()).unwrap_err();
        assert!(matches!(error, Error::Placement { placed, .. } if placed == placed_layers), "{error}");
    }
    let host = || Bank::new(Device::host().unwrap(), BankOptions::new()).unwrap();
    // No room for the weights of the second run: nothing stays of the first.
    let (host, device) = (host(), Device::cuda(0).unwrap());
    let small = Bank::new(device, BankOptions::new().budget(Bytes::kib(64))).unwrap();
    let error = load(Placement::new().layers(&host, 3).layers(&small, 3), tales()).unwrap_err();
    assert!(matches!(error, Error::Bank(_)), "{error}");
    assert_eq!((host.stats().held, small.stats().held), (Bytes::ZERO, Bytes::ZERO));
}
