//! `granule devices`: the host and the GPUs, with their memory and what they can do; and why there is no GPU, where there is none.

use std::io::Write;

use anyhow::Result;
use granule_device::{Bytes, Device, Error, Features, MemoryInfo};
use serde_json::{Value, json};

use crate::args::DevicesArgs;
use crate::table::{Align, Table};

/// One device as it was found.
struct Found {
    /// What `--device` calls it.
    id: String,
    name: String,
    /// What is known of a GPU without opening it.
    gpu: Option<GpuFacts>,
    /// What only an open device can tell.
    opened: Result<Opened, Error>,
}

struct GpuFacts {
    compute_capability: String,
    driver: String,
    uuid: String,
    total: Bytes,
    granularity: Option<Bytes>,
    abilities: Vec<(&'static str, bool)>,
    /// Numbers of the other GPUs whose memory it reaches.
    peers: Vec<usize>,
}

struct Opened {
    memory: MemoryInfo,
    granularity: Bytes,
    features: Features,
}

/// What is shown of a device, from wherever it is known.
struct Shown {
    free: Option<Bytes>,
    total: Option<Bytes>,
    granularity: Option<Bytes>,
    abilities: Vec<(&'static str, bool)>,
}

impl Found {
    fn shown(&self) -> Shown {
        match (&self.opened, &self.gpu) {
            (Ok(Opened { memory, granularity, features }), _) => Shown {
                free: Some(memory.free),
                total: Some(memory.total),
                granularity: Some(*granularity).filter(|granularity| !granularity.is_zero()),
                abilities: abilities(features),
            },
            (Err(_), Some(gpu)) => Shown {
                free: None,
                total: Some(gpu.total),
                granularity: gpu.granularity,
                abilities: gpu.abilities.clone(),
            },
            (Err(_), None) => Shown { free: None, total: None, granularity: None, abilities: Vec::new() },
        }
    }

    fn peers(&self) -> &[usize] {
        self.gpu.as_ref().map_or(&[], |gpu| &gpu.peers)
    }
}

/// Prints what is there. That there is no GPU is an answer and no failure.
pub(crate) fn run(args: &DevicesArgs) -> Result<()> {
    let mut found = vec![host()];
    let none = match gpus() {
        Ok(gpus) => {
            found.extend(gpus);
            None
        }
        Err(why) => Some(why),
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        let devices: Vec<Value> = found.iter().map(as_json).collect();
        let value = json!({ "devices": devices, "no_gpu": none });
        writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
    } else {
        write!(out, "{}", table(&found))?;
        for device in &found {
            if let Err(error) = &device.opened {
                writeln!(out, "\n{}: {error}", device.id)?;
            }
        }
        if let Some(why) = none {
            writeln!(out, "\nno GPU: {why}")?;
        }
    }
    Ok(())
}

fn open(device: Result<Device, Error>) -> Result<Opened, Error> {
    let device = device?;
    let (memory, features) = (device.memory()?, device.features()?);
    Ok(Opened { memory, granularity: device.granularity(), features })
}

fn host() -> Found {
    let name = format!("{} {}", std::env::consts::OS, std::env::consts::ARCH);
    Found { id: "host".to_owned(), name, gpu: None, opened: open(Device::host()) }
}

#[cfg(feature = "cuda")]
fn gpus() -> Result<Vec<Found>, String> {
    let devices = granule_device::cuda_devices().map_err(|error| error.to_string())?;
    let found = devices.into_iter().map(|info| Found {
        id: format!("cuda:{}", info.ordinal),
        gpu: Some(GpuFacts {
            compute_capability: info.compute_capability.to_string(),
            driver: info.driver,
            uuid: info.uuid,
            total: info.total,
            granularity: info.granularity,
            abilities: vec![
                (VIRTUAL_MEMORY, info.granularity.is_some()),
                (MANAGED, info.managed),
                (STREAM_ORDERED, info.stream_ordered),
            ],
            peers: (0..)
                .zip(info.peers)
                .filter(|&(n, can)| can && n != info.ordinal)
                .map(|(n, _)| n)
                .collect(),
        }),
        name: info.name,
        opened: open(Device::cuda(info.ordinal)),
    });
    Ok(found.collect())
}

#[cfg(not(feature = "cuda"))]
fn gpus() -> Result<Vec<Found>, String> {
    Err("this `granule` was built without the feature `cuda`".to_owned())
}

const VIRTUAL_MEMORY: &str = "virtual memory";
const MANAGED: &str = "managed memory";
const STREAM_ORDERED: &str = "stream-ordered memory";

/// The words for what a device can do.
fn abilities(features: &Features) -> Vec<(&'static str, bool)> {
    vec![
        (VIRTUAL_MEMORY, features.virtual_memory),
        ("read-only mappings", features.read_only),
        ("host granules", features.host_granules),
        (MANAGED, features.managed),
        (STREAM_ORDERED, features.stream_ordered),
        ("read-only registration", features.register_read_only),
        ("graphs", features.capture),
    ]
}

fn table(found: &[Found]) -> Table {
    let mut table =
        Table::new([Align::Left, Align::Left, Align::Right, Align::Right, Align::Right, Align::Left]);
    table.row(["device", "name", "free", "total", "granule", "can"]);
    for device in found {
        let Found { id, name, gpu, .. } = device;
        let name = match gpu {
            Some(gpu) => format!("{name} (compute {}, driver CUDA {})", gpu.compute_capability, gpu.driver),
            None => name.clone(),
        };
        let Shown { free, total, granularity, abilities } = device.shown();
        let size = |size: Option<Bytes>| size.map_or_else(|| "?".to_owned(), |size| size.to_string());
        let mut can: Vec<String> =
            abilities.into_iter().filter(|&(_, can)| can).map(|(word, _)| word.to_owned()).collect();
        can.extend(device.peers().iter().map(|peer| format!("peer of cuda:{peer}")));
        table.row([id.clone(), name, size(free), size(total), size(granularity), can.join(", ")]);
    }
    table
}

fn as_json(device: &Found) -> Value {
    let Shown { free, total, granularity, abilities } = device.shown();
    let mut value = json!({
        "device": device.id,
        "name": device.name,
        "compute_capability": device.gpu.as_ref().map(|gpu| &gpu.compute_capability),
        "driver": device.gpu.as_ref().map(|gpu| &gpu.driver),
        "uuid": device.gpu.as_ref().map(|gpu| &gpu.uuid),
        "peers": device.peers().iter().map(|peer| format!("cuda:{peer}")).collect::<Vec<_>>(),
        "memory": { "free": free.map(Bytes::get), "total": total.map(Bytes::get) },
        "granularity": granularity.map(Bytes::get),
        "features": {},
        "error": device.opened.as_ref().err().map(ToString::to_string),
    });
    for (word, can) in abilities {
        value["features"][word.replace([' ', '-'], "_")] = json!(can);
    }
    value
}
