//! `KvCache`: a bank, a layout, and the sequences made of them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use granule_bank::{Bank, Growable, Owner, PieceId};
use granule_device::Bytes;

use crate::{Error, KvLayout, KvMemory, Sequence};

/// Makes sequences of one layout on one bank. Cheap to clone; every clone is the same cache.
#[derive(Clone, Debug)]
pub struct KvCache {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    bank: Bank,
    layout: KvLayout,
    owner: Owner,
    records: Mutex<Vec<Weak<Record>>>,
}

/// What a sequence tells its cache, so that a report can be made without stopping it.
#[derive(Debug, Default)]
pub(crate) struct Record {
    pieces: Mutex<Vec<PieceId>>,
    rows: AtomicUsize,
    reserved: Bytes,
}

impl Record {
    pub(crate) fn set_rows(&self, rows: usize) {
        self.rows.store(rows, Ordering::Relaxed);
    }

    pub(crate) fn set_pieces<'a>(&self, groups: impl Iterator<Item = &'a Growable>) {
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        pieces.clear();
        pieces.extend(groups.flat_map(Growable::pieces).map(|(id, _)| id));
    }
}

impl KvCache {
    /// A cache whose granules are the bank's, accounted to the owner "kv".
    pub fn new(bank: &Bank, layout: KvLayout) -> KvCache {
        let owner = Owner::new("kv");
        KvCache { inner: Arc::new(Inner { bank: bank.clone(), layout, owner, records: Mutex::default() }) }
    }

    /// The bank its memory comes from.
    pub fn bank(&self) -> &Bank {
        &self.inner.bank
    }

    /// How its rows are laid out.
    pub fn layout(&self) -> &KvLayout {
        &self.inner.layout
    }

    /// An empty sequence for up to `n_ctx` tokens. It sets addresses aside and holds no memory yet.
    ///
    /// # Errors
    /// [`Error::Bank`].
    pub fn sequence(&self, n_ctx: usize) -> Result<Sequence, Error> {
        Sequence::new(self, n_ctx)
    }

    /// What all sequences have together, shared granules counted once.
    pub fn memory(&self) -> KvMemory {
        let mut holders: HashMap<PieceId, usize> = HashMap::new();
        let (mut rows, mut reserved) = (0u64, Bytes::ZERO);
        for record in self.records() {
            let pieces = record.pieces.lock().unwrap_or_else(PoisonError::into_inner);
            pieces.iter().for_each(|&id| *holders.entry(id).or_default() += 1);
            rows += record.rows.load(Ordering::Relaxed) as u64;
            reserved = reserved.saturating_add(record.reserved);
        }
        let granule = self.inner.bank.granule();
        let shared = holders.values().filter(|&&count| count > 1).count();
        KvMemory {
            held: granule.saturating_mul(holders.len() as u64),
            shared: granule.saturating_mul(shared as u64),
            used: self.layout().token_bytes().saturating_mul(rows),
            reserved,
        }
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.inner.owner
    }

    pub(crate) fn register(&self, reserved: Bytes) -> Arc<Record> {
        let record = Arc::new(Record { reserved, ..Record::default() });
        let mut records = self.inner.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.retain(|record| record.strong_count() > 0);
        records.push(Arc::downgrade(&record));
        record
    }

    fn records(&self) -> Vec<Arc<Record>> {
        let records = self.inner.records.lock().unwrap_or_else(PoisonError::into_inner);
        records.iter().filter_map(Weak::upgrade).collect()
    }
}
