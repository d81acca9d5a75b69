//! Layers that are split over GPUs, and over a GPU and the host, beside the whole on one device.

use std::num::NonZeroUsize;

use granule_bank::{Bank, BankOptions};
use granule_device::Device;
use granule_kv::KvType;
use granule_llama::{Context, LoadOptions, Model, Placement, Precision};
use granule_split::Shares;

use super::super::{argmax, distance, greedy, load_on, options, tales};

/// What sums in another order move a logit by.
const ORDER: f64 = 2e-2;

fn bank(device: Device) -> Bank {
    Bank::new(device, BankOptions::new()).unwrap()
}

#[test]
#[ignore = "needs a CUDA driver with two devices"]
fn ranks_on_gpus_say_what_one_says() {
    let whole = load_on(Device::cuda(0).unwrap(), tales());
    let prompt = whole.tokenizer().encode("Once upon a time the baker Mia", Default::default()).unwrap();
    for kv in [KvType::F16, KvType::Q4_0] {
        let mut alone = Context::new(whole.clone(), options(128, 64, kv, kv)).unwrap();
        let logits = alone.eval(&prompt).unwrap().to_vec();
        alone.clear().unwrap();
        let text = greedy(&mut alone, &prompt, 6);
        drop(alone);
        let gpu = |number| bank(Device::cuda(number).unwrap());
        let host = || bank(Device::host().unwrap());
        let pair = |weights: &[u64]| Shares::ratio(weights).unwrap();
        for placement in [
            Placement::new().split(&[gpu(0), gpu(1)], pair(&[1, 1]), 6),
            Placement::new().split(&[gpu(1), host()], pair(&[3, 1]), 6),
            Placement::new().layers(&host(), 2).split(&[gpu(0), gpu(1)], pair(&[1, 1]), 4),
            Placement::new().split(&[gpu(0), gpu(1)], pair(&[1, 1]), 4).layers(&gpu(0), 2),
        ] {
            let threads = NonZeroUsize::new(1);
            let precision = Precision::Precise;
            let how = LoadOptions {
                placement: Some(placement.clone()),
                threads,
                precision,
                ..LoadOptions::default()
            };
            let model = Model::load(tales(), how).unwrap();
            let mut ranks = Context::new(model, options(128, 64, kv, kv)).unwrap();
            let far = distance(ranks.eval(&prompt).unwrap(), &logits);
            assert!(far < if kv == KvType::Q4_0 { 0.2 } else { ORDER }, "{placement:?} {kv}: {far}");
            assert_eq!(argmax(ranks.logits().unwrap()), argmax(&logits));
            ranks.clear().unwrap();
            assert_eq!(greedy(&mut ranks, &prompt, 6), text, "{placement:?} {kv}");
        }
    }
}

/// A prompt of more than a MiB of hidden states, and beside it a single token of another sequence: ranks on a GPU and on the host compute
/// them in one order, and sum them up in the same pieces.
#[test]
#[ignore = "needs a CUDA driver"]
fn long_and_short_sequences_together_over_a_gpu_and_the_host() {
    let logits = |placement: Placement| {
        let (threads, precision) = (NonZeroUsize::new(1), Precision::Precise);
        let how = LoadOptions { placement: Some(placement), threads, precision, ..LoadOptions::default() };
        let model = Model::load(tales(), how).unwrap();
        let start = model.tokenizer().encode("Once upon a time the baker Mia", Default::default()).unwrap();
        let long: Vec<_> = start.iter().copied().cycle().take(1100).collect();
        let mut context = Context::new(model, options(2048, 1200, KvType::F16, KvType::F16)).unwrap();
        let first = context.first_sequence();
        let other = context.add_sequence().unwrap();
        assert_eq!(context.eval_batch(&[(other, &start)]).unwrap().len(), 1);
        let rows = context.eval_batch(&[(first, &long), (other, &start[..1])]).unwrap();
        rows.map(<[f32]>::to_vec).collect::<Vec<_>>()
    };
    let (gpu, host) = (bank(Device::cuda(0).unwrap()), bank(Device::host().unwrap()));
    let whole = logits(Placement::new().layers(&host, 6));
    let ranks = logits(Placement::new().split(&[gpu, host], Shares::equal(2).unwrap(), 6));
    for (got, want) in ranks.iter().zip(&whole) {
        let far = distance(got, want);
        assert!(far < 5e-2, "{far}");
    }
}
