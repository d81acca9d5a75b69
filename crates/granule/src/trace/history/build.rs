//! Builds a history event by event. A recording may name things that it never told of, and end anywhere.

use std::collections::{BTreeMap, HashMap};

use granule_bank::trace::{DeviceId, Event, OwnerId, PoolId, RangeId, Record, StreamId};

use super::granule::{Change, Granule};
use super::*;

/// A history so far, and what is live in it.
#[derive(Default)]
pub(super) struct Builder {
    history: History,
    now: u64,
    owners: HashMap<OwnerId, String>,
    devices: HashMap<DeviceId, usize>,
    accounts: HashMap<(usize, OwnerId), usize>,
    streams: HashMap<StreamId, usize>,
    pools: HashMap<PoolId, usize>,
    ranges: HashMap<RangeId, usize>,
    /// Live ranges by where they start.
    by_base: BTreeMap<u64, usize>,
    /// Live placements by range and place.
    by_place: BTreeMap<(usize, u64), usize>,
    /// Those of them that are not retired.
    in_use: BTreeMap<(usize, u64), usize>,
    granules: HashMap<u64, Granule>,
    leases: HashMap<u64, usize>,
    /// Live ones by account and size, the oldest first.
    charges: HashMap<(usize, u64), Vec<usize>>,
    lengths: HashMap<usize, u64>,
}

impl Builder {
    pub(super) fn finish(self) -> History {
        self.history
    }

    pub(super) fn record(&mut self, record: &Record) {
        self.now = record.ns;
        self.history.end = record.ns;
        self.history.events += 1;
        self.event(&record.event);
    }

