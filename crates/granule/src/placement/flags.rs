//! The flags that say where a model is to be, and which of them go together whatever the model.

use std::str::FromStr;

use anyhow::{Result, ensure};
use granule_device::Bytes;
use granule_llama::GpuLayers;

use crate::device_name::DeviceName;

/// Where the model is to be.
#[derive(clap::Args)]
pub(crate) struct PlaceArgs {
    /// What the model runs on: host, or one GPU or more, as in cuda:0,cuda:1 (granule devices lists them). host,host: virtual
    /// devices, which share the host's memory and threads
    #[arg(long, value_name = "DEVICES", default_value = "host", value_delimiter = ',')]
    pub(crate) device: Vec<DeviceName>,
    /// How many of the model's layers are on the GPUs, the last ones; the others are on the host. auto: as many as fit with a
    /// full context [default: all]
    #[arg(long, visible_alias = "n-gpu-layers", value_name = "N|all|auto", value_parser = gpu_layers)]
    pub(crate) gpu_layers: Option<GpuLayers>,
    /// Each device's share of these layers, as in 3,1; with --tensor-parallel that of so many devices [default: by their free
    /// memory]
    #[arg(long, value_name = "SHARES", value_delimiter = ',')]
    pub(crate) layer_split: Vec<u64>,
    /// Split every layer over N devices, which compute it together; of more devices each N have a run of layers. On the host alone: N
    /// virtual devices
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=16))]
    pub(crate) tensor_parallel: Option<u8>,
    /// What each of them has of a layer, as in 3,1; free: by their free memory [default: as much as the others]
    #[arg(long, value_name = "SHARES|free", requires = "tensor_parallel")]
    pub(crate) tensor_split: Option<TensorSplit>,
    /// The most memory that weights, cache and activations may take together on each device, such as 512MiB or 4G
    #[arg(long, value_name = "BYTES")]
    pub(crate) memory_limit: Option<Bytes>,
}

impl PlaceArgs {
    /// Whether they name anything but the host as it is.
    pub(crate) fn names_any(&self) -> bool {
        self.device != [DeviceName::Host] || self.tensor_parallel.is_some_and(|ranks| ranks > 1)
    }
}

/// `--tensor-split`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TensorSplit {
    Ratio(Vec<u64>),
    Free,
}

impl FromStr for TensorSplit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "free" {
            return Ok(Self::Free);
        }
        let shares: Option<Vec<u64>> = text.split(',').map(|share| share.parse().ok()).collect();
        match shares {
            Some(shares) if shares.contains(&0) => Err("every device has some of each layer".to_owned()),
            Some(shares) => Ok(Self::Ratio(shares)),
            None => Err("shares such as 3,1, or free".to_owned()),
        }
    }
}

/// `--gpu-layers`.
fn gpu_layers(text: &str) -> Result<GpuLayers, String> {
    match text {
        "all" => Ok(GpuLayers::All),
        "auto" => Ok(GpuLayers::Auto),
        _ => text.parse().map(GpuLayers::Count).map_err(|_| "a number of layers, all or auto".to_owned()),
    }
}

/// What the flags come to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// The devices that have layers, in their order.
    pub(crate) devices: Vec<DeviceName>,
    /// How many of them, that follow one another, compute each layer of a run together.
    pub(crate) ranks: usize,
}

impl Asked {
    /// Refuses what makes no sense whatever the model.
    pub(crate) fn of(args: &PlaceArgs) -> Result<Asked> {
        let names: Vec<String> = args.device.iter().map(ToString::to_string).collect();
        let named = names.join(",");
        let ranks = args.tensor_parallel.map_or(1, usize::from);
        let hosts = args.device.iter().filter(|&&device| device == DeviceName::Host).count();
        let is_host = hosts == args.device.len();
        ensure!(
            hosts == 0 || is_host || ranks > 1,
            "name the GPUs alone: what --gpu-layers leaves of the model is on the host"
        );
        for (at, name) in names.iter().enumerate() {
            ensure!(name == "host" || !names[..at].contains(name), "{name} is named twice");
        }
        ensure!(
            !is_host || args.gpu_layers.is_none(),
            "--gpu-layers without a GPU: name one, --device cuda:0"
        );
        let mut devices = args.device.clone();
        if devices == [DeviceName::Host] {
            devices.resize(ranks, DeviceName::Host);
        }
        ensure!(
            devices.len().is_multiple_of(ranks),
            "--tensor-parallel {ranks} needs {ranks} devices, or twice, three times as many: --device names {named}"
        );
        if let Some(TensorSplit::Ratio(shares)) = &args.tensor_split {
            let shares = shares.len();
            ensure!(
                shares == ranks,
                "--tensor-split has {shares} shares, for --tensor-parallel {ranks}: one for each device that a layer is split over"
            );
        }
        let (runs, shares) = (devices.len() / ranks, args.layer_split.len());
        ensure!(
            shares == 0 || args.layer_split.iter().any(|&share| share > 0),
            "--layer-split gives no device anything"
        );
        let each = if ranks > 1 { format!("each {ranks} devices") } else { "each device".to_owned() };
        ensure!(
            shares == 0 || shares == runs && (runs > 1 || !is_host),
            "--layer-split has {shares} shares, for the {named} that --device names: one for {each}, where there are several"
        );
        Ok(Asked { devices, ranks })
    }

