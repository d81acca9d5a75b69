//! `Runs`: a set of places, kept as the runs it consists of, so that a question about any range costs one look-up.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of numbers as disjoint runs that do not touch: start to end. Questions cost a logarithm of how many runs there are;
/// changes that, and the runs that they swallow.
#[derive(Debug, Default)]
pub(super) struct Runs(BTreeMap<usize, usize>);

impl Runs {
    pub(super) fn insert(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let mut joined = range;
        // From the last one that begins at or before the end, down to the first one that reaches the start.
        while let Some((&start, &end)) = self.0.range(..=joined.end).next_back() {
            if end < joined.start {
                break;
            }
            self.0.remove(&start);
            joined = joined.start.min(start)..joined.end.max(end);
        }
        self.0.insert(joined.start, joined.end);
    }

    pub(super) fn remove(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        while let Some((&start, &end)) = self.0.range(..range.end).next_back() {
            if end <= range.start {
                break;
            }
            self.0.remove(&start);
            if end > range.end {
                self.0.insert(range.end, end);
            }
            if start < range.start {
                self.0.insert(start, range.start);
                break;
            }
        }
    }

    /// The runs, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.0.iter().map(|(&start, &end)| start..end)
    }

    /// The first number of the range that is not in the set.
    pub(super) fn first_outside(&self, range: Range<usize>) -> Option<usize> {
        if range.is_empty() {
            return None;
        }
        let run = self.0.range(..=range.start).next_back();
        let reached = run.map_or(range.start, |(_, &end)| end.max(range.start));
        (reached < range.end).then_some(reached)
    }

    /// The first number of the range that is in the set.
    pub(super) fn first_inside(&self, range: Range<usize>) -> Option<usize> {
        if range.is_empty() {
            return None;
        }
        let before = self.0.range(..=range.start).next_back();
        if before.is_some_and(|(_, &end)| end > range.start) {
            return Some(range.start);
        }
        self.0.range(range).next().map(|(&start, _)| start)
    }

    /// Whether a number of the range is in the set.
    pub(super) fn meets(&self, range: Range<usize>) -> bool {
        !range.is_empty() && self.0.range(..range.end).next_back().is_some_and(|(_, &end)| end > range.start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEN: usize = 24;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 1 } else { 256 }))]
        #[test]
        fn like_a_list_of_flags(ops in proptest::collection::vec((any::<bool>(), 0..LEN, 0..LEN), 1..40)) {
            let mut runs = Runs::default();
            let mut flags = [false; LEN];
            for (put, a, b) in ops {
                let range = a.min(b)..a.max(b);
                if put { runs.insert(range.clone()) } else { runs.remove(range.clone()) }
                flags[range].fill(put);
                let mut expected: Vec<(usize, usize)> = Vec::new();
                for (index, _) in flags.iter().enumerate().filter(|(_, flag)| **flag) {
                    match expected.last_mut() {
                        Some((_, end)) if *end == index => *end += 1,
                        _ => expected.push((index, index + 1)),
                    }
                }
                prop_assert_eq!(runs.iter().map(|run| (run.start, run.end)).collect::<Vec<_>>(), expected);
                for start in 0..LEN {
                    for end in start..=LEN {
                        let outside = (start..end).find(|&index| !flags[index]);
                        prop_assert_eq!(runs.first_outside(start..end), outside);
                        let inside = (start..end).find(|&index| flags[index]);
                        prop_assert_eq!(runs.first_inside(start..end), inside);
                        prop_assert_eq!(runs.meets(start..end), flags[start..end].contains(&true));
                    }
                }
            }
        }
    }
}
