//! The happens-before check: conflicting operations that nothing orders, whatever the schedule did.

use super::call::Call;
use super::clock::{Clock, Lane};
use super::span::{Span, Touch};

/// A touch of an operation, and the address it went through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) touch: Touch,
    pub(crate) at: u64,
}

impl Trace {
    fn overlaps_addresses(&self, start: u64, len: u64) -> bool {
        self.at < start.saturating_add(len) && start < self.at.saturating_add(self.touch.span.len)
    }
}

/// The other side of a race, and where the two meet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Race {
    pub(crate) call: Call,
    pub(crate) lane: Lane,
    pub(crate) tick: u64,
    pub(crate) span: Span,
}

#[derive(Clone, Debug)]
struct Record {
    call: Call,
    lane: Lane,
    tick: u64,
    traces: Vec<Trace>,
}

/// What operations touched, as far as somebody might still conflict with it.
#[derive(Debug, Default)]
pub(crate) struct Races {
    records: Vec<Record>,
    forgotten: Forgotten,
}

#[derive(Debug, Default)]
enum Forgotten {
    #[default]
    None,
    Untold(Call),
    Told,
}

impl Races {
    /// Beyond this many operations that the host does not know to be done the oldest are forgotten.
    pub(crate) const MOST: usize = 16_384;

    /// An operation of `call`, number `tick` of `lane`, ordered after what `clock` covers. Returns the calls that it
    /// races with, and where. `later` tells whether an operation already known comes after this one: then the two are
    /// in order too. `awaited` tells whether one that comes before this one, and whose touches are not known yet, might
    /// still race with an old one.
    pub(crate) fn add(
        &mut self,
        (call, lane, tick): (Call, Lane, u64),
        clock: &Clock,
        traces: &[Trace],
        later: impl Fn(Lane, u64) -> bool,
        awaited: impl Fn(Lane, u64) -> bool,
    ) -> Vec<Race> {
        let mut found: Vec<Race> = Vec::new();
        for record in &self.records {
            let ordered = clock.covers(record.lane, record.tick) || later(record.lane, record.tick);
            if ordered || found.iter().any(|race| race.call == record.call) {
                continue;
            }
            let pairs = record.traces.iter().flat_map(|old| traces.iter().map(move |new| (old, new)));
            let hit = pairs.into_iter().find(|(old, new)| old.touch.conflicts(&new.touch));
            found.extend(hit.map(|(_, new)| Race {
                call: record.call,
                lane: record.lane,
                tick: record.tick,
                span: new.touch.span,
            }));
        }
        if traces.is_empty() {
            return found;
        }
        // What this one outdoes need not be kept: whoever races with the old one races with this one too, but for a
        // launch between the two that is in order with this one only.
        for record in &mut self.records {
            let outdone =
                |old: &Trace| traces.iter().any(|new| new.at == old.at && new.touch.outdoes(&old.touch));
            if clock.covers(record.lane, record.tick)
                && record.traces.iter().any(outdone)
                && !awaited(record.lane, record.tick)
            {
                record.traces.retain(|old| !outdone(old));
            }
        }
        self.records.retain(|r| !r.traces.is_empty());
        if self.records.len() >= Self::MOST {
            let oldest = self.records.remove(0);
            if let Forgotten::None = self.forgotten {
                self.forgotten = Forgotten::Untold(oldest.call);
            }
        }
        self.records.push(Record { call, lane, tick, traces: traces.to_vec() });
        found
    }

    /// The first call that had to be forgotten, answered once: races with it and with others are not found any more.
    pub(crate) fn take_forgotten(&mut self) -> Option<Call> {
        let Forgotten::Untold(call) = self.forgotten else { return None };
        self.forgotten = Forgotten::Told;
        Some(call)
    }