    fn event(&mut self, event: &Event) {
        match *event {
            Event::Start { unix_ms, ref label } => {
                self.history.unix_ms = unix_ms;
                self.history.label.clone_from(label);
            }
            Event::Device { device, ref name, granule, budget } => {
                let device = self.device(device);
                let device = &mut self.history.devices[device];
                device.name.clone_from(name);
                (device.granule, device.budget) = (granule.get(), budget.get());
            }
            Event::Owner { owner, ref name } => {
                self.owners.insert(owner, name.clone());
            }
            Event::Pool { pool, device, owner } => {
                let device = self.device(device);
                self.account(device, owner);
                self.pools.insert(pool, device);
            }
            Event::Stream { stream, device, ref name } => {
                let (stream, device) = (self.stream(stream), self.device(device));
                self.history.streams[stream] = Stream { name: name.clone(), device };
            }
            Event::Range { range, device, owner, base, place, places } => {
                self.range_gone(range);
                let device = self.device(device);
                let account = self.account(device, owner);
                let (from, to, place) = (self.now, OPEN, place.get().max(1));
                let (arena, growable, id) = (false, false, range.0);
                self.ranges.insert(range, self.history.ranges.len());
                self.by_base.insert(base, self.history.ranges.len());
                let range = Range { id, account, base, place, places, from, to, arena, growable };
                self.history.ranges.push(range);
            }
            Event::Arena { range, .. } => {
                if let Some(range) = self.ranges.get(&range) {
                    self.history.ranges[*range].arena = true;
                }
            }
            Event::RangeGone { range } => self.range_gone(range),
            Event::Map { range, place, ref granules } => self.map(range, place, granules),
            Event::Unmap { range, place, count } => self.unmap(range, place, count),
            Event::Retire { range, place, count } => self.retire(range, place, count),
            Event::Length { range, used } => self.length(range, used.get()),
            Event::Create { device, count } => {
                let device = self.device(device);
                let device = &mut self.history.devices[device];
                device.created = device.created.saturating_add(count);
                device.create_calls += 1;
            }
            Event::Destroy { device, count } => {
                let device = self.device(device);
                let device = &mut self.history.devices[device];
                device.destroyed = device.destroyed.saturating_add(count);
                device.destroy_calls += 1;
            }
            Event::Take { device, owner, ref granules } => {
                let device = self.device(device);
                let account = self.account(device, owner);
                for granule in granules {
                    self.granules.entry(*granule).or_default().account = Some(account);
                }
                self.history.accounts[account].taken += granules.len() as u64;
                self.hold(account, self.bytes(device, granules.len()), 0);
            }
            Event::Give { device, ref granules, .. } => {
                let device = self.device(device);
                granules.iter().for_each(|granule| self.give(device, *granule));
            }
            Event::Charge { device, owner, size } => {
                let device = self.device(device);
                let account = self.account(device, owner);
                let (from, to, size) = (self.now, OPEN, size.get());
                self.charges.entry((account, size)).or_default().push(self.history.charges.len());
                self.history.charges.push(Charge { account, size, from, to });
                let charged = &mut self.history.accounts[account].charged;
                *charged = charged.saturating_add(size);
                self.hold(account, size, 0);
                self.use_more(account, size, 0);
            }
            Event::Discharge { device, owner, size } => self.discharge(device, owner, size.get()),
            Event::Refused { device, owner, requested } => {
                let device = self.device(device);
                let account = self.account(device, owner);
                self.history.accounts[account].refused += 1;
                self.moment(What::Refused { account, bytes: requested.get() });
            }
            Event::Alloc { at, pool, owner, stream, requested, given, .. } => {
                self.free(at, false);
                let device = self.pools.get(&pool).copied().unwrap_or_else(|| self.device(DeviceId(0)));
                let account = self.account(device, owner);
                let stream = stream.map(|stream| self.stream(stream));
                let (requested, given) = (requested.get(), given.get());
                let (range, from, to) = (self.range_at(at), self.now, OPEN);
                if let Some(range) = range {
                    self.history.ranges[range].arena = true;
                }
                self.leases.insert(at, self.history.leases.len());
                let lease = Lease { at, account, range, stream, requested, given, from, to };
                self.history.leases.push(lease);
                let account = &mut self.history.accounts[account];
                account.leases += 1;
                account.live_leases += 1;
                account.live = account.live.saturating_add(given);
                account.peak_live = account.peak_live.max(account.live);
                account.sum_requested = account.sum_requested.saturating_add(requested);
                account.sum_given = account.sum_given.saturating_add(given);
                self.use_more(self.holder(self.history.leases.len() - 1), given, 0);
            }
            Event::Used { at, .. } => self.history.unknown += u64::from(!self.leases.contains_key(&at)),
            Event::Free { at } => self.free(at, true),
            Event::Steal { at, .. } => match self.leases.get(&at) {
                Some(lease) => {
                    let account = self.history.leases[*lease].account;
                    self.history.accounts[account].steals += 1;
                }
                None => self.history.unknown += 1,
            },
            Event::Wait { stream, .. } => {
                let stream = self.stream(stream);
                let device = self.history.streams[stream].device;
                self.history.devices[device].waits += 1;
            }
            Event::CaptureBegin { stream } => {
                let stream = self.stream(stream);
                let device = self.history.streams[stream].device;
                self.history.devices[device].captures += 1;
                self.moment(What::CaptureBegin { stream });
            }
            Event::CaptureEnd { stream } => {
                let stream = self.stream(stream);
                self.moment(What::CaptureEnd { stream });
            }
            Event::Trim { pool, freed } => {
                let device = self.pools.get(&pool).copied().unwrap_or_else(|| self.device(DeviceId(0)));
                let bytes = freed.get();
                self.history.devices[device].trims += 1;
                let trimmed = &mut self.history.devices[device].trimmed;
                *trimmed = trimmed.saturating_add(bytes);
                self.moment(What::Trim { device, bytes });
            }
            Event::Mark { ref text } => self.moment(What::Mark(text.clone())),
            Event::Lost { events } => {
                self.history.lost = self.history.lost.saturating_add(events);
                self.moment(What::Lost(events));
            }
            _ => {}
        }
    }

    fn moment(&mut self, what: What) {
        self.history.moments.push(Moment { ns: self.now, what });
    }

    fn device(&mut self, id: DeviceId) -> usize {
        *self.devices.entry(id).or_insert_with(|| {
            let name = format!("device {}", id.0);
            self.history.devices.push(Device { name, ..Device::default() });
            self.history.devices.len() - 1
        })
    }

    fn account(&mut self, device: usize, owner: OwnerId) -> usize {
        *self.accounts.entry((device, owner)).or_insert_with(|| {
            let name = self.owners.get(&owner).cloned().unwrap_or_else(|| format!("owner {}", owner.0));
            self.history.accounts.push(Account { device, name, ..Account::default() });
            self.history.accounts.len() - 1
        })
    }

