//! `granule devices`: the host and the GPUs, with their memory and what they can do; and why there is no GPU, where there is none.

use std::io::Write;

use anyhow::Result;
use granule_device::{Device, Error, Features, MemoryInfo};
use serde_json::{Value, json};

use crate::args::DevicesArgs;
use crate::table::{Align, Table};

/// One device as it was found; `opened` is what only an open one can tell.
struct Found {
    /// What `--device` calls it.
    id: String,
    name: String,
    facts: Facts,
    opened: Result<Opened, Error>,
}

/// What is known of a GPU without opening it.
#[derive(Default)]
struct Facts {
    compute_capability: Option<String>,
    driver: Option<String>,
    uuid: Option<String>,
    /// Numbers of the other GPUs whose memory it reaches.
    peers: Vec<usize>,
}

struct Opened {
    memory: MemoryInfo,
    granularity: granule_device::Bytes,
    features: Features,
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
    Found { id: "host".to_owned(), name, facts: Facts::default(), opened: open(Device::host()) }
}

#[cfg(feature = "cuda")]
fn gpus() -> Result<Vec<Found>, String> {
    let devices = granule_device::cuda_devices().map_err(|error| error.to_string())?;
    let found = devices.into_iter().map(|info| Found {
        id: format!("cuda:{}", info.ordinal),
        facts: Facts {
            compute_capability: Some(info.compute_capability.to_string()),
            driver: Some(info.driver),
            uuid: Some(info.uuid),
            peers: (0..)
                .zip(info.peers)
                .filter(|&(n, can)| can && n != info.ordinal)
                .map(|(n, _)| n)
                .collect(),
        },
        name: info.name,
        opened: open(Device::cuda(info.ordinal)),
    });
    Ok(found.collect())
}

#[cfg(not(feature = "cuda"))]
fn gpus() -> Result<Vec<Found>, String> {
    Err("this `granule` was built without the feature `cuda`".to_owned())
}

/// The words for what a device can do.
fn abilities(features: &Features) -> Vec<(&'static str, bool)> {
    vec![
        ("virtual memory", features.virtual_memory),
        ("read-only mappings", features.read_only),
        ("host granules", features.host_granules),
        ("managed memory", features.managed),
        ("stream-ordered memory", features.stream_ordered),
        ("read-only registration", features.register_read_only),
        ("graphs", features.capture),
    ]
}

fn table(found: &[Found]) -> Table {
    let mut table =
        Table::new([Align::Left, Align::Left, Align::Right, Align::Right, Align::Right, Align::Left]);
    table.row(["device", "name", "free", "total", "granule", "can"]);
    for Found { id, name, facts, opened } in found {
        let name = match (&facts.compute_capability, &facts.driver) {
            (Some(capability), Some(driver)) => {
                format!("{name} (compute {capability}, driver CUDA {driver})")
            }
            _ => name.clone(),
        };
        let mut row = vec![id.clone(), name];
        if let Ok(Opened { memory, granularity, features }) = opened {
            row.extend([memory.free.to_string(), memory.total.to_string(), granularity.to_string()]);
            let mut can: Vec<String> = abilities(features)
                .into_iter()
                .filter(|&(_, can)| can)
                .map(|(word, _)| word.to_owned())
                .collect();
            can.extend(facts.peers.iter().map(|peer| format!("peer of cuda:{peer}")));
            row.push(can.join(", "));
        } else {
            row.extend(["?", "?", "?", "see below"].map(str::to_owned));
        }
        table.row(row);
    }
    table
}

fn as_json(device: &Found) -> Value {
    let Found { id, name, facts, opened } = device;
    let mut value = json!({
        "device": id,
        "name": name,
        "compute_capability": facts.compute_capability,
        "driver": facts.driver,
        "uuid": facts.uuid,
        "peers": facts.peers.iter().map(|peer| format!("cuda:{peer}")).collect::<Vec<_>>(),
    });
    match opened {
        Ok(Opened { memory, granularity, features }) => {
            value["memory"] = json!({ "free": memory.free.get(), "total": memory.total.get() });
            value["granularity"] = json!(granularity.get());
            for (word, can) in abilities(features) {
                value["features"][word.replace([' ', '-'], "_")] = json!(can);
            }
        }
        Err(error) => value["error"] = json!(error.to_string()),
    }
    value
}
