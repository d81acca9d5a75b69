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