    fn stream(&mut self, id: StreamId) -> usize {
        if let Some(stream) = self.streams.get(&id) {
            return *stream;
        }
        // Never told of: whatever device there is.
        let device = if self.history.devices.is_empty() { self.device(DeviceId(0)) } else { 0 };
        self.history.streams.push(Stream { name: format!("stream {}", id.0), device });
        self.streams.insert(id, self.history.streams.len() - 1);
        self.history.streams.len() - 1
    }

    fn bytes(&self, device: usize, granules: usize) -> u64 {
        self.history.devices[device].granule.saturating_mul(granules as u64)
    }

    /// An account holds more or less.
    fn hold(&mut self, account: usize, more: u64, less: u64) {
        let (ns, index) = (self.now, account);
        let account = &mut self.history.accounts[account];
        account.held = account.held.saturating_add(more).saturating_sub(less);
        account.peak_held = account.peak_held.max(account.held);
        let bytes = account.held;
        let device = &mut self.history.devices[account.device];
        device.held = device.held.saturating_add(more).saturating_sub(less);
        if device.held > device.peak_held {
            (device.peak_held, device.peak_held_at) = (device.held, ns);
        }
        self.history.held.push(Held { ns, account: index, bytes });
    }

    /// More or less of what an account holds is in use.
    fn use_more(&mut self, index: usize, more: u64, less: u64) {
        let account = &mut self.history.accounts[index];
        account.used = account.used.saturating_add(more).saturating_sub(less);
        account.peak_used = account.peak_used.max(account.used);
        let (ns, bytes) = (self.now, account.used);
        let device = &mut self.history.devices[account.device];
        device.used = device.used.saturating_add(more).saturating_sub(less);
        device.peak_used = device.peak_used.max(device.used);
        self.history.used.push(Used { ns, account: index, bytes });
    }

    /// Whose memory a lease is in: the range's, where it is in one.
    fn holder(&self, lease: usize) -> usize {
        let Lease { range, account, .. } = self.history.leases[lease];
        range.map_or(account, |range| self.history.ranges[range].account)
    }

    fn give(&mut self, device: usize, granule: u64) {
        let Some(known) = self.granules.remove(&granule) else {
            self.history.unknown += 1;
            return;
        };
        let account = known.account;
        let (placements, used) = known.given();
        placements.for_each(|placement| self.end(placement));
        match account {
            Some(account) => {
                self.use_more(account, 0, used);
                self.history.accounts[account].given += 1;
                self.hold(account, 0, self.bytes(device, 1));
            }
            None => self.history.unknown += 1,
        }
    }

    fn discharge(&mut self, device: DeviceId, owner: OwnerId, size: u64) {
        let device = self.device(device);
        let account = self.account(device, owner);
        let Some(charge) = self.charges.get_mut(&(account, size)).and_then(Vec::pop) else {
            self.history.unknown += 1;
            return;
        };
        self.history.charges[charge].to = self.now;
        let charged = &mut self.history.accounts[account].charged;
        *charged = charged.saturating_sub(size);
        self.hold(account, 0, size);
        self.use_more(account, 0, size);
    }

    /// The lease at an address ends; where none is live there, `told` says that somebody thought so.
    fn free(&mut self, at: u64, told: bool) {
        let Some(index) = self.leases.remove(&at) else {
            self.history.unknown += u64::from(told);
            return;
        };
        let lease = &mut self.history.leases[index];
        lease.to = self.now;
        let (account, given) = (lease.account, lease.given);
        let account = &mut self.history.accounts[account];
        account.live = account.live.saturating_sub(given);
        account.live_leases -= 1;
        self.use_more(self.holder(index), 0, given);
    }

    fn range_at(&self, at: u64) -> Option<usize> {
        let (_, range) = self.by_base.range(..=at).next_back()?;
        let Range { base, place, places, .. } = self.history.ranges[*range];
        (at - base < place.saturating_mul(places)).then_some(*range)
    }

    fn range_gone(&mut self, id: RangeId) {
        let Some(range) = self.ranges.remove(&id) else { return };
        self.end_places(range, 0, u64::MAX);
        self.history.ranges[range].to = self.now;
        let base = self.history.ranges[range].base;
        if self.by_base.get(&base) == Some(&range) {
            self.by_base.remove(&base);
        }
    }

