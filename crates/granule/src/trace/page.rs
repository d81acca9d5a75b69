//! `granule trace view`: the history as one HTML page that needs nothing else. Its parts lie in `page/`.

use std::fmt::Write;

use anyhow::Result;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::history::{History, OPEN, What};
use super::plain;
use super::summary::{Summary, when};

const FRAME: &str = include_str!("page/frame.html");
const STYLE: &str = include_str!("page/style.css");
/// In the order in which they need each other.
const SCRIPTS: [&str; 6] = [
    include_str!("page/data.js"),
    include_str!("page/look.js"),
    include_str!("page/timeline.js"),
    include_str!("page/map.js"),
    include_str!("page/tables.js"),
    include_str!("page/main.js"),
];

/// The page. Everything in it that a recording says is data: names are never markup.
pub(crate) fn page(history: &History) -> Result<String> {
    let mut page = String::new();
    for piece in FRAME.split_inclusive("-->") {
        let Some((before, slot)) = piece.split_once("<!--") else {
            page.push_str(piece);
            continue;
        };
        page.push_str(before);
        match slot.trim_end_matches("-->").trim() {
            "title" => escape_into(&mut page, &plain(&history.label)),
            "style" => page.push_str(STYLE),
            "data" => page.push_str(&inert(&serde_json::to_string(&data(history))?)),
            "script" => SCRIPTS.iter().for_each(|script| page.push_str(script)),
            _ => {}
        }
    }
    Ok(page)
}

/// JSON that can stand in a script element: nothing in it ends one.
fn inert(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            // Only in strings; the escape means the same.
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                // Writing into a string does not fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out
}

fn escape_into(page: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '<' => page.push_str("&lt;"),
            '&' => page.push_str("&amp;"),
            c => page.push(c),
        }
    }
}

/// All names in it as they may be shown.
fn plainly(value: Value) -> Value {
    match value {
        Value::String(text) => Value::String(plain(&text)),
        Value::Array(values) => values.into_iter().map(plainly).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, plainly(value))).collect(),
        other => other,
    }
}

/// What the page draws: lists of what has names, and columns of numbers for what there is much of.
fn data(history: &History) -> Value {
    let devices = history.devices.iter().map(
        |device| json!({ "name": plain(&device.name), "granule": device.granule, "budget": device.budget }),
    );
    let accounts = history
        .accounts
        .iter()
        .map(|account| json!({ "device": account.device, "name": plain(&account.name) }));
    let ranges = history.ranges.iter().map(|range| {
        json!({
            "id": range.id, "account": range.account, "base": format!("{:#x}", range.base),
            "place": range.place, "places": range.places, "arena": range.arena, "growable": range.growable,
            "from": time(range.from), "to": time(range.to),
        })
    });
    let moments = history.moments.iter().map(|moment| {
        let mut value = what(history, &moment.what);
        value["ns"] = json!(moment.ns);
        value
    });
    let streams: Vec<String> = history.streams.iter().map(|stream| plain(&stream.name)).collect();
    json!({
        "label": plain(&history.label),
        "when": when(history.unix_ms),
        "end": history.end,
        "events": history.events,
        "lost": history.lost,
        "unknown": history.unknown,
        "broken": history.broken.as_ref().map(ToString::to_string),
        "devices": devices.collect::<Vec<_>>(),
        "accounts": accounts.collect::<Vec<_>>(),
        "streams": streams,
        "ranges": ranges.collect::<Vec<_>>(),
        "moments": moments.collect::<Vec<_>>(),
        "summary": plainly(Summary::new(history).figures()),
        "columns": columns(history),
    })
}

fn what(history: &History, what: &What) -> Value {
    match what {
        What::Mark(text) => json!({ "what": "mark", "text": plain(text) }),
        What::Refused { account, bytes } => {
            let device = history.accounts[*account].device;
            json!({ "what": "refused", "device": device, "account": account, "bytes": bytes })
        }
        What::Trim { device, bytes } => json!({ "what": "trim", "device": device, "bytes": bytes }),
        What::CaptureBegin { stream } => {
            json!({ "what": "capture_begin", "device": history.streams[*stream].device, "stream": stream })
        }
        What::CaptureEnd { stream } => {
            json!({ "what": "capture_end", "device": history.streams[*stream].device, "stream": stream })
        }
        What::Lost(events) => json!({ "what": "lost", "events": events }),
    }
}

