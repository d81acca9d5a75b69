//! Events with whatever numbers and texts a program could come up with.

use granule_device::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::trace::*;

fn number() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..200, any::<u64>(), Just(u64::MAX), (0u32..64).prop_map(|bit| 1 << bit)]
}

fn id() -> impl Strategy<Value = u32> {
    prop_oneof![0u32..20, any::<u32>(), Just(u32::MAX)]
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof!["\\PC{0,20}", ".{0,300}", Just(String::new())]
}

/// Any event but the end.
pub(super) fn event() -> impl Strategy<Value = Event> {
    let of = |kind: u8, ids: [u32; 3], sizes: [u64; 4], stream: Option<u32>, text: String, list: Vec<u64>| {
        let (device, owner, pool) = (DeviceId(ids[0]), OwnerId(ids[1]), PoolId(ids[2]));
        let (range, stream_id, on) = (RangeId(ids[0]), StreamId(ids[1]), StreamId(ids[2]));
        let (at, size, count, place) = (sizes[0], Bytes::new(sizes[1]), sizes[2], sizes[3]);
        let stream = stream.map(StreamId);
        match kind {
            0 => Event::Start { unix_ms: at, label: text },
            1 => Event::Device { device, name: text, granule: size, budget: Bytes::new(count) },
            2 => Event::Owner { owner, name: text },
            3 => Event::Pool { pool, device, owner },
            4 => Event::PoolGone { pool },
            5 => Event::Stream { stream: stream_id, device, name: text },
            6 => Event::StreamGone { stream: stream_id },
            7 => Event::Range { range, device, owner, base: at, place: size, places: count },
            8 => Event::Arena { range, pool },
            9 => Event::RangeGone { range },
            10 => Event::Map { range, place, granules: list },
            11 => Event::Unmap { range, place, count },
            12 => Event::Retire { range, place, count },
            13 => Event::Length { range, used: size },
            14 => Event::Create { device, count },
            15 => Event::Destroy { device, count },
            16 => Event::Take { device, owner, granules: list },
            17 => Event::Give { device, owner, granules: list },
            18 => Event::Charge { device, owner, size },
            19 => Event::Discharge { device, owner, size },
            20 => Event::Refused { device, owner, requested: size },
            21 => {
                let (requested, given, align) = (size, Bytes::new(count), Bytes::new(place));
                Event::Alloc { at, pool, owner, stream, requested, given, align }
            }
            22 => Event::Used { at, stream: stream_id },
            23 => Event::Free { at },
            24 => Event::Steal { at, from: stream },
            25 => Event::Wait { stream: stream_id, on },
            26 => Event::CaptureBegin { stream: stream_id },
            27 => Event::CaptureEnd { stream: stream_id },
            28 => Event::Trim { pool, freed: size },
            29 => Event::Mark { text },
            _ => Event::Lost { events: count },
        }
    };
    let ids = [id(), id(), id()];
    let sizes = [number(), number(), number(), number()];
    (0u8..31, ids, sizes, proptest::option::of(id()), text(), vec(number(), 0..20))
        .prop_map(move |(kind, ids, sizes, stream, text, list)| of(kind, ids, sizes, stream, text, list))
}
