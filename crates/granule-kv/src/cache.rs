//! `KvCache`: a bank, a layout, and the sequences made of them.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use granule_bank::{Bank, Owner, PieceId, Range, ReclaimGuard};
use granule_device::Bytes;

use crate::mapper::{Job, Mapper};
use crate::parking::Parking;
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
    parking: Arc<Parking>,
    counts: Arc<Counts>,
    layout: KvLayout,
    options: KvOptions,
    owner: Owner,
    records: Mutex<Vec<Weak<Record>>>,
    bank: Bank,
}

/// What a sequence tells its cache, so that a report can be made without stopping it.
#[derive(Debug)]
pub(crate) struct Record {
    /// What snapshots of the bank call its ranges.
    ranges: Vec<u32>,
    reserved: Bytes,
    rows: AtomicUsize,
    /// What is being mapped for it.
    job: Mutex<Option<Arc<Job>>>,
}

impl Record {
    pub(crate) fn set_rows(&self, rows: usize) {
        self.rows.store(rows, Ordering::Relaxed);
    }

    pub(crate) fn set_job(&self, job: Option<Arc<Job>>) {
        *self.job.lock().unwrap_or_else(PoisonError::into_inner) = job;
    }

    fn job(&self) -> Option<Arc<Job>> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl KvCache {
    /// A cache whose granules are the bank's, accounted to the owner "kv".
    ///
    /// # Errors
    /// [`Error::Bank`] where the thread that maps ahead cannot be started.
    pub fn new(bank: &Bank, layout: KvLayout, options: KvOptions) -> Result<KvCache, Error> {
        let (owner, counts) = (Owner::new("kv"), Arc::<Counts>::default());
        let parking = Parking::new(&owner, bank.granule(), options.parked);
        let mapper = if options.ahead > 0 { Some(Mapper::start(&counts)?) } else { None };
        let inner = Inner {
            mapper,
            _reclaimer: bank.add_reclaimer(&parking),
            parking,
            counts,
            layout,
            options,
            owner,
            records: Mutex::default(),
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
    /// gone has left some: then it starts with that.
    ///
    /// # Errors
    /// [`Error::Bank`].
    pub fn sequence(&self, n_ctx: usize) -> Result<Sequence, Error> {
        Sequence::new(self, n_ctx)
    }

    /// What all sequences have together, shared granules counted once, and what is parked.
    pub fn memory(&self) -> KvMemory {
        // Of each granule, how many sequences have it. One that is being mapped may be taken back between the two looks.
        let mut holders: HashMap<PieceId, usize> = HashMap::new();
        let mut ranges = HashSet::new();
        let (mut rows, mut reserved) = (0u64, Bytes::ZERO);
        for record in self.records() {
            let job = record.job().map(|job| job.pieces()).unwrap_or_default();
            holders.extend(job.into_iter().map(|id| (id, 0)));
            ranges.extend(record.ranges.iter().copied());
            rows += record.rows.load(Ordering::Relaxed) as u64;
            reserved = reserved.saturating_add(record.reserved);
        }
        let snapshot = self.bank().snapshot();
        for range in snapshot.ranges.iter().filter(|range| ranges.contains(&range.range)) {
            range.behind.iter().for_each(|behind| *holders.entry(behind.granule).or_default() += 1);
        }
        let granule = self.inner.bank.granule();
        let shared = holders.values().filter(|&&count| count > 1).count();
        KvMemory {
            held: granule.saturating_mul(holders.len() as u64).saturating_add(self.parking().parked()),
            shared: granule.saturating_mul(shared as u64),
            used: self.layout().token_bytes().saturating_mul(rows),
            reserved,
        }
    }

    /// What has happened so far.
    pub fn stats(&self) -> KvStats {
        self.inner.counts.stats(self.parking().parked())
    }

    /// Gives back what is parked; answers how much that was.
    pub fn trim(&self) -> Bytes {
        self.parking().empty()
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.inner.owner
    }

    pub(crate) fn mapper(&self) -> Option<&Mapper> {
        self.inner.mapper.as_ref()
    }

    pub(crate) fn parking(&self) -> &Parking {
        &self.inner.parking
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.inner.counts
    }

    pub(crate) fn register(&self, ranges: &[Range]) -> Arc<Record> {
        let reserved = ranges.iter().map(Range::reserved).fold(Bytes::ZERO, Bytes::saturating_add);
        let ranges = ranges.iter().map(|range| range.id().0).collect();
        let record = Record { ranges, reserved, rows: AtomicUsize::new(0), job: Mutex::default() };
        let record = Arc::new(record);
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
