//! Plans of models on the host.

use granule_device::{Bytes, Device, HostOptions};
use granule_kv::{KvOptions, KvType};
use granule_llama::{ContextOptions, LoadOptions, Model, ModelPlan, Placement, PlannedText};

use crate::{Case, Dice, bank, compare, placed, tales, tokens};

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
