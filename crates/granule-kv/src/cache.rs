//! `KvCache`: a bank, a layout, and the sequences made of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use granule_bank::{Bank, Owner, PieceId, ReclaimGuard};
use granule_device::Bytes;

use crate::idle::Idle;
use crate::mapper::Mapper;
use crate::stats::Counts;
use crate::{Error, KvLayout, KvMemory, KvOptions, KvStats, Sequence};

/// Makes sequences of one layout on one bank. Cheap to clone; every clone is the same cache.
#[derive(Clone, Debug)]
pub struct KvCache {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    // Ends before what it maps goes.
    mapper: Option<Mapper>,
    _reclaimer: ReclaimGuard,
    idle: Arc<Idle>,
    counts: Arc<Counts>,
    layout: KvLayout,
    options: KvOptions,
    owner: Owner,
    bank: Bank,
}

impl KvCache {
    /// A cache whose granules are the bank's, accounted to the owner "kv".
    ///
    /// # Errors
    /// [`Error::Bank`] where the thread that maps ahead cannot be started.
    pub fn new(bank: &Bank, layout: KvLayout, options: KvOptions) -> Result<KvCache, Error> {
        let (owner, counts) = (Owner::new("kv"), Arc::<Counts>::default());
        let idle = Idle::new(&owner, bank.granule(), options.parked);
        let mapper = if options.ahead > 0 { Some(Mapper::start(&counts)?) } else { None };
        let inner = Inner {
            mapper,
            _reclaimer: bank.add_reclaimer(&idle),
            idle,
            counts,
            layout,
            options,
            owner,
            bank: bank.clone(),
        };
        Ok(KvCache { inner: Arc::new(inner) })
    }

    /// The bank its memory comes from.
    pub fn bank(&self) -> &Bank {
        &self.inner.bank
    }

    /// How its rows are laid out.
    pub fn layout(&self) -> &KvLayout {
        &self.inner.layout
    }

    /// How it deals with memory that no token lies in.
    pub fn options(&self) -> KvOptions {
        self.inner.options
    }

    /// An empty sequence for up to `n_ctx` tokens. It sets addresses aside and holds no memory yet, unless a sequence that is
    /// gone has left some: then it starts with that, as far as nobody else needs it.
    ///
    /// # Errors
    /// [`Error::Bank`].
    pub fn sequence(&self, n_ctx: usize) -> Result<Sequence, Error> {
        Sequence::new(self, n_ctx)
    }

    /// What all sequences have together, shared granules counted once, and what is parked.
    pub fn memory(&self) -> KvMemory {
        // Of each granule, how many sequences have it. One that is spare may be taken back between the two looks.
        let mut holders: HashMap<PieceId, usize> = HashMap::new();
        let mut ranges = HashSet::new();
        let (mut rows, mut reserved, mut spare) = (0u64, Bytes::ZERO, self.idle().parked());
        let granule = self.inner.bank.granule();
        for record in self.idle().records() {
            let pieces = record.spare().pieces();
            spare = spare.saturating_add(granule.saturating_mul(pieces.len() as u64));
            holders.extend(pieces.into_iter().map(|id| (id, 0)));
            ranges.extend(record.ranges.iter().copied());
            rows += record.rows() as u64;
            reserved = reserved.saturating_add(record.reserved);
        }
        let snapshot = self.bank().snapshot();
        for range in snapshot.ranges.iter().filter(|range| ranges.contains(&range.range)) {
            range.behind.iter().for_each(|behind| *holders.entry(behind.granule).or_default() += 1);
        }
        let shared = holders.values().filter(|&&count| count > 1).count();
        KvMemory {
            held: granule.saturating_mul(holders.len() as u64).saturating_add(self.idle().parked()),
            shared: granule.saturating_mul(shared as u64),
            spare,
            used: self.layout().token_bytes().saturating_mul(rows),
            reserved,
        }
    }

    /// What has happened so far.
    pub fn stats(&self) -> KvStats {
        self.inner.counts.stats(self.idle().parked())
    }

    /// Gives back what is parked; answers how much that was.
    pub fn trim(&self) -> Bytes {
        self.inner.bank.granule().saturating_mul(self.idle().parking().empty() as u64)
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.inner.owner
    }

    pub(crate) fn mapper(&self) -> Option<&Mapper> {
        self.inner.mapper.as_ref()
    }

    pub(crate) fn idle(&self) -> &Idle {
        &self.inner.idle
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.inner.counts
    }
}
