//! A granule that somebody holds: where it stands, and how much of it is in use. Near-constant time, behind however many places.

use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct Granule {
    /// Whose it is, where the recording saw it taken.
    pub(super) account: Option<usize>,
    /// Placements that it is live in, and how much of it is within the length of a growable there.
    placements: BTreeMap<usize, u64>,
    /// How many placements have so much of it, zero left out.
    fills: BTreeMap<u64, usize>,
    /// How much of it the account's use counts.
    counted: u64,
}

/// How much more and less of what an account holds is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) account: usize,
    pub(super) more: u64,
    pub(super) less: u64,
}

impl Granule {
    /// It stands in a placement, where so much of it is within the length.
    pub(super) fn fill(&mut self, placement: usize, bytes: u64) -> Option<Change> {
        let before = self.placements.insert(placement, bytes).unwrap_or(0);
        if bytes != before {
            self.forget(before);
            if bytes > 0 {
                *self.fills.entry(bytes).or_default() += 1;
            }
        }
        self.change()
    }

    /// It does not stand there any more.
    pub(super) fn leave(&mut self, placement: usize) -> Option<Change> {
        let before = self.placements.remove(&placement).unwrap_or(0);
        self.forget(before);
        self.change()
    }

    fn forget(&mut self, bytes: u64) {
        if let Some(count) = self.fills.get_mut(&bytes) {
            *count -= 1;
            if *count == 0 {
                self.fills.remove(&bytes);
            }
        }
    }

    /// Where it stands behind several places, the fullest counts.
    fn change(&mut self) -> Option<Change> {
        // What was taken before the recording began is nobody's here.
        let account = self.account?;
        let now = self.fills.last_key_value().map_or(0, |(bytes, _)| *bytes);
        let before = std::mem::replace(&mut self.counted, now);
        (now != before).then(|| Change {
            account,
            more: now.saturating_sub(before),
            less: before.saturating_sub(now),
        })
    }

    /// It is given back: where it stood, and how much of it was in use.
    pub(super) fn given(self) -> (impl Iterator<Item = usize>, u64) {
        (self.placements.into_keys(), self.counted)
    }
}
