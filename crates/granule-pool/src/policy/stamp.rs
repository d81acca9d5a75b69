//! `Stamp`: what of the device's work may still use a free block.

/// A stream, as the policy knows it. Two heaps of one stream have one id; an id is not used again in its pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

/// A moment of a stream: it counts the events that were recorded on it. The first is 1, so that 0 is before all work.
pub type Tick = u64;

/// Up to which tick of which streams a free block may still be in use. Streams ascend, each at most once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stamp {
    /// All that used it has completed, or nothing ever did.
    #[default]
    Idle,
    /// One stream's work up to a tick.
    One(StreamId, Tick),
    /// The work of two or more streams: rare, and in one word, so that a stamp is no larger for it.
    Many(Box<Vec<(StreamId, Tick)>>),
}

impl Stamp {
    /// The stamp of all of these, in any order; of a stream that is there twice, the later tick.
    pub fn of(streams: impl IntoIterator<Item = (StreamId, Tick)>) -> Stamp {
        let mut entries: Vec<(StreamId, Tick)> = streams.into_iter().collect();
        entries.sort_unstable_by_key(|&(stream, tick)| (stream, std::cmp::Reverse(tick)));
        entries.dedup_by_key(|&mut (stream, _)| stream);
        match entries[..] {
            [] => Stamp::Idle,
            [(stream, tick)] => Stamp::One(stream, tick),
            _ => Stamp::Many(Box::new(entries)),
        }
    }

    /// True where nothing needs to be waited for.
    pub fn is_idle(&self) -> bool {
        matches!(self, Stamp::Idle)
    }

    /// The streams with their ticks, by stream.
    pub fn iter(&self) -> impl Iterator<Item = (StreamId, Tick)> + Clone + '_ {
        let (one, many) = match self {
            Stamp::Idle => (None, &[][..]),
            &Stamp::One(stream, tick) => (Some((stream, tick)), &[][..]),
            Stamp::Many(entries) => (None, &entries[..]),
        };
        one.into_iter().chain(many.iter().copied())
    }

    /// Makes this the stamp of a block that both stamps are about: of each stream the later tick.
    pub fn merge(&mut self, other: &Stamp) {
        match (&mut *self, other) {
            (Stamp::Idle, _) => self.clone_from(other),
            (Stamp::One(mine, tick), Stamp::One(theirs, later)) if mine == theirs => {
                *tick = (*tick).max(*later)
            }
            // The stamps of neighbours often say the same, and then nothing is allocated.
            (mine, theirs) if mine.says(theirs) => {}
            (mine, theirs) => *mine = Stamp::of(mine.iter().chain(theirs.iter())),
        }
    }

    /// True where whoever waits for this has waited for `other` too.
    fn says(&self, other: &Stamp) -> bool {
        other.iter().all(|(stream, tick)| self.iter().any(|(own, later)| own == stream && later >= tick))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn entries() -> impl Strategy<Value = Vec<(u32, Tick)>> {
        prop::collection::vec((0_u32..4, 1_u64..6), 0..5)
    }

    fn stamp(entries: &[(u32, Tick)]) -> Stamp {
        Stamp::of(entries.iter().map(|&(stream, tick)| (StreamId(stream), tick)))
    }

    /// Of each stream the latest tick, by a map.
    fn latest(entries: impl IntoIterator<Item = (u32, Tick)>) -> Vec<(StreamId, Tick)> {
        let mut map = BTreeMap::new();
        for (stream, tick) in entries {
            let latest = map.entry(StreamId(stream)).or_insert(tick);
            *latest = tick.max(*latest);
        }
        map.into_iter().collect()
    }

    proptest! {
        #![proptest_config(crate::policy::few_under_miri(256))]

        #[test]
        fn a_stamp_says_the_latest_tick_of_each_stream(a in entries(), b in entries()) {
            let mut merged = stamp(&a);
            prop_assert_eq!(merged.iter().collect::<Vec<_>>(), latest(a.iter().copied()));
            merged.merge(&stamp(&b));
            prop_assert_eq!(merged.iter().collect::<Vec<_>>(), latest(a.iter().chain(&b).copied()));
            prop_assert_eq!(&merged, &stamp(&[&a[..], &b[..]].concat()));
            prop_assert_eq!(merged.is_idle(), a.is_empty() && b.is_empty());
        }
    }
}
