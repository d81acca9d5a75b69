//! Vector clocks: which operation is certain to run before which, whatever the schedule.

use std::collections::BTreeMap;

/// A line of operations that run one after the other: a stream, or a chain inside a graph.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Lane(pub(crate) u64);

/// For each lane, the number of its operations that are known to be done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Clock(BTreeMap<Lane, u64>);

impl Clock {
    /// Knows what either knew.
    pub(crate) fn join(&mut self, other: &Clock) {
        for (&lane, &tick) in &other.0 {
            let mine = self.0.entry(lane).or_default();
            *mine = tick.max(*mine);
        }
    }

    /// Adds one operation of `lane` and returns its number.
    pub(crate) fn advance(&mut self, lane: Lane) -> u64 {
        let tick = self.0.entry(lane).or_default();
        *tick += 1;
        *tick
    }

    /// How many operations of `lane` are known to be done.
    pub(crate) fn tick(&self, lane: Lane) -> u64 {
        self.0.get(&lane).copied().unwrap_or(0)
    }

    /// Whether everything that `other` knows is known here.
    pub(crate) fn covers_all(&self, other: &Clock) -> bool {
        other.0.iter().all(|(&lane, &tick)| self.covers(lane, tick))
    }

    /// Whether operation number `tick` of `lane` is certain to be done.
    pub(crate) fn covers(&self, lane: Lane, tick: u64) -> bool {
        self.0.get(&lane).is_some_and(|&known| known >= tick)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_passes_through_a_third() {
        let (a, b, c) = (Lane(1), Lane(2), Lane(3));
        let mut first = Clock::default();
        let tick = first.advance(a);
        let mut second = Clock::default();
        second.advance(b);
        assert!(!second.covers(a, tick));
        second.join(&first);
        let mut third = Clock::default();
        third.advance(c);
        third.join(&second);
        assert!(third.covers(a, tick) && third.covers(b, 1) && !third.covers(a, tick + 1));
    }
}
