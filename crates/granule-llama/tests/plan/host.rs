//! Plans of models on the host.

use granule_device::{Bytes, Device, HostOptions};
use granule_kv::{KvOptions, KvType};
use granule_llama::{ContextOptions, Error, LoadOptions, Model, ModelPlan, Placement, PlannedText};
use granule_quant::DType;

use crate::support::make::{Made, Shape};
use crate::{Case, Dice, bank, compare, placed, split, tales, tokens};

/// A host device with small granules, in which little is hidden by rounding, or the usual ones.
fn device(dice: &mut Dice) -> Device {
    let granule = dice.one(&[Bytes::kib(16), Bytes::kib(256), Bytes::mib(2)]);
    Device::host_with(HostOptions::new().granule(granule).capacity(Bytes::gib(2))).unwrap()
}

#[test]
fn a_plan_is_what_contexts_hold() {
    for seed in 1..=60 {
        let mut dice = Dice(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15) | 1);
        let dir = tempfile::tempdir().unwrap();
        let path = dice.model(dir.path(), 2048);
        let bank = bank(device(&mut dice));
        let layers = ModelPlan::open(&path).unwrap().config().n_layers;
        let case = Case::new(&mut dice, 300);
        compare(&path, &placed(&mut dice, &[bank], layers), &case);
    }
}

/// Layers split over ranks, beside whole ones, in runs of any order over one to four virtual devices.
#[test]
fn a_plan_of_ranks_is_what_each_of_them_holds() {
    let (mut split_runs, mut runs) = (0, 0);
    for seed in 1..=80 {
        let mut dice = Dice(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15) | 1);
        let dir = tempfile::tempdir().unwrap();
        let path = dice.model(dir.path(), 256);
        let n = 1 + dice.below(4);
        let banks: Vec<_> = (0..n).map(|_| bank(device(&mut dice))).collect();
        let plan = ModelPlan::open(&path).unwrap();
        let placement = split(&mut dice, &banks, plan.config().n_layers, &plan.legal_ranks().unwrap());
        let stages = plan.stages(&placement).unwrap();
        split_runs += stages.iter().filter(|stage| stage.rank.is_some()).count();
        runs += stages.len();
        let case = Case::new(&mut dice, 120);
        compare(&path, &placement, &case);
    }
    assert!(split_runs > 60 && runs - split_runs > 30, "{split_runs} parts of {runs} places");
}

/// Ranks that have a process each know their own part alone: here, a thread each, with a model of its own.
#[test]
fn a_plan_of_one_rank_among_several_is_what_it_holds() {
    for seed in 1..=8 {
        let mut dice = Dice(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15) | 1);
        let dir = tempfile::tempdir().unwrap();
        let path = dice.model(dir.path(), 64);
        let layers = ModelPlan::open(&path).unwrap().config().n_layers;
        let case = Case::new(&mut dice, 60);
        let group = granule_split::comm::host_group(2, Default::default()).unwrap();
        std::thread::scope(|scope| {
            for (rank, end) in group.into_iter().enumerate() {
                let bank = bank(device(&mut dice));
                let shares = granule_split::Shares::ratio(&[1, 1 + seed % 2]).unwrap();
                let placement = Placement::new().rank(&bank, std::sync::Arc::new(end), shares, layers);
                let (path, case) = (&path, &case);
                scope.spawn(move || {
                    let plan = ModelPlan::open(path).unwrap();
                    let stages = plan.stages(&placement).unwrap();
                    assert_eq!(stages[0].rank.as_ref().map(|part| (part.rank, part.ranks)), Some((rank, 2)));
                    compare(path, &placement, case);
                });
            }
        });
    }
}

/// What a plan says of where layers would be is where they then are.
#[test]
fn a_plan_tells_places_as_a_model_does() {
    for seed in 1..=20 {
        let mut dice = Dice(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15) | 1);
        let dir = tempfile::tempdir().unwrap();
        let path = dice.model(dir.path(), 64);
        let banks: Vec<_> = (0..3).map(|_| bank(device(&mut dice))).collect();
        let plan = ModelPlan::open(&path).unwrap();
        let placement = split(&mut dice, &banks, plan.config().n_layers, &plan.legal_ranks().unwrap());
        let load = LoadOptions { placement: Some(placement.clone()), ..LoadOptions::default() };
        let model = Model::load(&path, load).unwrap();
        assert_eq!(plan.stages(&placement).unwrap(), model.stages().collect::<Vec<_>>());
    }
}

