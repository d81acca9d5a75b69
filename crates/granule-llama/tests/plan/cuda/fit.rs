//! Which layers fit, and what is said where some do not.

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device};
use granule_kv::KvType;
use granule_llama::{ContextOptions, Error, GpuLayers, LoadOptions, ModelPlan, Placement, PlannedText, Team};
use granule_split::Shares;

use crate::{bank, tales};

/// A bank over a GPU with so much for a model.
fn limited(gpu: usize, budget: Bytes) -> Bank {
    Bank::new(Device::cuda(gpu).unwrap(), BankOptions::new().budget(budget)).unwrap()
}

fn options(n_ctx: usize) -> ContextOptions {
    let types = (KvType::F16, KvType::F32);
    ContextOptions { n_ctx: Some(n_ctx), n_batch: 64, type_k: types.0, type_v: types.1, ..Default::default() }
}

/// How many layers each bank has.
fn counts(placement: &Placement, host: &Bank, gpus: &[Bank]) -> Vec<usize> {
    let plan = ModelPlan::open(tales()).unwrap();
    let load = LoadOptions { placement: Some(placement.clone()), ..LoadOptions::default() };
    let memory = plan.memory(&load, &options(64), &PlannedText::default()).unwrap();
    let of = |bank: &Bank| {
        let name = bank.device().name();
        memory.iter().find(|device| device.device == name).map_or(0, |device| device.layers)
    };
    std::iter::once(host).chain(gpus).map(of).collect()
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn as_many_layers_as_fit_go_to_the_gpus() {
    let (plan, load) = (ModelPlan::open(tales()).unwrap(), LoadOptions::default());
    let host = bank(Device::host().unwrap());
    let options = options(96);
    let mut before = 0;
    for mib in [2, 8, 14, 18, 22, 26, 30, 34, 48, 64] {
        let gpus = [limited(0, Bytes::mib(mib)), limited(1, Bytes::mib(mib / 2))];
        let place = |layers, split: Option<&[u64]>| plan.place(&host, &gpus, layers, split, &load, &options);
        let placement = place(GpuLayers::Auto, None).unwrap();
        assert_eq!(
            counts(&placement, &host, &gpus),
            counts(&place(GpuLayers::Auto, None).unwrap(), &host, &gpus)
        );
        let [_, first, second] = counts(&placement, &host, &gpus)[..] else { unreachable!() };
        assert!(first + second >= before, "{mib} MiB hold fewer than less did");
        before = first + second;
    }
    assert_eq!(before, plan.config().n_layers);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn layers_are_shared_as_was_said() {
    let (plan, load) = (ModelPlan::open(tales()).unwrap(), LoadOptions::default());
    let host = bank(Device::host().unwrap());
    let gpus = [limited(0, Bytes::mib(150)), limited(1, Bytes::mib(50))];
    let place = |layers, split: Option<&[u64]>| {
        counts(&plan.place(&host, &gpus, layers, split, &load, &options(64)).unwrap(), &host, &gpus)
    };
    assert_eq!(place(GpuLayers::All, None), [0, 5, 1]);
    assert_eq!(place(GpuLayers::All, Some(&[1, 2])), [0, 2, 4]);
    assert_eq!(place(GpuLayers::Count(3), Some(&[2, 1])), [3, 2, 1]);
    assert_eq!(place(GpuLayers::Count(100), Some(&[0, 1])), [0, 0, 6]);
    assert_eq!(place(GpuLayers::Count(0), None), [6, 0, 0]);
    let refused = plan.place(&host, &gpus, GpuLayers::All, Some(&[0, 0]), &load, &options(64));
    assert!(matches!(refused, Err(Error::Placement { .. })));
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_does_not_fit_says_what_would() {
    let (plan, load) = (ModelPlan::open(tales()).unwrap(), LoadOptions::default());
    let host = bank(Device::host().unwrap());
    let mut seen = 0;
    for mib in [4, 7, 10, 13, 16, 19] {
        let gpus = [limited(0, Bytes::mib(mib))];
        let options = |n_ctx: usize, type_k, type_v| ContextOptions {
            n_ctx: Some(n_ctx),
            n_batch: 600,
            type_k,
            type_v,
            ..Default::default()
        };
        let place = |layers, options: &ContextOptions| plan.place(&host, &gpus, layers, None, &load, options);
        let asked = options(3000, KvType::F32, KvType::F32);
        let Err(Error::DoesNotFit { device, needed, available, missing, fits }) =
            place(GpuLayers::All, &asked)
        else {
            continue;
        };
        seen += 1;
        assert_eq!((device.as_str(), available), ("cuda:0", Bytes::mib(mib)));
        assert_eq!(needed, available.saturating_add(missing));
        assert!(missing > Bytes::ZERO);
        assert_eq!((fits.wanted, fits.tokens), (6, 600));
        place(GpuLayers::Count(fits.layers), &asked).unwrap();
        assert!(place(GpuLayers::Count(fits.layers + 1), &asked).is_err());
        for &(tokens, k, v) in &fits.contexts {
            let with = |tokens| options(tokens, k, v);
            place(GpuLayers::All, &with(tokens)).unwrap();
            assert!(
                tokens == 600 || place(GpuLayers::All, &with(tokens + 1)).is_err(),
                "{mib} MiB, {tokens}"
            );
        }
        let text = Error::DoesNotFit { device, needed, available, missing, fits: fits.clone() }.to_string();
        assert!(text.contains(&format!("{} of 6 layers at 600 tokens", fits.layers)), "{text}");
    }
    assert!(seen > 2, "{seen}");
}

/// A layer fits where every rank has room for its part; with another split more of them do.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn as_many_layers_as_every_rank_has_room_for_are_split() {
    let (plan, load) = (ModelPlan::open(tales()).unwrap(), LoadOptions::default());
    let host = bank(Device::host().unwrap());
    let options = options(96);
    let teams = |mib: [u64; 2], shares: &[u64]| {
        let gpus = [limited(0, Bytes::mib(mib[0])), limited(1, Bytes::mib(mib[1]))];
        [Team::split(&gpus, Shares::ratio(shares).unwrap())]
    };
    let place = |teams: &[Team], layers| plan.place_on(&host, teams, layers, None, &load, &options);
    let held = |teams: &[Team]| {
        let placement = place(teams, GpuLayers::Auto).unwrap();
        let stages = plan.stages(&placement).unwrap();
        let parts: Vec<_> = stages.iter().filter(|stage| stage.rank.is_some()).collect();
        assert!(parts.iter().all(|part| part.layers == parts[0].layers && part.layers.end == 6));
        assert!(parts.is_empty() || parts.len() == 2);
        // What was said to fit does, to the byte.
        let load = LoadOptions { placement: Some(placement.clone()), ..LoadOptions::default() };
        let text = PlannedText { prompt: 64, len: 96, ..PlannedText::default() };
        for memory in plan.memory(&load, &options, &text).unwrap() {
            let bank = teams[0].banks().iter().find(|bank| bank.device().name() == memory.device);
            assert!(bank.is_none_or(|bank| memory.total <= bank.free()), "{memory:?}");
        }
        parts.first().map_or(0, |part| part.layers.len())
    };
    let mut before = 0;
    for mib in [2, 10, 12, 14, 16, 18, 22, 64] {
        let now = held(&teams([mib, mib], &[1, 1]));
        assert!(now >= before, "{mib} MiB hold {now} layers, less held {before}");
        before = now;
    }
    assert_eq!(before, 6);
    assert_eq!(held(&teams([64, 2], &[1, 1])), 0);
    let short = place(&teams([64, 9], &[1, 1]), GpuLayers::All).unwrap_err();
    assert!(matches!(&short, Error::DoesNotFit { device, .. } if device == "cuda:1"), "{short}");
    let short = place(&teams([9, 64], &[1, 1]), GpuLayers::All).unwrap_err();
    assert!(matches!(&short, Error::DoesNotFit { device, .. } if device == "cuda:0"), "{short}");
    // What cannot be split is no question of memory.
    let four = limited(0, Bytes::mib(64));
    let team = [Team::split(&vec![four; 5], Shares::equal(5).unwrap())];
    let refused = place(&team, GpuLayers::Auto).unwrap_err();
    assert!(matches!(refused, Error::Split(granule_split::Error::Indivisible { .. })), "{refused}");
}
