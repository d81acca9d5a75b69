//! `Snapshot`: which granule stands behind which place of which range, and whose it is.

use std::collections::BTreeSet;

use granule_device::Bytes;

use crate::ledger::Account;
use crate::{Bank, Owner, PieceId};

/// What a bank has handed out, and where it stands.
///
/// Each range is as it was at one moment; where others change memory meanwhile, two ranges may be of different moments.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Snapshot {
    /// The device's name.
    pub device: String,
    /// The size of a granule.
    pub granule: Bytes,
    /// The ranges, in the order in which they were made.
    pub ranges: Vec<RangeMap>,
    /// Places that are out of use and stay mapped until device work is done. Their range may be gone.
    pub retiring: Vec<Retiring>,
    /// Granules that nobody holds.
    pub cached: u64,
    /// What owners hold that is no granules.
    pub charged: Bytes,
}

/// One range of addresses and what stands behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct RangeMap {
    /// What [`Range::id`](crate::Range::id) says, and recordings call it.
    pub range: u32,
    /// Whose it is.
    pub owner: Owner,
    /// Its first address.
    pub base: u64,
    /// How many places it has.
    pub places: usize,
    /// What stands behind those of them that have memory, by place.
    pub behind: Vec<Behind>,
}

/// What stands behind one place.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Behind {
    /// The place.
    pub place: usize,
    /// Which granule.
    pub granule: PieceId,
    /// Whom it counts for: who took it first. Where it is shared that may be another than the range's.
    pub owner: Owner,
    /// Whether somebody else has it too.
    pub shared: bool,
}

/// A place that waits for device work.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Retiring {
    /// The range it is of.
    pub range: u32,
    /// What stands there.
    pub behind: Behind,
}

impl Snapshot {
    /// How many granules stand behind ranges or wait for device work, each counted once.
    pub fn granules(&self) -> usize {
        let mapped = self.ranges.iter().flat_map(|range| &range.behind).map(|behind| behind.granule);
        let waiting = self.retiring.iter().map(|retiring| retiring.behind.granule);
        mapped.chain(waiting).collect::<BTreeSet<_>>().len()
    }

    /// The bytes of distinct granules of this owner, charges not among them.
    pub fn held_by(&self, owner: &Owner) -> Bytes {
        let behind = self.ranges.iter().flat_map(|range| &range.behind);
        let behind = behind.chain(self.retiring.iter().map(|retiring| &retiring.behind));
        let ours = behind.filter(|behind| behind.owner == *owner).map(|behind| behind.granule);
        self.granule.saturating_mul(ours.collect::<BTreeSet<_>>().len() as u64)
    }
}

impl Bank {
    /// Which granule stands behind which place of which range now, and whose it is.
    ///
    /// ```
    /// # use granule_bank::*; use granule_device::*;
    /// # let device = Device::host_with(HostOptions::new().granule(Bytes::kib(16)).capacity(Bytes::mib(1)))?;
    /// # let bank = Bank::new(device, BankOptions::new())?;
    /// let mut parent = bank.growable(&Owner::new("kv"), Bytes::kib(64))?;
    /// parent.grow_to(Bytes::kib(40))?;
    /// let fork = parent.alias(Bytes::kib(32))?;
    /// let snapshot = bank.snapshot();
    /// assert_eq!(snapshot.granules(), 3); // and 5 places
    /// assert!(snapshot.ranges[1].behind.iter().all(|behind| behind.shared));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn snapshot(&self) -> Snapshot {
        let inner = self.inner();
        let places = inner.ranges.all();
        // Names are looked up after the places have been let go of: no lock is taken under another.
        let seen: Vec<_> =
            places.iter().map(|places| (places, places.len(), places.each(Seen::of))).collect();
        let waiting = self.retiring().each(|range, place, piece| (range, Seen::of(place, piece)));
        let books = inner.books();
        let named = |seen: Seen| Behind {
            place: seen.place,
            granule: seen.granule,
            owner: books.ledger.owner(seen.account).cloned().unwrap_or_else(|| Owner::new("")),
            shared: seen.shared,
        };
        let ranges = seen.into_iter().map(|(range, places, behind)| RangeMap {
            range: range.id.0,
            owner: range.owner.clone(),
            base: range.base.addr(),
            places,
            behind: behind.into_iter().map(named).collect(),
        });
        let retiring =
            waiting.into_iter().map(|(range, seen)| Retiring { range: range.0, behind: named(seen) });
        Snapshot {
            device: inner.device.name().to_owned(),
            granule: inner.granule(),
            ranges: ranges.collect(),
            retiring: retiring.collect(),
            cached: books.cache.len() as u64,
            charged: books.ledger.charged(),
        }
    }
}

/// What a place shows of its piece.
struct Seen {
    place: usize,
    granule: PieceId,
    account: Account,
    shared: bool,
}

impl Seen {
    fn of(place: usize, piece: &crate::piece::Piece) -> Seen {
        Seen { place, granule: piece.id(), account: piece.account(), shared: piece.is_shared() }
    }
}