    /// Drops what the host knows to be done and every clock of `waiting` covers too: nobody can race with it.
    pub(crate) fn settle<'a>(&mut self, host: &Clock, waiting: impl Iterator<Item = &'a Clock> + Clone) {
        self.records.retain(|r| {
            !(host.covers(r.lane, r.tick) && waiting.clone().all(|clock| clock.covers(r.lane, r.tick)))
        });
    }

    /// Calls that touch addresses in the range and are not known by the host to be done.
    pub(crate) fn unfinished_at(&self, start: u64, len: u64, host: &Clock) -> Vec<Call> {
        let touching = self.records.iter().filter(|r| {
            !host.covers(r.lane, r.tick) && r.traces.iter().any(|t| t.overlaps_addresses(start, len))
        });
        touching.map(|r| r.call).collect()
    }

    /// The memory is gone: nobody can conflict over it.
    pub(crate) fn forget(&mut self, span: &Span) {
        for record in &mut self.records {
            record.traces.retain(|t| !span.contains(&t.touch.span));
        }
        self.records.retain(|r| !r.traces.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::span::Place;

    fn call(number: u64) -> Call {
        Call { number, name: "cuMemcpyAsync" }
    }

    fn trace(start: u64, len: u64, write: bool) -> Trace {
        Trace {
            touch: Touch { span: Span { place: Place::Store(0), start, len }, write, atomic: false },
            at: start,
        }
    }

    #[test]
    fn a_missing_wait_is_found_and_a_wait_is_enough() {
        let (a, b) = (Lane(1), Lane(2));
        let mut races = Races::default();
        let mut first = Clock::default();
        let tick = first.advance(a);
        assert!(
            races
                .add((call(1), a, tick), &first, &[trace(0, 64, true)], |_, _| false, |_, _| false)
                .is_empty()
        );

        let mut blind = Clock::default();
        let tick = blind.advance(b);
        let found =
            races.add((call(2), b, tick), &blind, &[trace(32, 64, false)], |_, _| false, |_, _| false);
        assert_eq!(found.iter().map(|race| race.call.number).collect::<Vec<_>>(), [1]);

        let mut waited = blind.clone();
        waited.join(&first);
        let tick = waited.advance(b);
        assert!(
            races
                .add((call(3), b, tick), &waited, &[trace(32, 64, false)], |_, _| false, |_, _| false)
                .is_empty()
        );
    }

    #[test]
    fn two_reads_never_race_and_what_is_outdone_is_not_kept() {
        let mut races = Races::default();
        for lane in [Lane(1), Lane(2)] {
            let mut clock = Clock::default();
            let tick = clock.advance(lane);
            assert!(
                races
                    .add((call(1), lane, tick), &clock, &[trace(0, 8, false)], |_, _| false, |_, _| false)
                    .is_empty()
            );
        }
        let mut clock = Clock::default();
        for number in 0..100 {
            let tick = clock.advance(Lane(1));
            races.add(
                (call(number), Lane(1), tick),
                &clock,
                &[trace(100, 8, true)],
                |_, _| false,
                |_, _| false,
            );
        }
        assert_eq!(races.records.len(), 3);
        races.settle(&clock, [].iter());
        assert_eq!(races.records.len(), 1, "lane 2 is not known to be done");
    }

    #[test]
    fn unfinished_work_is_known_by_address_until_the_host_knows_better() {
        let mut races = Races::default();
        let mut clock = Clock::default();
        let tick = clock.advance(Lane(1));
        races.add((call(7), Lane(1), tick), &clock, &[trace(4096, 64, false)], |_, _| false, |_, _| false);
        assert_eq!(races.unfinished_at(4096, 4096, &Clock::default()), [call(7)]);
        assert!(races.unfinished_at(8192, 4096, &Clock::default()).is_empty());
        assert!(races.unfinished_at(4096, 4096, &clock).is_empty());
    }

    #[test]
    fn what_a_launch_may_still_race_with_is_kept_though_it_is_outdone() {
        for launch_is_pending in [false, true] {
            let mut races = Races::default();
            let mut clock = Clock::default();
            let tick = clock.advance(Lane(1));
            let write = [trace(0, 64, true)];
            races.add((call(1), Lane(1), tick), &clock, &write, |_, _| false, |_, _| false);
            // The second write waits for a launch that waits for nothing.
            let mut launch = Clock::default();
            let launched = launch.advance(Lane(2));
            clock.join(&launch);
            let second = clock.advance(Lane(1));
            let awaited = |lane, tick| launch_is_pending && !launch.covers(lane, tick);
            races.add((call(3), Lane(1), second), &clock, &write, |_, _| false, awaited);
            let later = |lane, tick| (lane, tick) == (Lane(1), second);
            let found = races.add((call(2), Lane(2), launched), &launch, &write, later, |_, _| false);
            let found: Vec<u64> = found.iter().map(|race| race.call.number).collect();
            assert_eq!(found, if launch_is_pending { vec![1] } else { vec![] });
        }
    }

    #[test]
    fn too_many_operations_are_told_once() {
        let mut races = Races::default();
        let mut clock = Clock::default();
        for number in 0..Races::MOST as u64 + 10 {
            let tick = clock.advance(Lane(1));
            let touch = [trace(number * 8, 8, true)];
            races.add((call(number), Lane(1), tick), &clock, &touch, |_, _| false, |_, _| false);
            let told = races.take_forgotten().map(|call| call.number);
            assert_eq!(told, (number == Races::MOST as u64).then_some(0), "{number}");
        }
    }
}