    /// Whether it is all on the host as it is.
    pub(crate) fn is_plain(&self) -> bool {
        self.devices == [DeviceName::Host]
    }

    /// How many of them are the host.
    pub(crate) fn hosts(&self) -> usize {
        self.devices.iter().filter(|&&device| device == DeviceName::Host).count()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        place: PlaceArgs,
    }

    fn asked(flags: &str) -> Result<Asked, String> {
        let line = Line::try_parse_from(["granule"].into_iter().chain(flags.split_whitespace()));
        let line = line.map_err(|error| error.to_string())?;
        Asked::of(&line.place).map_err(|error| error.to_string())
    }

    #[test]
    fn devices_are_as_many_as_are_asked_for() {
        let host = |n| vec![DeviceName::Host; n];
        for (flags, devices, ranks) in [
            ("", host(1), 1),
            ("--device host", host(1), 1),
            ("--tensor-parallel 1 --tensor-split 7", host(1), 1),
            ("--tensor-parallel 2", host(2), 2),
            ("--tensor-parallel 2 --tensor-split 3,1", host(2), 2),
            ("--tensor-parallel 3 --tensor-split free", host(3), 3),
            ("--device host,host", host(2), 1),
            ("--device host,host --layer-split 1,0", host(2), 1),
            ("--device host,host --tensor-parallel 2", host(2), 2),
            ("--device host,host,host,host --tensor-parallel 2 --layer-split 1,2", host(4), 2),
        ] {
            assert_eq!(asked(flags), Ok(Asked { devices, ranks }), "{flags}");
        }
        #[cfg(feature = "cuda")]
        for (flags, n, ranks) in [
            ("--device cuda:0,cuda:1", 2, 1),
            ("--device cuda:0 --layer-split 5", 1, 1),
            ("--device cuda:0,cuda:1 --tensor-parallel 2 --gpu-layers auto", 2, 2),
            ("--device cuda:0,cuda:1,cuda:2,cuda:3 --tensor-parallel 2 --layer-split 1,0", 4, 2),
        ] {
            let devices = (0..n).map(DeviceName::Cuda).collect();
            assert_eq!(asked(flags), Ok(Asked { devices, ranks }), "{flags}");
        }
        #[cfg(feature = "cuda")]
        {
            let mixed = vec![DeviceName::Host, DeviceName::Cuda(0)];
            let flags = "--device host,cuda:0 --tensor-parallel 2 --gpu-layers 4";
            assert_eq!(asked(flags), Ok(Asked { devices: mixed, ranks: 2 }));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would() {
        for (flags, why) in [
            ("--tensor-parallel 0", "1..=16"),
            ("--tensor-parallel 17", "1..=16"),
            ("--tensor-split 1,1", "--tensor-parallel <N>"),
            ("--tensor-parallel 2 --tensor-split 1,0", "every device has some of each layer"),
            ("--tensor-parallel 2 --tensor-split 1,x", "shares such as 3,1, or free"),
            ("--tensor-parallel 2 --tensor-split=", "shares such as 3,1, or free"),
            ("--tensor-parallel 2 --tensor-split 1,-1", "shares such as 3,1, or free"),
            (
                "--tensor-parallel 2 --tensor-split 1,1,1",
                "--tensor-split has 3 shares, for --tensor-parallel 2",
            ),
            ("--tensor-parallel 2 --device host,host,host", "--tensor-parallel 2 needs 2 devices"),
            ("--device host,host --gpu-layers 3", "--gpu-layers without a GPU"),
            ("--device host --layer-split 1", "--layer-split has 1 shares"),
            ("--tensor-parallel 2 --layer-split 1,1", "one for each 2 devices"),
            ("--device host,host --layer-split 0,0", "gives no device anything"),
        ] {
            let said = asked(flags).unwrap_err();
            assert!(said.contains(why), "{flags}: {said}");
        }
        #[cfg(feature = "cuda")]
        for (flags, why) in [
            ("--device host,cuda:0", "name the GPUs alone"),
            ("--device cuda:0,cuda:0", "cuda:0 is named twice"),
            ("--device cuda:0 --tensor-parallel 2", "--device names cuda:0"),
            ("--device cuda:0,cuda:1 --layer-split 1", "--layer-split has 1 shares"),
        ] {
            let said = asked(flags).unwrap_err();
            assert!(said.contains(why), "{flags}: {said}");
        }
    }
}
