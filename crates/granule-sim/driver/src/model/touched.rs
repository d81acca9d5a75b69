//! A set of addresses, kept as runs.

use std::collections::BTreeMap;

/// Addresses as runs that do not meet: start and end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Touched(BTreeMap<u64, u64>);

impl Touched {
    /// Beyond this many runs new ones are left out: a check with holes instead of one without end.
    const MOST: usize = 1 << 16;

    pub(crate) fn add(&mut self, at: u64, len: u64) {
        let (mut start, mut end) = (at, at + len);
        if let Some((&before, &stop)) = self.0.range(..=start).next_back()
            && stop >= start
        {
            if stop >= end {
                return;
            }
            self.0.remove(&before);
            start = before;
        }
        while let Some((&next, &stop)) = self.0.range(start..=end).next() {
            self.0.remove(&next);
            end = end.max(stop);
        }
        if self.0.len() < Self::MOST {
            self.0.insert(start, end);
        }
    }

    /// Start and length of each run, in order.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().map(|(&start, &end)| (start, end - start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::random::Random;
    use std::collections::BTreeSet;

    #[test]
    fn equals_a_set_of_bytes() {
        let mut random = Random::new(5);
        let mut touched = Touched::default();
        let mut naive = BTreeSet::new();
        for _ in 0..300 {
            let (at, len) = (random.below(500) as u64, 1 + random.below(9) as u64);
            touched.add(at, len);
            naive.extend(at..at + len);
        }
        let flat: Vec<u64> = touched.runs().flat_map(|(at, len)| at..at + len).collect();
        assert!(flat.iter().eq(naive.iter()));
        let runs: Vec<_> = touched.runs().collect();
        assert!(runs.windows(2).all(|w| w[0].0 + w[0].1 < w[1].0), "runs that meet are one");
    }
}
