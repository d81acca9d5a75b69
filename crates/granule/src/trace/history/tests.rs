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

/// A place is 8 bytes long.
fn range(builder: &mut Builder, id: u32) {
    let (device, owner, place) = (DeviceId(0), OwnerId(0), Bytes::new(8));
    let event = Event::Range { range: RangeId(id), device, owner, base: 0, place, places: 1 << 40 };
    builder.record(&Record { ns: 0, event });
}

/// What of each account's granules is in use, from what is placed where and how long everything is at the end.
fn in_use(history: &History) -> Vec<u64> {
    let length =
        |range| history.lengths.iter().rfind(|length| length.range == range).map_or(0, |length| length.bytes);
    let mut fills: std::collections::HashMap<(usize, u64), u64> = std::collections::HashMap::new();
    for placement in
        history.placements.iter().filter(|placement| (placement.to, placement.retired) == (OPEN, OPEN))
    {
        let fill = length(placement.range).saturating_sub(placement.place * 8).min(8);
        let fullest = fills.entry((placement.account, placement.granule)).or_default();
        *fullest = fill.max(*fullest);
    }
    let of = |account| fills.iter().filter(|((of, _), _)| *of == account).map(|(_, fill)| fill).sum();
    (0..history.accounts.len()).map(of).collect()
}

#[test]
fn of_a_granule_behind_several_places_the_fullest_counts() {
    let mut seen = 0;
    for seed in 0..2_000 {
        let (mut random, mut builder) = (Random(seed), Builder::default());
        for owner in 0..3 {
            let granules = vec![u64::from(owner) * 2, u64::from(owner) * 2 + 1];
            let event = Event::Take { device: DeviceId(0), owner: OwnerId(owner), granules };
            builder.record(&Record { ns: 0, event });
        }
        (0..3).for_each(|id| range(&mut builder, id));
        for ns in 1..seed % 60 + 2 {
            let (id, place, granule) = (RangeId(random.id() % 3), random.next() % 4, random.next() % 6);
            let count = 1 + random.next() % 3;
            let event = match random.next() % 16 {
                0..=5 => {
                    Event::Map { range: id, place, granules: vec![granule, (granule + count) % 6, granule] }
                }
                6..=11 => Event::Length { range: id, used: Bytes::new(random.next() % 56) },
                12 => Event::Retire { range: id, place, count },
                13 => Event::Unmap { range: id, place, count },
                14 if seed % 3 == 0 => Event::RangeGone { range: id },
                _ if seed % 5 == 0 => {
                    let (device, owner) = (DeviceId(0), OwnerId((granule / 2) as u32));
                    builder.record(&Record {
                        ns,
                        event: Event::Give { device, owner, granules: vec![granule] },
                    });
                    Event::Take { device, owner, granules: vec![granule] }
                }
                _ => continue,
            };
            builder.record(&Record { ns, event });
        }
        let history = builder.finish();
        let used: Vec<u64> = history.accounts.iter().map(|account| account.used).collect();
        assert_eq!(used, in_use(&history), "seed {seed}");
        seen += used.iter().sum::<u64>();
    }
    assert!(seen > 0);
}

/// Where the time of each of these events grew with what there was before it, this took hours.
#[test]
fn what_is_shared_by_very_many_costs_no_more_than_what_is_not() {
    const MANY: u64 = 200_000;
    let mut builder = Builder::default();
    let (device, owner) = (DeviceId(0), OwnerId(0));
    let mut say = |event| builder.record(&Record { ns: 1, event });
    say(Event::Take { device, owner, granules: vec![7] });
    for id in [RangeId(0), RangeId(1)] {
        say(Event::Range { range: id, device, owner, base: 0, place: Bytes::new(8), places: MANY });
        say(Event::Length { range: id, used: Bytes::new(MANY * 8 - 5) });
        for place in (0..MANY).step_by(10_000) {
            say(Event::Map { range: id, place, granules: vec![7; 10_000] });
        }
    }
    // The places that were mapped last go last.
    say(Event::RangeGone { range: RangeId(0) });
    for place in 0..MANY - 1 {
        say(Event::Unmap { range: RangeId(1), place, count: 1 });
    }
    (1..=MANY).for_each(|size| say(Event::Charge { device, owner, size: Bytes::new(size) }));
    // The oldest first.
    (1..=MANY).for_each(|size| say(Event::Discharge { device, owner, size: Bytes::new(size) }));
    let history = builder.finish();
    assert_eq!((history.accounts[0].used, history.accounts[0].peak_used), (3, 3 + MANY * (MANY + 1) / 2));
    assert_eq!(history.unknown, 0);
}

#[test]
fn what_is_retired_already_is_not_looked_at_again() {
    const MANY: u64 = 20_000;
    let (mut builder, id) = (Builder::default(), RangeId(0));
    range(&mut builder, 0);
    builder
        .record(&Record { ns: 1, event: Event::Map { range: id, place: 0, granules: (0..MANY).collect() } });
    for ns in 0..MANY {
        builder.record(&Record { ns: 2 + ns, event: Event::Retire { range: id, place: 0, count: MANY } });
    }
    let history = builder.finish();
    assert_eq!(history.devices[0].retired, MANY);
    assert!(history.placements.iter().all(|placement| placement.retired == 2));
}
