//! Which layers go where, as the command line says it: `--device`, `--gpu-layers`, `--layer-split`.

use anyhow::{Result, ensure};
use granule_bank::trace::Tracer;
use granule_bank::{Bank, BankOptions};
use granule_llama::{ContextOptions, GpuLayers, LoadOptions, Model, ModelPlan, Placement};

use crate::args::LoadArgs;
use crate::device_name::DeviceName;

/// `--gpu-layers`.
pub(crate) fn gpu_layers(text: &str) -> Result<GpuLayers, String> {
    match text {
        "all" => Ok(GpuLayers::All),
        "auto" => Ok(GpuLayers::Auto),
        _ => text.parse().map(GpuLayers::Count).map_err(|_| "a number of layers, all or auto".to_owned()),
    }
}

/// Where the model is to be.
pub(crate) enum Place {
    /// All of it.
    In(Bank),
    Split(Placement),
}

/// Where the model is to be, for contexts like these: a bank for each device, and the layers in them.
pub(crate) fn place(
    args: &LoadArgs,
    load: &LoadOptions<'_>,
    options: &ContextOptions,
    tracer: &Tracer,
) -> Result<Place> {
    let bank = |device: DeviceName| -> Result<Bank> {
        let options = BankOptions::new().tracer(tracer);
        let options = if let Some(limit) = args.memory_limit { options.budget(limit) } else { options };
        Ok(Bank::new(device.open()?, options)?)
    };
    check(args)?;
    let host = bank(DeviceName::Host)?;
    if args.device == [DeviceName::Host] {
        return Ok(Place::In(host));
    }
    let plan = ModelPlan::open(&args.model)?;
    let gpus = args.device.iter().map(|&device| bank(device)).collect::<Result<Vec<_>>>()?;
    let layers = args.gpu_layers.unwrap_or(GpuLayers::All);
    let split = (!args.layer_split.is_empty()).then_some(&args.layer_split[..]);
    Ok(Place::Split(plan.place(&host, &gpus, layers, split, load, options)?))
}

/// Refuses what makes no sense whatever the model.
fn check(args: &LoadArgs) -> Result<()> {
    let (devices, names) = (&args.device, args.device.iter().map(ToString::to_string).collect::<Vec<_>>());
    for (at, name) in names.iter().enumerate() {
        ensure!(!names[..at].contains(name), "{name} is named twice");
    }
    let is_host = devices.contains(&DeviceName::Host);
    ensure!(
        !is_host || devices.len() == 1,
        "name the GPUs alone: what --gpu-layers leaves of the model is on the host"
    );
    ensure!(!is_host || args.gpu_layers.is_none(), "--gpu-layers without a GPU: name one, --device cuda:0");
    let shares = args.layer_split.len();
    ensure!(
        shares == 0 || args.layer_split.iter().any(|&share| share > 0),
        "--layer-split gives no device anything"
    );
    ensure!(
        shares == 0 || shares == devices.len() && !is_host,
        "--layer-split has {shares} shares, for the {} that --device names: one for each GPU",
        names.join(", ")
    );
    Ok(())
}

/// Says on stderr which layers are where, wherever GPUs were named.
pub(crate) fn tell(args: &LoadArgs, model: &Model) {
    if args.device != [DeviceName::Host] {
        eprintln!("{}", describe(model));
    }
}

/// "layers 0 to 3 on host, 4 to 15 on cuda:0".
fn describe(model: &Model) -> String {
    let stages = model.stages().map(|stage| {
        let last = stage.layers.end - 1;
        match stage.layers.start {
            first if first == last => format!("{first} on {}", stage.device),
            first => format!("{first} to {last} on {}", stage.device),
        }
    });
    format!("layers {}", stages.collect::<Vec<_>>().join(", "))
}
