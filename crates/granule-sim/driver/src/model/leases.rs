//! Suballocations that the program announced: where one is in force, bytes outside every lease are out of bounds.

use super::call::Call;
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Clone, Copy, Debug)]
struct Lease {
    len: u64,
    made: Call,
}

/// The leases inside one allocation or reservation.
#[derive(Clone, Debug)]
struct Ground {
    len: u64,
    leases: BTreeMap<u64, Lease>,
}

/// Why a lease was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Refused {
    Empty,
    Overlaps(Call),
    LeavesItsAllocation,
}

/// All leases, by the allocation around them. Cloning is cheap: a launch keeps the leases that were in force when it was
/// issued.
#[derive(Clone, Debug, Default)]
pub(crate) struct Leases(Arc<BTreeMap<u64, Ground>>);

impl Leases {
    /// A lease of `len` bytes at `start` inside the allocation `ground` of `ground_len` bytes.
    pub(crate) fn add(
        &mut self,
        (ground, ground_len): (u64, u64),
        start: u64,
        len: u64,
        made: Call,
    ) -> Result<(), Refused> {
        let end = start.checked_add(len).filter(|_| len > 0).ok_or(Refused::Empty)?;
        if start < ground || end > ground.saturating_add(ground_len) {
            return Err(Refused::LeavesItsAllocation);
        }
        let grounds = Arc::make_mut(&mut self.0);
        let around =
            grounds.entry(ground).or_insert_with(|| Ground { len: ground_len, leases: BTreeMap::new() });
        if let Some((&other, lease)) = around.leases.range(..end).next_back()
            && other + lease.len > start
        {
            return Err(Refused::Overlaps(lease.made));
        }
        around.leases.insert(start, Lease { len, made });
        Ok(())
    }

    /// The lease at `start` is over. Its length; `None` where there is none.
    pub(crate) fn remove(&mut self, start: u64) -> Option<u64> {
        let grounds = Arc::make_mut(&mut self.0);
        let (_, around) = grounds.range_mut(..=start).next_back()?;
        around.leases.remove(&start).map(|lease| lease.len)
    }

    /// The allocation is gone, and its leases with it. What was still leased: start, length and call of each.
    pub(crate) fn forget(&mut self, ground: u64) -> Vec<(u64, u64, Call)> {
        if !self.0.contains_key(&ground) {
            return Vec::new();
        }
        let gone = Arc::make_mut(&mut self.0).remove(&ground);
        gone.map_or_else(Vec::new, |g| g.leases.iter().map(|(&at, l)| (at, l.len, l.made)).collect())
    }

    /// `None` where the access is fine: inside one lease, or where no lease was ever announced around it. Otherwise the
    /// sentence that says which lease is next to it.
    pub(crate) fn trespass(&self, start: u64, len: u64) -> Option<String> {
        if self.0.is_empty() || len == 0 {
            return None;
        }
        let (&ground, around) = self.0.range(..=start).next_back()?;
        if start >= ground + around.len {
            return None;
        }
        match around.leases.range(..=start).next_back() {
            Some((&at, lease)) if start + len <= at + lease.len => None,
            Some((&at, lease)) => Some(format!(
                "{} bytes past the end of the lease at {at:#x} ({} bytes, {})",
                start + len - (at + lease.len),
                lease.len,
                lease.made
            )),
            None => Some("in no lease".into()),
        }
    }

    /// Every lease: start, length and the call that announced it.
    pub(crate) fn all(&self) -> impl Iterator<Item = (u64, u64, Call)> {
        self.0.values().flat_map(|g| g.leases.iter().map(|(&at, l)| (at, l.len, l.made)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADE: Call = Call { number: 3, name: "granule_sim_lease" };

    #[test]
    fn outside_every_lease_is_trespass_once_there_was_one() {
        let mut leases = Leases::default();
        let ground = (1000, 1000);
        assert_eq!(leases.trespass(1500, 8), None);
        leases.add(ground, 1100, 100, MADE).unwrap();
        let before = leases.clone();
        leases.add(ground, 1200, 50, MADE).unwrap();
        assert_eq!(leases.trespass(1100, 100), None);
        assert_eq!(leases.trespass(1200, 50), None);
        assert!(leases.trespass(1196, 8).is_some_and(|t| t.starts_with("4 bytes past the end")));
        assert_eq!(leases.trespass(1000, 8).as_deref(), Some("in no lease"));
        assert_eq!(leases.trespass(2000, 8), None, "another allocation");
        assert_eq!(leases.remove(1200), Some(50));
        assert_eq!(leases.remove(1200), None);
        assert!(leases.trespass(1200, 4).is_some());
        assert!(before.trespass(1200, 4).is_some());
        assert_eq!(leases.remove(1100), Some(100));
        assert!(leases.trespass(1100, 4).is_some(), "poison stays when the last lease ends");
        assert!(leases.forget(1000).is_empty());
        assert_eq!(leases.trespass(1100, 4), None);
    }

    #[test]
    fn leases_stay_apart_and_inside() {
        let mut leases = Leases::default();
        let ground = (1000, 1000);
        leases.add(ground, 1100, 100, MADE).unwrap();
        assert_eq!(leases.add(ground, 1199, 10, MADE), Err(Refused::Overlaps(MADE)));
        assert_eq!(leases.add(ground, 1050, 51, MADE), Err(Refused::Overlaps(MADE)));
        assert_eq!(leases.add(ground, 1950, 51, MADE), Err(Refused::LeavesItsAllocation));
        assert_eq!(leases.add(ground, 1500, 0, MADE), Err(Refused::Empty));
        leases.add(ground, 1200, 800, MADE).unwrap();
    }
}
