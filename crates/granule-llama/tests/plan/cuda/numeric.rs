//! What was planned beside what is held, of models on CUDA devices and in several places.

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device};
use granule_llama::{
    Context, ContextOptions, GpuLayers, LoadOptions, Model, ModelPlan, Placement, PlannedText,
};

use crate::support::make::{Made, Shape};
use crate::{Case, Dice, bank, compare, placed, split, tokens};

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_plan_is_what_contexts_hold_wherever_layers_are() {
    let banks = || [Device::host(), Device::cuda(0), Device::cuda(1)].map(|device| bank(device.unwrap()));
    for seed in 1..=5 {
        let mut dice = Dice(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15) | 1);
        let dir = tempfile::tempdir().unwrap();
        let path = dice.model(dir.path(), 24);
        let layers = ModelPlan::open(&path).unwrap().config().n_layers;
        let [host, first, second] = banks();
        let banks = match seed % 5 {
            0 | 1 => vec![first],
            2 => vec![host, first],
            3 => vec![first, second],
            _ => vec![first.clone(), host, first, second],
        };
        let mut case = Case::new(&mut dice, 40);
        case.options.n_batch = case.options.n_batch.min(case.text.prompt + 3);
        case.options.cublas = cfg!(feature = "cublas") && seed % 2 == 0;
        compare(&path, &placed(&mut dice, &banks, layers), &case);
    }
}

/// Layers split over GPUs, over host and GPU, and whole ones beside them.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_plan_of_ranks_is_what_each_of_them_holds() {
    let banks = || [Device::host(), Device::cuda(0), Device::cuda(1)].map(|device| bank(device.unwrap()));
    let mut split_runs = 0;
    for seed in 1..=6 {
        let mut dice = Dice(u64::wrapping_mul(seed, 0x9E37_79B9_7F4A_7C15) | 1);
        let dir = tempfile::tempdir().unwrap();
        let path = dice.model(dir.path(), 24);
        let plan = ModelPlan::open(&path).unwrap();
        let (layers, legal) = (plan.config().n_layers, plan.legal_ranks().unwrap());
        let [host, first, second] = banks();
        let placement = match seed {
            1 => Placement::new().split(&[first, second], granule_split::Shares::equal(2).unwrap(), layers),
            2 => {
                let shares = granule_split::Shares::ratio(&[1, 2]).unwrap();
                Placement::new().layers(&host, 1).split(&[first, second], shares, layers - 1)
            }
            _ => split(&mut dice, &[first, host, second], layers, &legal),
        };
        let stages = plan.stages(&placement).unwrap();
        split_runs += stages.iter().filter(|stage| stage.rank.is_some()).count();
        let mut case = Case::new(&mut dice, 40);
        case.options.n_batch = case.options.n_batch.min(case.text.prompt + 3);
        case.options.cublas = cfg!(feature = "cublas") && seed == 2;
        compare(&path, &placement, &case);
    }
    assert!(split_runs > 6, "{split_runs}");
}

/// Past the room of the first two graphs, so that others are made; and tokens that are drawn there.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_plan_knows_the_graphs_of_long_texts_and_of_drawing() {
    let device = Device::cuda(0).unwrap();
    for (draws, prompt, len) in [(false, 254, 260), (true, 5, 12), (true, 254, 259)] {
        let mut dice = Dice(77);
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { n_layers: 1, n_heads: 2, n_kv_heads: 1, n_ctx: 24, ..Shape::default() };
        let path = Made::new(&shape).write(dir.path());
        let mut case = Case::new(&mut dice, 40);
        case.options = ContextOptions { n_ctx: Some(600), n_batch: 256, ..case.options };
        case.text = PlannedText { prompt, len, draws, ..PlannedText::default() };
        compare(&path, &Placement::new().layers(&bank(device.clone()), 1), &case);
    }
}

/// Where as much is there as was planned, to the byte, it is enough; and layers that are said to fit do.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_was_planned_is_enough() {
    let limited = |budget| Bank::new(Device::cuda(0).unwrap(), BankOptions::new().budget(budget)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let shape = Shape { n_layers: 4, n_embd: 256, n_ff: 768, n_ctx: 24, ..Shape::default() };
    let path = Made::new(&shape).write(dir.path());
    let plan = ModelPlan::open(&path).unwrap();
    let options = ContextOptions { n_ctx: Some(12), n_batch: 6, ..ContextOptions::default() };
    let fill = |load: LoadOptions<'_>| {
        let mut context = Context::new(Model::load(&path, load).unwrap(), options).unwrap();
        context.eval(&tokens(0..9)).unwrap();
        for at in 9..12 {
            context.eval(&tokens(at..at + 1)).unwrap();
        }
    };
    let whole = |bank: Bank| LoadOptions { bank: Some(bank), ..LoadOptions::default() };
    let text = PlannedText { prompt: 9, len: 12, ..PlannedText::default() };
    let planned = plan.memory(&whole(limited(Bytes::mib(200))), &options, &text).unwrap();
    fill(whole(limited(planned[0].total)));
    let host = bank(Device::host().unwrap());
    for (mib, layers) in [(12, 1), (24, 4)] {
        let (gpus, load) = ([limited(Bytes::mib(mib))], LoadOptions::default());
        let placement = plan.place(&host, &gpus, GpuLayers::Auto, None, &load, &options).unwrap();
        let load = || LoadOptions { placement: Some(placement.clone()), ..LoadOptions::default() };
        let memory = plan.memory(&load(), &options, &text).unwrap();
        assert_eq!(memory.iter().find(|of| of.device == "cuda:0").map(|of| of.layers), Some(layers));
        fill(load());
    }
}
