//! Recordings that make no sense: whatever the events say, in whatever order, a history and its page come of it.

use granule_bank::trace::{DeviceId, Event, OwnerId, PoolId, RangeId, Record, StreamId};
use granule_device::Bytes;

use super::*;
use crate::trace::page::page;
use crate::trace::summary::Summary;

/// Numbers that are small, or as large as numbers get.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn id(&mut self) -> u32 {
        (self.next() % 4) as u32
    }

    fn number(&mut self) -> u64 {
        match self.next() % 8 {
            0 => u64::MAX - self.next() % 3,
            1 => 1 << (self.next() % 64),
            _ => self.next() % 5,
        }
    }

    fn event(&mut self) -> Event {
        let (device, owner, pool) = (DeviceId(self.id()), OwnerId(self.id()), PoolId(self.id()));
        let (range, stream, on) = (RangeId(self.id()), StreamId(self.id()), StreamId(self.id()));
        let (at, size, count, place) =
            (self.number(), Bytes::new(self.number()), self.number(), self.number());
        let granules = || (0..count % 4).map(|n| place.wrapping_add(n)).collect();
        let name = "x".to_owned();
        match self.next() % 28 {
            0 => Event::Device { device, name, granule: size, budget: size },
            1 => Event::Owner { owner, name },
            2 => Event::Pool { pool, device, owner },
            3 => Event::Stream { stream, device, name },
            4 | 5 => Event::Range { range, device, owner, base: at, place: size, places: count },
            6 => Event::Arena { range, pool },
            7 => Event::RangeGone { range },
            8..=10 => Event::Map { range, place, granules: granules() },
            11 => Event::Unmap { range, place, count },
            12 => Event::Retire { range, place, count },
            13 => Event::Length { range, used: size },
            14 => Event::Create { device, count },
            15 => Event::Destroy { device, count },
            16 | 17 => Event::Take { device, owner, granules: granules() },
            18 => Event::Give { device, owner, granules: granules() },
            19 => Event::Charge { device, owner, size },
            20 => Event::Discharge { device, owner, size },
            21 => Event::Refused { device, owner, requested: size },
            22 | 23 => {
                let (requested, given, stream) = (Bytes::new(place), size, Some(stream));
                Event::Alloc { at, pool, owner, stream, requested, given, align: size }
            }
            24 => Event::Free { at },
            25 => Event::Steal { at, from: None },
            26 => Event::Wait { stream, on },
            _ => Event::Trim { pool, freed: size },
        }
    }
}

#[test]
fn whatever_the_events_say_something_can_be_shown() {
    for seed in 0..300 {
        let (mut random, mut builder) = (Random(seed), Builder::default());
        for ns in 0..200 {
            builder.record(&Record { ns, event: random.event() });
        }
        let history = builder.finish();
        assert_eq!((history.events, history.end), (200, 199));
        for account in &history.accounts {
            assert!(account.held <= account.peak_held && account.used <= account.peak_used);
            assert!(account.live <= account.peak_live && account.live_leases <= account.leases);
        }
        let summary = Summary::new(&history);
        assert!(summary.json()["devices"].as_array().unwrap().len() == history.devices.len());
        assert!(!summary.to_string().is_empty());
        assert!(page(&history).unwrap().contains("\"columns\":{"));
    }
}
