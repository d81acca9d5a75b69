//! Where the memory went, as a table and as JSON.

use granule_device::Bytes;
use granule_llama::{Context, DeviceMemory, MemoryInfo, RankTraffic, Stage};
use serde_json::{Value, json};

use crate::placement;
use crate::table::{Align, Table, count};

/// The table that `run --verbose` ends with.
pub(crate) fn table(context: &Context) -> Table {
    let info = &context.memory_info();
    let mut table = Table::new([Align::Left, Align::Right, Align::Left]);
    table.row(["memory", "held", ""]);
    let kv = format!(
        "{} of {} tokens: {} used, {} reserved addresses",
        count(info.n_tokens),
        count(info.n_ctx),
        info.kv_used,
        info.kv_reserved
    );
    table.row(["model".to_owned(), info.model.to_string(), "weights, shared by every context".to_owned()]);
    if info.model_packed > Bytes::ZERO {
        let what = "for this CPU, or copied into huge pages (without: --no-repack)".to_owned();
        table.row(["  of it packed".to_owned(), info.model_packed.to_string(), what]);
    }
    table.row(["kv cache".to_owned(), info.kv.to_string(), kv]);
    if info.kv_shared > Bytes::ZERO {
        table.row([
            "  of it shared".to_owned(),
            info.kv_shared.to_string(),
            "by sequences, counted once".to_owned(),
        ]);
    }
    if info.kv_prefixes > Bytes::ZERO {
        let what = "remembered, and not in use: goes back when memory is short".to_owned();
        table.row(["kv prompts".to_owned(), info.kv_prefixes.to_string(), what]);
    }
    if info.kv_parked > Bytes::ZERO {
        let what = "for the next sequence: goes back when memory is short".to_owned();
        table.row(["kv parked".to_owned(), info.kv_parked.to_string(), what]);
    }
    if info.kv_transform > Bytes::ZERO {
        let what = "tables of keys and values, shared by every context".to_owned();
        table.row(["kv transform".to_owned(), info.kv_transform.to_string(), what]);
    }
    table.row([
        "activations".to_owned(),
        info.activations.to_string(),
        "hidden states and logits".to_owned(),
    ]);
    table.row([
        "scratch".to_owned(),
        info.scratch.to_string(),
        "temporaries of single operations".to_owned(),
    ]);
    table.row(["total".to_owned(), info.total.to_string(), format!("on {}", info.device)]);
    if info.devices.len() > 1 {
        for device in &info.devices {
            let what = of(device, context.model().stages());
            table.row([format!("  on {}", device.device), device.total.to_string(), what]);
        }
    }
    if info.pinned > Bytes::ZERO {
        let what = "of the host's memory, for copies: not in the total".to_owned();
        table.row(["pinned".to_owned(), info.pinned.to_string(), what]);
    }
    for RankTraffic { rank, calls, sent, .. } in context.traffic() {
        let what =
            format!("by rank {rank} to the others so far, in {} goes: no memory", count(calls as usize));
        table.row(["sent".to_owned(), sent.to_string(), what]);
    }
    for device in &info.devices {
        if let Some(context) = device.context {
            let what =
                format!("{}'s own memory for this process, as measured: not in the total", device.device);
            table.row(["cuda context".to_owned(), context.to_string(), what]);
        }
    }
    table
}

/// What one device has of a model whose layers are there so, and what for.
pub(crate) fn of<'a>(device: &DeviceMemory, stages: impl Iterator<Item = Stage<'a>>) -> String {
    let DeviceMemory { layers, model, kv, activations, scratch, .. } = device;
    let part = placement::part_on(stages, &device.device).map(|part| format!("{part} of "));
    let (part, s) = (part.unwrap_or_default(), if *layers == 1 { "" } else { "s" });
    format!(
        "{part}{layers} layer{s}: weights {model}, kv cache {kv}, activations {activations}, scratch {scratch}"
    )
}

/// The same in bytes.
pub(crate) fn json(info: &MemoryInfo) -> Value {
    json!({
        "model": info.model.get(),
        "model_packed": info.model_packed.get(),
        "kv": info.kv.get(),
        "kv_shared": info.kv_shared.get(),
        "kv_used": info.kv_used.get(),
        "kv_reserved": info.kv_reserved.get(),
        "kv_prefixes": info.kv_prefixes.get(),
        "kv_parked": info.kv_parked.get(),
        "kv_transform": info.kv_transform.get(),
        "activations": info.activations.get(),
        "scratch": info.scratch.get(),
        "total": info.total.get(),
        "device": info.device,
        "pinned": info.pinned.get(),
        "n_tokens": info.n_tokens,
        "n_ctx": info.n_ctx,
        "devices": info.devices.iter().map(of_device).collect::<Vec<_>>(),
    })
}

/// What ranks have sent to one another, in bytes.
pub(crate) fn traffic(context: &Context) -> Value {
    let of = |rank: &RankTraffic| json!({ "rank": rank.rank, "calls": rank.calls, "sent": rank.sent.get() });
    context.traffic().iter().map(of).collect()
}

pub(crate) fn of_device(device: &DeviceMemory) -> Value {
    json!({
        "device": device.device,
        "layers": device.layers,
        "model": device.model.get(),
        "kv": device.kv.get(),
        "kv_shared": device.kv_shared.get(),
        "kv_used": device.kv_used.get(),
        "kv_reserved": device.kv_reserved.get(),
        "kv_prefixes": device.kv_prefixes.get(),
        "kv_parked": device.kv_parked.get(),
        "kv_transform": device.kv_transform.get(),
        "activations": device.activations.get(),
        "scratch": device.scratch.get(),
        "pinned": device.pinned.get(),
        "context": device.context.map(Bytes::get),
        "total": device.total.get(),
    })
}