/// A time as JSON; none where it was not seen.
fn time(ns: u64) -> Option<u64> {
    (ns != OPEN).then_some(ns)
}

/// Numbers by name: "f64" or "u32", little-endian, in base64. An end that was not seen is infinite; an index that is none is
/// the largest number.
fn columns(history: &History) -> Value {
    let (leases, placements) = (&history.leases, &history.placements);
    let index = |index: Option<usize>| index.map_or(u32::MAX, to_u32);
    let mut all = Map::new();
    // Exact below 2^53: bytes of 8 PiB, 104 days in nanoseconds, addresses of today's devices.
    let mut f64s = |name: &str, numbers: &mut dyn Iterator<Item = f64>| {
        let bytes: Vec<u8> = numbers.flat_map(f64::to_le_bytes).collect();
        all.insert(name.to_owned(), json!({ "f64": STANDARD.encode(bytes) }));
    };
    let seen = |ns: u64| if ns == OPEN { f64::INFINITY } else { ns as f64 };
    f64s("lease.from", &mut leases.iter().map(|lease| seen(lease.from)));
    f64s("lease.to", &mut leases.iter().map(|lease| seen(lease.to)));
    f64s(
        "lease.at",
        &mut leases.iter().map(|lease| match lease.range {
            Some(range) => (lease.at - history.ranges[range].base) as f64,
            None => lease.at as f64,
        }),
    );
    f64s("lease.requested", &mut leases.iter().map(|lease| lease.requested as f64));
    f64s("lease.given", &mut leases.iter().map(|lease| lease.given as f64));
    f64s("placement.place", &mut placements.iter().map(|placement| placement.place as f64));
    f64s("placement.granule", &mut placements.iter().map(|placement| placement.granule as f64));
    f64s("placement.from", &mut placements.iter().map(|placement| seen(placement.from)));
    f64s("placement.retired", &mut placements.iter().map(|placement| seen(placement.retired)));
    f64s("placement.to", &mut placements.iter().map(|placement| seen(placement.to)));
    f64s("charge.size", &mut history.charges.iter().map(|charge| charge.size as f64));
    f64s("charge.from", &mut history.charges.iter().map(|charge| seen(charge.from)));
    f64s("charge.to", &mut history.charges.iter().map(|charge| seen(charge.to)));
    f64s("held.ns", &mut history.held.iter().map(|held| seen(held.ns)));
    f64s("held.bytes", &mut history.held.iter().map(|held| held.bytes as f64));
    f64s("used.ns", &mut history.used.iter().map(|used| seen(used.ns)));
    f64s("used.bytes", &mut history.used.iter().map(|used| used.bytes as f64));
    f64s("length.ns", &mut history.lengths.iter().map(|length| seen(length.ns)));
    f64s("length.bytes", &mut history.lengths.iter().map(|length| length.bytes as f64));
    let mut u32s = |name: &str, numbers: &mut dyn Iterator<Item = u32>| {
        let bytes: Vec<u8> = numbers.flat_map(u32::to_le_bytes).collect();
        all.insert(name.to_owned(), json!({ "u32": STANDARD.encode(bytes) }));
    };
    u32s("lease.account", &mut leases.iter().map(|lease| to_u32(lease.account)));
    u32s("lease.range", &mut leases.iter().map(|lease| index(lease.range)));
    u32s("lease.stream", &mut leases.iter().map(|lease| index(lease.stream)));
    u32s("placement.range", &mut placements.iter().map(|placement| to_u32(placement.range)));
    u32s("placement.account", &mut placements.iter().map(|placement| to_u32(placement.account)));
    u32s("charge.account", &mut history.charges.iter().map(|charge| to_u32(charge.account)));
    u32s("held.account", &mut history.held.iter().map(|held| to_u32(held.account)));
    u32s("used.account", &mut history.used.iter().map(|used| to_u32(used.account)));
    u32s("length.range", &mut history.lengths.iter().map(|length| to_u32(length.range)));
    Value::Object(all)
}

fn to_u32(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
