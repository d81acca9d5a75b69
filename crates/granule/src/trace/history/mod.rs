//! `History`: what a recording tells, as intervals and curves: who held what when, what lay where from when to when.

mod build;
mod granule;
#[cfg(test)]
mod tests;

use std::io::Read;

use granule_bank::trace::{Error, Reader};

use build::Builder;

/// An end that the recording did not see.
pub(crate) const OPEN: u64 = u64::MAX;

/// A whole recording. Times are nanoseconds since it began; things refer to each other by their place in these lists.
#[derive(Default)]
pub(crate) struct History {
    pub(crate) label: String,
    pub(crate) unix_ms: u64,
    /// When the last event was.
    pub(crate) end: u64,
    pub(crate) events: u64,
    /// Events that the recorder had to leave out.
    pub(crate) lost: u64,
    /// Frees, uses and returns of what was taken before the recording began, or whose beginning was lost.
    pub(crate) unknown: u64,
    /// Why the recording could not be read to its end.
    pub(crate) broken: Option<Error>,
    pub(crate) devices: Vec<Device>,
    pub(crate) accounts: Vec<Account>,
    pub(crate) streams: Vec<Stream>,
    pub(crate) ranges: Vec<Range>,
    pub(crate) placements: Vec<Placement>,
    pub(crate) leases: Vec<Lease>,
    pub(crate) charges: Vec<Charge>,
    /// In the order of time.
    pub(crate) held: Vec<Held>,
    /// In the order of time.
    pub(crate) used: Vec<Used>,
    /// In the order of time.
    pub(crate) lengths: Vec<Length>,
    pub(crate) moments: Vec<Moment>,
}

/// A bank's device.
#[derive(Default)]
pub(crate) struct Device {
    pub(crate) name: String,
    pub(crate) granule: u64,
    pub(crate) budget: u64,
    /// Granules that the driver made and destroyed.
    pub(crate) created: u64,
    pub(crate) destroyed: u64,
    /// Calls in which it did.
    pub(crate) create_calls: u64,
    pub(crate) destroy_calls: u64,
    /// Runs of granules that were mapped and unmapped, and places that were retired.
    pub(crate) maps: u64,
    pub(crate) unmaps: u64,
    pub(crate) retired: u64,
    /// What all owners held, now and at most; and what of it was in use: leased, charged, within a growable's length.
    pub(crate) held: u64,
    pub(crate) peak_held: u64,
    pub(crate) peak_held_at: u64,
    pub(crate) used: u64,
    pub(crate) peak_used: u64,
    pub(crate) waits: u64,
    pub(crate) trims: u64,
    pub(crate) trimmed: u64,
    pub(crate) captures: u64,
}

/// One owner on one device.
#[derive(Default)]
pub(crate) struct Account {
    pub(crate) device: usize,
    pub(crate) name: String,
    /// Granules and charges, in bytes, now and at most.
    pub(crate) held: u64,
    pub(crate) peak_held: u64,
    pub(crate) charged: u64,
    /// What of it is in use, now and at most: charged, within a growable's length, leased to whoever.
    pub(crate) used: u64,
    pub(crate) peak_used: u64,
    /// Granules, in all.
    pub(crate) taken: u64,
    pub(crate) given: u64,
    /// What its live leases take up, now and at most.
    pub(crate) live: u64,
    pub(crate) peak_live: u64,
    pub(crate) live_leases: u64,
    pub(crate) leases: u64,
    /// What all its leases together asked for and took up.
    pub(crate) sum_requested: u64,
    pub(crate) sum_given: u64,
    pub(crate) steals: u64,
    pub(crate) refused: u64,
}

/// A stream.
pub(crate) struct Stream {
    pub(crate) name: String,
    pub(crate) device: usize,
}

/// A range of addresses.
pub(crate) struct Range {
    pub(crate) id: u32,
    pub(crate) account: usize,
    pub(crate) base: u64,
    pub(crate) place: u64,
    pub(crate) places: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
    /// True where a pool cuts leases from it: said so, or was seen to.
    pub(crate) arena: bool,
    /// True where its length was told: it is filled from the start.
    pub(crate) growable: bool,
}

/// A granule behind a place of a range.
pub(crate) struct Placement {
    pub(crate) range: usize,
    pub(crate) place: u64,
    pub(crate) granule: u64,
    /// Who holds the granule.
    pub(crate) account: usize,
    pub(crate) from: u64,
    /// From here on it only waits for device work.
    pub(crate) retired: u64,
    pub(crate) to: u64,
}

/// A lease.
pub(crate) struct Lease {
    pub(crate) at: u64,
    pub(crate) account: usize,
    /// The range it was cut from, where that is known.
    pub(crate) range: Option<usize>,
    pub(crate) stream: Option<usize>,
    pub(crate) requested: u64,
    pub(crate) given: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// Memory that is no granules.
pub(crate) struct Charge {
    pub(crate) account: usize,
    pub(crate) size: u64,
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// What an account holds from here on.
pub(crate) struct Held {
    pub(crate) ns: u64,
    pub(crate) account: usize,
    pub(crate) bytes: u64,
}

/// What of an account's memory is in use from here on.
pub(crate) struct Used {
    pub(crate) ns: u64,
    pub(crate) account: usize,
    pub(crate) bytes: u64,
}

/// How much of a growable is in use from here on.
pub(crate) struct Length {
    pub(crate) ns: u64,
    pub(crate) range: usize,
    pub(crate) bytes: u64,
}

/// Something worth a line in a picture.
pub(crate) struct Moment {
    pub(crate) ns: u64,
    pub(crate) what: What,
}

/// What it is.
pub(crate) enum What {
    Mark(String),
    Refused { account: usize, bytes: u64 },
    Trim { device: usize, bytes: u64 },
    CaptureBegin { stream: usize },
    CaptureEnd { stream: usize },
    Lost(u64),
}

impl History {
    /// Reads all of a recording that can be read; [`History::broken`] says why that is not all of it.
    pub(crate) fn read<R: Read>(reader: Reader<R>) -> History {
        let mut builder = Builder::default();
        let mut broken = None;
        for record in reader {
            match record {
                Ok(record) => builder.record(&record),
                Err(error) => broken = Some(error),
            }
        }
        History { broken, ..builder.finish() }
    }
}
