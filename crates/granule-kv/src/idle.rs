//! `Idle`: all memory of a cache that no token lies in, and how it goes to whoever needs it.
//!
//! One reclaimer of the bank for what is parked, for what was mapped ahead and for what tokens left behind: mapping it again is all that
//! is lost.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use granule_bank::{Offer, Owner, Range, Reclaim};
use granule_device::Bytes;

use crate::mapper::is_mapper;
use crate::parking::Parking;
use crate::spare::Spare;

/// What a sequence tells its cache, so that a report can be made without stopping it.
#[derive(Debug)]
pub(crate) struct Record {
    /// What snapshots of the bank call its ranges.
    pub(crate) ranges: Vec<u32>,
    pub(crate) reserved: Bytes,
    rows: AtomicUsize,
    spare: Arc<Spare>,
}

impl Record {
    pub(crate) fn set_rows(&self, rows: usize) {
        self.rows.store(rows, Ordering::Relaxed);
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows.load(Ordering::Relaxed)
    }

    /// What it has that no token lies in.
    pub(crate) fn spare(&self) -> &Arc<Spare> {
        &self.spare
    }
}

/// What is parked, and the sequences that are there.
#[derive(Debug)]
pub(crate) struct Idle {
    owner: Owner,
    granule: Bytes,
    parking: Parking,
    records: Mutex<Vec<Weak<Record>>>,
    /// Held by the thread that gives memory back, until it is the bank's: who asks meanwhile waits for that, and is not told that
    /// there is nothing.
    giving: Mutex<()>,
    /// Granules that are being given back.
    leaving: AtomicUsize,
}

impl Idle {
    pub(crate) fn new(owner: &Owner, granule: Bytes, parked: Bytes) -> Arc<Idle> {
        Arc::new(Idle {
            owner: owner.clone(),
            granule,
            parking: Parking::new(granule, parked),
            records: Mutex::default(),
            giving: Mutex::default(),
            leaving: AtomicUsize::new(0),
        })
    }

    pub(crate) fn parking(&self) -> &Parking {
        &self.parking
    }

    /// How much is parked.
    pub(crate) fn parked(&self) -> Bytes {
        self.size(self.parking.granules())
    }

    /// Takes note of a sequence with these ranges, for as long as somebody has the answer.
    pub(crate) fn register(&self, ranges: &[Range]) -> Arc<Record> {
        let reserved = ranges.iter().map(Range::reserved).fold(Bytes::ZERO, Bytes::saturating_add);
        let ranges = ranges.iter().map(|range| range.id().0).collect();
        let record = Record { ranges, reserved, rows: AtomicUsize::new(0), spare: Arc::default() };
        let record = Arc::new(record);
        let mut records = self.lock();
        records.retain(|record| record.strong_count() > 0);
        records.push(Arc::downgrade(&record));
        record
    }

    /// The sequences that are there.
    pub(crate) fn records(&self) -> Vec<Arc<Record>> {
        self.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Waits until what others are giving back at this moment is the bank's.
    pub(crate) fn await_giving(&self) {
        drop(self.giving.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn size(&self, granules: usize) -> Bytes {
        self.granule.saturating_mul(granules as u64)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Record>>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reclaim for Idle {
    fn owner(&self) -> Owner {
        self.owner.clone()
    }

    fn could_give(&self) -> Vec<Offer> {
        let mut granules = self.parking.granules();
        if !is_mapper() {
            granules += self.records().iter().map(|record| record.spare.granules()).sum::<usize>();
        }
        // Looked at last: what left the others until now is in here.
        granules += self.leaving.load(Ordering::Acquire);
        vec![Offer::new(self.size(granules), 0)]
    }

    fn reclaim(&self, want: Bytes) -> Bytes {
        // Nobody asks the bank with one of these locks held, so they can be waited for.
        let _giving = self.giving.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = want.pieces_of(self.granule).unwrap_or(usize::MAX);
        let sets = self.parking.give(wanted, &self.leaving);
        drop(sets);
        if !is_mapper() {
            for record in self.records() {
                if self.leaving.load(Ordering::Acquire) >= wanted {
                    break;
                }
                let (loans, busy) = record.spare.surrender(&self.leaving);
                match busy {
                    Some(event) => loans.into_iter().for_each(|(_, lent)| lent.give_back_after(&event)),
                    None => drop(loans),
                }
            }
        }
        // What was given back behind device work, the bank knows of.
        self.size(self.leaving.swap(0, Ordering::AcqRel))
    }
}
