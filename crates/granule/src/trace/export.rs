//! `granule trace export`: the events as JSON lines, for programs that know nothing of the format.

use std::collections::HashMap;
use std::io::{Read, Write};

use anyhow::Result;
use granule_bank::trace::{Event, Reader, Record, StreamId};
use serde_json::{Value, json};

/// Writes one object a line: the time in nanoseconds, the event's name, its fields. A lease has a number of its own, which an
/// address, that comes again, is not.
pub(crate) fn export<R: Read>(reader: Reader<R>, mut out: impl Write) -> Result<()> {
    let mut names = Leases::default();
    for record in reader {
        let Record { ns, event } = match record {
            Ok(record) => record,
            Err(error) => {
                out.flush()?;
                return Err(error.into());
            }
        };
        let mut line = json!({ "ns": ns });
        if let (Value::Object(line), Value::Object(fields)) = (&mut line, names.fields(event)) {
            line.extend(fields);
        }
        serde_json::to_writer(&mut out, &line)?;
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// Numbers of live leases, by address.
#[derive(Default)]
struct Leases {
    live: HashMap<u64, u64>,
    next: u64,
}

impl Leases {
    fn fields(&mut self, event: Event) -> Value {
        let of = |stream: Option<StreamId>| stream.map(|stream| stream.0);
        match event {
            Event::Start { unix_ms, label } => {
                json!({ "event": "start", "unix_ms": unix_ms, "label": label })
            }
            Event::Device { device, name, granule, budget } => json!({
                "event": "device", "device": device.0, "name": name, "granule": granule.get(), "budget": budget.get(),
            }),
            Event::Owner { owner, name } => json!({ "event": "owner", "owner": owner.0, "name": name }),
            Event::Pool { pool, device, owner } => {
                json!({ "event": "pool", "pool": pool.0, "device": device.0, "owner": owner.0 })
            }
            Event::PoolGone { pool } => json!({ "event": "pool_gone", "pool": pool.0 }),
            Event::Stream { stream, device, name } => {
                json!({ "event": "stream", "stream": stream.0, "device": device.0, "name": name })
            }
            Event::StreamGone { stream } => json!({ "event": "stream_gone", "stream": stream.0 }),
            Event::Range { range, device, owner, base, place, places } => json!({
                "event": "range", "range": range.0, "device": device.0, "owner": owner.0, "base": base,
                "place": place.get(), "places": places,
            }),
            Event::Arena { range, pool } => json!({ "event": "arena", "range": range.0, "pool": pool.0 }),
            Event::RangeGone { range } => json!({ "event": "range_gone", "range": range.0 }),
            Event::Map { range, place, granules } => {
                json!({ "event": "map", "range": range.0, "place": place, "granules": granules })
            }
            Event::Unmap { range, place, count } => {
                json!({ "event": "unmap", "range": range.0, "place": place, "count": count })
            }
            Event::Retire { range, place, count } => {
                json!({ "event": "retire", "range": range.0, "place": place, "count": count })
            }
            Event::Length { range, used } => {
                json!({ "event": "length", "range": range.0, "used": used.get() })
            }
            Event::Create { device, count } => {
                json!({ "event": "create", "device": device.0, "count": count })
            }
            Event::Destroy { device, count } => {
                json!({ "event": "destroy", "device": device.0, "count": count })
            }
            Event::Take { device, owner, granules } => {
                json!({ "event": "take", "device": device.0, "owner": owner.0, "granules": granules })
            }
            Event::Give { device, owner, granules } => {
                json!({ "event": "give", "device": device.0, "owner": owner.0, "granules": granules })
            }
            Event::Charge { device, owner, size } => {
                json!({ "event": "charge", "device": device.0, "owner": owner.0, "size": size.get() })
            }
            Event::Discharge { device, owner, size } => {
                json!({ "event": "discharge", "device": device.0, "owner": owner.0, "size": size.get() })
            }
            Event::Refused { device, owner, requested } => json!({
                "event": "refused", "device": device.0, "owner": owner.0, "requested": requested.get(),
            }),
            Event::Alloc { at, pool, owner, stream, requested, given, align } => {
                self.live.insert(at, self.next);
                self.next += 1;
                json!({
                    "event": "alloc", "lease": self.next - 1, "at": at, "pool": pool.0, "owner": owner.0,
                    "stream": of(stream), "requested": requested.get(), "given": given.get(), "align": align.get(),
                })
            }
            Event::Used { at, stream } => {
                json!({ "event": "used", "lease": self.live.get(&at), "stream": stream.0 })
            }
            Event::Free { at } => json!({ "event": "free", "lease": self.live.remove(&at) }),
            Event::Steal { at, from } => {
                json!({ "event": "steal", "lease": self.live.get(&at), "from": of(from) })
            }
            Event::Wait { stream, on } => json!({ "event": "wait", "stream": stream.0, "on": on.0 }),
            Event::CaptureBegin { stream } => json!({ "event": "capture_begin", "stream": stream.0 }),
            Event::CaptureEnd { stream } => json!({ "event": "capture_end", "stream": stream.0 }),
            Event::Trim { pool, freed } => json!({ "event": "trim", "pool": pool.0, "freed": freed.get() }),
            Event::Mark { text } => json!({ "event": "mark", "text": text }),
            Event::Lost { events } => json!({ "event": "lost", "events": events }),
            Event::End => json!({ "event": "end" }),
            other => json!({ "event": "other", "debug": format!("{other:?}") }),
        }
    }
}
