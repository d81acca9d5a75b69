//! A recording read as naively as it can be: the whole state anew after every event.

use std::collections::BTreeMap;

use granule_bank::trace::{DeviceId, Event, OwnerId, RangeId, Record};

/// What a recording says.
#[derive(Default)]
pub(crate) struct Naive {
    /// After each event.
    pub(crate) moments: Vec<Moment>,
    /// In the order of their beginnings.
    pub(crate) leases: Vec<Lease>,
    pub(crate) created: u64,
    pub(crate) destroyed: u64,
}

/// How things stand.
pub(crate) struct Moment {
    pub(crate) ns: u64,
    /// Every owner that a pool, a range, a lease or memory named, by its name.
    pub(crate) owners: BTreeMap<String, Owner>,
    /// Range, place, granule, and whether it only waits for device work.
    pub(crate) placed: Vec<(u32, u64, u64, bool)>,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct Owner {
    pub(crate) held: u64,
    pub(crate) used: u64,
}

impl Moment {
    pub(crate) fn held(&self) -> u64 {
        self.owners.values().map(|owner| owner.held).sum()
    }

    pub(crate) fn used(&self) -> u64 {
        self.owners.values().map(|owner| owner.used).sum()
    }
}

pub(crate) struct Lease {
    pub(crate) at: u64,
    pub(crate) owner: String,
    pub(crate) requested: u64,
    pub(crate) given: u64,
    pub(crate) from: u64,
    pub(crate) to: Option<u64>,
}

/// What is live.
#[derive(Default)]
struct Live {
    granule: BTreeMap<DeviceId, u64>,
    names: BTreeMap<OwnerId, String>,
    /// Granule to owner.
    taken: BTreeMap<u64, OwnerId>,
    charges: Vec<(OwnerId, u64)>,
    /// Owner of the granules, base, size of a place, places, length.
    ranges: BTreeMap<RangeId, (OwnerId, u64, u64, u64, u64)>,
    /// Granule, retired.
    places: BTreeMap<(RangeId, u64), (u64, bool)>,
    /// Address to size.
    leases: BTreeMap<u64, u64>,
}

/// A name as a page shows it.
pub(crate) fn shown(name: &str) -> String {
    name.replace('\u{202e}', "\\u{202e}").replace('\u{2028}', "\\u{2028}").replace('\0', "\\u{0}")
}

impl Naive {
    pub(crate) fn of(records: &[Record]) -> Naive {
        let (mut naive, mut live) = (Naive::default(), Live::default());
        for (index, Record { ns, event }) in records.iter().enumerate() {
            naive.event(event, *ns, &mut live, &records[index + 1..]);
            naive.moments.push(live.moment(*ns));
        }
        naive
    }

    fn event(&mut self, event: &Event, ns: u64, live: &mut Live, after: &[Record]) {
        match event.clone() {
            Event::Device { device, granule, .. } => _ = live.granule.insert(device, granule.get()),
            Event::Owner { owner, name } => _ = live.names.insert(owner, name),
            Event::Range { range, owner, base, place, places, .. } => {
                live.ranges.insert(range, (owner, base, place.get(), places, 0));
            }
            Event::RangeGone { range } => {
                live.ranges.remove(&range);
                live.places.retain(|(of, _), _| *of != range);
            }
            Event::Map { range, place, granules } => {
                for (index, granule) in (0..).zip(granules) {
                    live.places.insert((range, place + index), (granule, false));
                }
            }
            Event::Retire { range, place, count } => {
                for place in place..place + count {
                    live.places.get_mut(&(range, place)).unwrap().1 = true;
                }
            }
            Event::Length { range, used } => live.ranges.get_mut(&range).unwrap().4 = used.get(),
            Event::Take { owner, granules, .. } => {
                live.taken.extend(granules.into_iter().map(|granule| (granule, owner)));
            }
            Event::Give { granules, .. } => {
                live.taken.retain(|granule, _| !granules.contains(granule));
                live.places.retain(|_, (granule, _)| !granules.contains(granule));
            }
            Event::Charge { owner, size, .. } => live.charges.push((owner, size.get())),
            Event::Discharge { owner, size, .. } => {
                let charge = live.charges.iter().position(|charge| *charge == (owner, size.get())).unwrap();
                live.charges.remove(charge);
            }
            Event::Create { count, .. } => self.created += count,
            Event::Destroy { count, .. } => self.destroyed += count,
            Event::Alloc { at, owner, requested, given, .. } => {
                live.leases.insert(at, given.get());
                let freed = after.iter().find(|record| record.event == Event::Free { at });
                self.leases.push(Lease {
                    at,
                    owner: live.names[&owner].clone(),
                    requested: requested.get(),
                    given: given.get(),
                    from: ns,
                    to: freed.map(|record| record.ns),
                });
            }
            Event::Free { at } => _ = live.leases.remove(&at),
            _ => {}
        }
    }
}

impl Live {
    fn moment(&self, ns: u64) -> Moment {
        let mut owners: BTreeMap<String, Owner> = BTreeMap::new();
        let mut of = |owner: &OwnerId, held: u64, used: u64| {
            let owner = owners.entry(self.names[owner].clone()).or_default();
            *owner = Owner { held: owner.held + held, used: owner.used + used };
        };
        self.charges.iter().for_each(|(owner, size)| of(owner, *size, *size));
        let granule = self.granule.values().next().copied().unwrap_or(0);
        self.taken.values().for_each(|owner| of(owner, granule, 0));
        for ((range, place), (granule, retired)) in &self.places {
            let (_, _, size, _, length) = self.ranges[range];
            let used = length.saturating_sub(place * size).min(size);
            of(&self.taken[granule], 0, if *retired { 0 } else { used });
        }
        for (at, given) in &self.leases {
            let holds = |(_, base, size, places, _): &&(OwnerId, u64, u64, u64, u64)| {
                (*base..base + size * places).contains(at)
            };
            let (owner, ..) = self.ranges.values().find(holds).unwrap();
            of(owner, 0, *given);
        }
        let placed = self
            .places
            .iter()
            .map(|((range, place), (granule, retired))| (range.0, *place, *granule, *retired));
        Moment { ns, owners, placed: placed.collect() }
    }
}
