//! A granule that a bank has handed out: it returns to the bank when the last holder lets go.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use granule_device::Granule;

use crate::bank::{Inner, Tag};
use crate::ledger::Account;

/// Tells one handed-out granule from every other of this process, also where it stands behind several ranges. For reports
/// that count a shared granule once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct PieceId(NonZeroU64);

impl PieceId {
    /// The number that recordings know it by.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    fn next() -> PieceId {
        static LAST: AtomicU64 = AtomicU64::new(0);
        // It takes centuries to come round.
        PieceId(NonZeroU64::MIN.saturating_add(LAST.fetch_add(1, Ordering::Relaxed)))
    }
}

/// One handed-out granule. Whoever maps it holds it; the last holder has unmapped it before letting go.
#[derive(Clone, Debug)]
pub(crate) struct Piece(Arc<Held>);

#[derive(Debug)]
struct Held {
    bank: Arc<Inner>,
    tag: Tag,
    granule: Granule,
    id: PieceId,
}

impl Piece {
    pub(crate) fn new(bank: Arc<Inner>, tag: Tag, granule: Granule) -> Piece {
        Piece(Arc::new(Held { bank, tag, granule, id: PieceId::next() }))
    }

    pub(crate) fn granule(&self) -> &Granule {
        &self.0.granule
    }

    pub(crate) fn id(&self) -> PieceId {
        self.0.id
    }

    /// Whom it counts for.
    pub(crate) fn account(&self) -> Account {
        self.0.tag.account
    }

    pub(crate) fn is_of(&self, bank: &Arc<Inner>) -> bool {
        Arc::ptr_eq(&self.0.bank, bank)
    }

    /// True where somebody else holds it too.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.bank.give_back(self.tag, self.id, self.granule.clone());
    }
}

/// A granule behind a range, to be put behind another one too, read only in both; see [`Range::share`](crate::Range::share).
/// Holding it holds the granule.
#[derive(Clone, Debug)]
pub struct Shared(pub(crate) Piece);

impl Shared {
    /// Which granule it is.
    pub fn id(&self) -> PieceId {
        self.0.id()
    }
}
