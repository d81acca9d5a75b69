//! Of a device's steps: layers as they are given to the stream, and a replayed step as the one launch it is.

use granule_bank::{Bank, BankOptions};
use granule_device::Device;
use granule_llama::{LoadOptions, Model, Placement};
use tracing::level_filters::LevelFilter;

use crate::support::make::{Made, Shape};
use crate::{context, entered_in, model, tokens};

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn steps_with_their_layers_in_them() {
    let shape = Shape { n_heads: 2, n_kv_heads: 1, ..Shape::default() };
    let mut context = context(model(Device::cuda(0).unwrap(), &shape));
    let (first, other) = (context.first_sequence(), context.add_sequence().unwrap());
    let heard = entered_in(LevelFilter::TRACE, || {
        context.eval(&tokens([1, 17, 18])).unwrap();
        // Given launch by launch, captured, replayed.
        for token in 20..23 {
            context.eval(&tokens([token])).unwrap();
        }
        assert_eq!(context.eval_batch(&[(first, &tokens([30])), (other, &tokens([31]))]).unwrap().len(), 2);
    });
    let layers = ["  layer index=0 device=\"cuda:0\"", "  layer index=1 device=\"cuda:0\""];
    let [one, two] = layers;
    let single = "step tokens=1 sequences=1";
    let expected = [
        &["step tokens=3 sequences=1", one, two][..],
        &[single, one, two],
        &[single, one, two],
        &[single],
        &["step tokens=2 sequences=2", one, two],
    ];
    assert_eq!(heard, expected.concat());
    drop(context);
    layers_on_two_devices(&shape);
}

/// Where a layer runs shows, and it has its number in the model.
fn layers_on_two_devices(shape: &Shape) {
    let dir = tempfile::tempdir().unwrap();
    let bank = |device| Bank::new(device, BankOptions::new()).unwrap();
    let placement =
        Placement::new().layers(&bank(Device::host().unwrap()), 1).layers(&bank(Device::cuda(0).unwrap()), 1);
    let options = LoadOptions { placement: Some(placement), ..LoadOptions::default() };
    let model = Model::load(Made::new(shape).write(dir.path()), options).unwrap();
    let mut context = context(model);
    let heard = entered_in(LevelFilter::TRACE, || {
        context.eval(&tokens([1, 17])).unwrap();
    });
    let [one, two] = ["  layer index=0 device=\"host\"", "  layer index=1 device=\"cuda:0\""];
    assert_eq!(heard, ["step tokens=2 sequences=1", one, two]);
}
