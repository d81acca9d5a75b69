//! `Clock`: which work of other streams comes before a stream's next work.

use super::stamp::{Stamp, StreamId, Tick};

/// A vector clock over the streams it has heard of: everything that stream `s` was given up to tick `get(s)` comes before
/// whatever the clock's owner is given next. Of a stream it has not heard of that is nothing: tick 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// By stream, each at most once, never at tick 0.
    ticks: Vec<(StreamId, Tick)>,
}

impl Clock {
    /// A clock that has heard of nobody.
    pub const fn new() -> Clock {
        Clock { ticks: Vec::new() }
    }

    /// Up to which tick of the stream everything comes before.
    pub fn get(&self, stream: StreamId) -> Tick {
        self.find(stream).map_or(0, |at| self.ticks[at].1)
    }

    /// Everything of the stream up to `tick` comes before from now on. A clock never goes back.
    pub fn raise(&mut self, stream: StreamId, tick: Tick) {
        match self.find(stream) {
            Ok(at) => self.ticks[at].1 = self.ticks[at].1.max(tick),
            Err(at) if tick > 0 => self.ticks.insert(at, (stream, tick)),
            Err(_) => {}
        }
    }

    /// Everything that comes before the other's owner comes before this one's too: it has waited for it.
    pub fn merge(&mut self, other: &Clock) {
        other.ticks.iter().for_each(|&(stream, tick)| self.raise(stream, tick));
    }

    /// A stream that is gone, all of whose work is done: nothing will ask for it again.
    pub fn forget(&mut self, stream: StreamId) {
        if let Ok(at) = self.find(stream) {
            self.ticks.remove(at);
        }
    }

    /// True where a block with this stamp can be used without waiting for anything.
    pub fn covers(&self, stamp: &Stamp) -> bool {
        self.missing(stamp).next().is_none()
    }

    /// What a user of a block with this stamp has to wait for first.
    pub fn missing(&self, stamp: &Stamp) -> impl Iterator<Item = (StreamId, Tick)> {
        stamp.iter().filter(|&(stream, tick)| self.get(stream) < tick)
    }

    fn find(&self, stream: StreamId) -> Result<usize, usize> {
        self.ticks.binary_search_by_key(&stream, |&(known, _)| known)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Raise(u32, Tick),
        Merge(Vec<(u32, Tick)>),
        Forget(u32),
    }

    fn step() -> impl Strategy<Value = Step> {
        let entry = (0_u32..5, 0_u64..8);
        prop_oneof![
            4 => entry.clone().prop_map(|(stream, tick)| Step::Raise(stream, tick)),
            2 => prop::collection::vec(entry, 0..4).prop_map(Step::Merge),
            1 => (0_u32..5).prop_map(Step::Forget),
        ]
    }

    proptest! {
        #![proptest_config(crate::policy::few_under_miri(256))]

        #[test]
        fn a_clock_is_a_map_that_only_rises(steps in prop::collection::vec(step(), 0..20)) {
            let mut clock = Clock::new();
            let mut map: BTreeMap<u32, Tick> = BTreeMap::new();
            let rise = |map: &mut BTreeMap<u32, Tick>, stream, tick: Tick| {
                let known = map.entry(stream).or_default();
                *known = tick.max(*known);
            };
            for step in steps {
                match step {
                    Step::Raise(stream, tick) => {
                        clock.raise(StreamId(stream), tick);
                        rise(&mut map, stream, tick);
                    }
                    Step::Merge(entries) => {
                        let mut other = Clock::new();
                        for (stream, tick) in entries {
                            other.raise(StreamId(stream), tick);
                            rise(&mut map, stream, tick);
                        }
                        clock.merge(&other);
                    }
                    Step::Forget(stream) => {
                        clock.forget(StreamId(stream));
                        map.remove(&stream);
                    }
                }
                for stream in 0..5 {
                    prop_assert_eq!(clock.get(StreamId(stream)), map.get(&stream).copied().unwrap_or(0));
                }
            }
        }

        #[test]
        fn a_clock_misses_what_is_later_than_it(
            known in prop::collection::vec((0_u32..4, 0_u64..8), 0..4),
            asked in prop::collection::btree_map(0_u32..5, 1_u64..8, 0..4),
        ) {
            let mut clock = Clock::new();
            known.iter().for_each(|&(stream, tick)| clock.raise(StreamId(stream), tick));
            let latest = |stream| known.iter().filter(|entry| entry.0 == stream).map(|entry| entry.1).max().unwrap_or(0);
            let missing: Vec<_> =
                asked.iter().filter(|&(&stream, &tick)| latest(stream) < tick).map(|(&s, &k)| (StreamId(s), k)).collect();
            let stamp = Stamp::of(asked.iter().map(|(&stream, &tick)| (StreamId(stream), tick)));
            prop_assert_eq!(clock.covers(&stamp), missing.is_empty());
            prop_assert_eq!(clock.missing(&stamp).collect::<Vec<_>>(), missing);
        }
    }

    /// A frees, B takes it and frees it, C takes it from B: C waits for B alone and is after A.
    #[test]
    fn waiting_is_transitive() {
        let (a, b) = (StreamId(0), StreamId(1));
        let (mut clock_of_b, mut clock_of_c) = (Clock::new(), Clock::new());
        clock_of_b.raise(a, 7);
        clock_of_c.merge(&clock_of_b);
        clock_of_c.raise(b, 3);
        assert!(clock_of_c.covers(&Stamp::of([(a, 7), (b, 3)])));
        assert!(!clock_of_c.covers(&Stamp::One(a, 8)));
    }
}