/// Which numbers of ranks a plan calls legal are those that load, and what is refused is refused by both with the same words.
#[test]
fn what_cannot_be_split_is_refused_before_anything_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    // Blocks of 256 columns over four heads of 64: one piece.
    let shape = Shape {
        n_embd: 256,
        n_heads: 4,
        n_kv_heads: 2,
        n_ff: 512,
        weights: vec![DType::Q4_K, DType::Q8_0],
        ..Shape::default()
    };
    for (weights, legal) in [(vec![DType::Q8_0], 4), (vec![DType::Q6_K], 1)] {
        let path = Made::new(&Shape { weights, ..shape.clone() }).write(dir.path());
        let plan = ModelPlan::open(&path).unwrap();
        assert_eq!(plan.legal_ranks().unwrap(), (1..=legal).collect::<Vec<_>>());
        for ranks in 2..=6 {
            let mut dice = Dice(7);
            let banks: Vec<_> = (0..ranks).map(|_| bank(device(&mut dice))).collect();
            let shares = granule_split::Shares::equal(ranks).unwrap();
            let placement = Placement::new().split(&banks, shares, plan.config().n_layers);
            let load = || LoadOptions { placement: Some(placement.clone()), ..LoadOptions::default() };
            let planned = plan.memory(&load(), &ContextOptions::default(), &PlannedText::default());
            let loaded = Model::load(&path, load());
            assert_eq!((planned.is_ok(), loaded.is_ok()), (ranks <= legal, ranks <= legal), "{ranks}");
            let (Err(planned), Err(loaded)) = (planned, loaded) else { continue };
            assert_eq!(planned.to_string(), loaded.to_string());
            assert!(matches!(planned, Error::Split(granule_split::Error::Indivisible { .. })), "{planned}");
            assert!(planned.to_string().contains(&format!("over {ranks} ranks")), "{planned}");
        }
    }
}

#[test]
fn a_plan_of_the_tales_model_is_what_it_holds() {
    let bank = bank(Device::host().unwrap());
    let layers = ModelPlan::open(tales()).unwrap().config().n_layers;
    for (types, prompt, len) in [
        ([KvType::F16, KvType::F16], 100, 256),
        ([KvType::Q4_0, KvType::Q8_0], 33, 60),
        ([KvType::Q8_0, KvType::Q4_0], 200, 240),
    ] {
        let options = ContextOptions {
            n_ctx: Some(256),
            n_batch: 64,
            type_k: types[0],
            type_v: types[1],
            kv: KvOptions::new().ahead(0),
            ..ContextOptions::default()
        };
        let text = PlannedText { prompt, len, ..PlannedText::default() };
        let case = Case { options, text, threads: [2, 2], no_mmap: false, no_repack: false };
        compare(tales(), &Placement::new().layers(&bank, layers), &case);
    }
}

/// What another thread maps ahead is in the plan, and comes.
#[test]
fn what_is_mapped_ahead_is_planned_for() {
    let device =
        Device::host_with(HostOptions::new().granule(Bytes::kib(16)).capacity(Bytes::gib(1))).unwrap();
    let load = || LoadOptions { bank: Some(bank(device.clone())), ..LoadOptions::default() };
    let options = ContextOptions { n_ctx: Some(256), ..ContextOptions::default() };
    let plan = ModelPlan::open(tales()).unwrap();
    let mut context = granule_llama::Context::new(Model::load(tales(), load()).unwrap(), options).unwrap();
    context.eval(&tokens(0..50)).unwrap();
    let text = PlannedText { prompt: 50, ..PlannedText::default() };
    let planned = plan.memory(&load(), &options, &text).unwrap();
    for _ in 0..1000 {
        if context.memory_info().devices == planned {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert_eq!(context.memory_info().devices, planned);
}
