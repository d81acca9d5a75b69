//! A granule that a bank has handed out: it returns to the bank when the last holder lets go.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use granule_device::Granule;

use crate::bank::Inner;
use crate::ledger::Account;

/// Tells one handed-out granule from every other of this process, also where it stands behind several ranges. For reports
/// that count a shared granule once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PieceId(u64);

/// One handed-out granule. Whoever maps it holds it; the last holder has unmapped it before letting go.
#[derive(Clone, Debug)]
pub(crate) struct Piece(Arc<Held>);

#[derive(Debug)]
struct Held {
    bank: Arc<Inner>,
    account: Account,
    granule: Granule,
    id: PieceId,
}

impl Piece {
    pub(crate) fn new(bank: Arc<Inner>, account: Account, granule: Granule) -> Piece {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let id = PieceId(NEXT.fetch_add(1, Ordering::Relaxed));
        Piece(Arc::new(Held { bank, account, granule, id }))
    }

    pub(crate) fn granule(&self) -> &Granule {
        &self.0.granule
    }

    pub(crate) fn id(&self) -> PieceId {
        self.0.id
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
        self.bank.give_back(self.account, self.granule.clone());
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