    fn map(&mut self, id: RangeId, place: u64, granules: &[u64]) {
        let Some(range) = self.ranges.get(&id).copied() else {
            self.history.unknown += 1;
            return;
        };
        let account = self.history.ranges[range].account;
        self.history.devices[self.history.accounts[account].device].maps += 1;
        self.end_places(range, place, granules.len() as u64);
        for (index, granule) in (0u64..).zip(granules) {
            let place = place.saturating_add(index);
            let placement = self.history.placements.len();
            let account = self.granules.entry(*granule).or_default().account.unwrap_or(account);
            let (from, retired, to) = (self.now, OPEN, OPEN);
            let granule = *granule;
            self.history.placements.push(Placement { range, place, granule, account, from, retired, to });
            self.by_place.insert((range, place), placement);
            self.in_use.insert((range, place), placement);
            self.grow(placement);
        }
    }

    fn unmap(&mut self, id: RangeId, place: u64, count: u64) {
        let Some(range) = self.ranges.get(&id).copied() else {
            self.history.unknown += 1;
            return;
        };
        let account = self.history.ranges[range].account;
        self.history.devices[self.history.accounts[account].device].unmaps += 1;
        self.end_places(range, place, count);
    }

    fn retire(&mut self, id: RangeId, place: u64, count: u64) {
        let Some(range) = self.ranges.get(&id).copied() else {
            self.history.unknown += 1;
            return;
        };
        let account = self.history.ranges[range].account;
        for placement in within(&self.in_use, range, place, count) {
            let Placement { place, ref mut retired, .. } = self.history.placements[placement];
            *retired = self.now;
            self.in_use.remove(&(range, place));
            self.history.devices[self.history.accounts[account].device].retired += 1;
            self.grow(placement);
        }
    }

    fn end_places(&mut self, range: usize, place: u64, count: u64) {
        for placement in within(&self.by_place, range, place, count) {
            self.end(placement);
            let granule = self.history.placements[placement].granule;
            let change = self.granules.get_mut(&granule).and_then(|granule| granule.leave(placement));
            self.changed(change);
        }
    }

    /// Nothing stands behind the place any more.
    fn end(&mut self, placement: usize) {
        let now = self.now;
        let Placement { range, place, ref mut to, .. } = self.history.placements[placement];
        *to = now;
        for live in [&mut self.by_place, &mut self.in_use] {
            if live.get(&(range, place)) == Some(&placement) {
                live.remove(&(range, place));
            }
        }
    }

    fn length(&mut self, id: RangeId, bytes: u64) {
        let Some(range) = self.ranges.get(&id).copied() else {
            self.history.unknown += 1;
            return;
        };
        let (ns, before) = (self.now, self.lengths.insert(range, bytes).unwrap_or(0));
        self.history.lengths.push(Length { ns, range, bytes });
        self.history.ranges[range].growable = true;
        let place = self.history.ranges[range].place;
        let (first, last) = (before.min(bytes) / place, before.max(bytes) / place);
        // One step of an account's curve, however many granules it is made of.
        let mut changes: BTreeMap<usize, Change> = BTreeMap::new();
        for placement in within(&self.in_use, range, first, (last - first).saturating_add(1)) {
            if let Some(Change { account, more, less }) = self.grown(placement) {
                let all = changes.entry(account).or_insert(Change { account, more: 0, less: 0 });
                all.more = all.more.saturating_add(more);
                all.less = all.less.saturating_add(less);
            }
        }
        changes.into_values().for_each(|change| self.changed(Some(change)));
    }

    /// Counts anew how much of a placement's granule is within a growable's length there.
    fn grown(&mut self, placement: usize) -> Option<Change> {
        let Placement { range, place, granule, retired, .. } = self.history.placements[placement];
        let size = self.history.ranges[range].place;
        let used = self.lengths.get(&range).copied().unwrap_or(0);
        let used = used.saturating_sub(place.saturating_mul(size)).min(size);
        self.granules.get_mut(&granule)?.fill(placement, if retired == OPEN { used } else { 0 })
    }

    fn grow(&mut self, placement: usize) {
        let change = self.grown(placement);
        self.changed(change);
    }

    fn changed(&mut self, change: Option<Change>) {
        if let Some(Change { account, more, less }) = change {
            self.use_more(account, more, less);
        }
    }
}

/// The placements at these places of a range.
fn within(live: &BTreeMap<(usize, u64), usize>, range: usize, place: u64, count: u64) -> Vec<usize> {
    let end = place.saturating_add(count);
    live.range((range, place)..(range, end)).map(|(_, placement)| *placement).collect()
}
