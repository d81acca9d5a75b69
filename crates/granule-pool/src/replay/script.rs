//! `Script`: what a recording says was leased and freed, with slots in place of addresses.

use std::collections::HashMap;
use std::io::Read;

use granule_bank::trace::{Error, Event, PoolId, Reader, Record, StreamId};
use granule_device::Bytes;

/// One thing to do. Slots, pools and streams are counted from 0, in the order in which they first occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Lease memory, and keep it in the slot, which is empty.
    Alloc {
        /// Where it is kept.
        slot: u32,
        /// Which pool was asked.
        pool: u32,
        /// For which stream.
        stream: u32,
        /// What was asked for.
        size: Bytes,
        /// Its alignment, a power of two.
        align: Bytes,
    },
    /// A further stream uses what is in the slot.
    Used {
        /// Where it is kept.
        slot: u32,
        /// The stream.
        stream: u32,
    },
    /// Free what is in the slot.
    Free {
        /// Where it is kept.
        slot: u32,
    },
    /// The stream's work is captured from here on.
    CaptureBegin {
        /// The stream.
        stream: u32,
    },
    /// The capture ended.
    CaptureEnd {
        /// The stream.
        stream: u32,
    },
    /// The pool was asked to give back what it can.
    Trim {
        /// Which pool.
        pool: u32,
    },
}

/// Steps to play. Takes 32 bytes of memory for each.
#[derive(Clone, Debug, Default)]
pub struct Script {
    steps: Vec<Step>,
    slots: usize,
    pools: Vec<PoolId>,
    streams: Vec<Option<StreamId>>,
    unknown: u64,
    unfreed: u64,
}

impl Script {
    /// Reads a whole recording.
    ///
    /// # Errors
    /// What [`Reader`] says of a file that is damaged or cut; [`Script::of`] takes what could be read of one.
    pub fn read<R: Read>(reader: Reader<R>) -> Result<Script, Error> {
        let mut failed = None;
        let script = Script::of(reader.map_while(|record| record.map_err(|error| failed = Some(error)).ok()));
        failed.map_or(Ok(script), Err)
    }

    /// The steps among these records.
    pub fn of(records: impl IntoIterator<Item = Record>) -> Script {
        let mut maker = Maker::default();
        records.into_iter().for_each(|record| maker.event(&record.event));
        maker.script.unfreed = maker.live.len() as u64;
        maker.script
    }

    /// What to do, in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How many slots there are: the most leases that lived at once.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// The recorded names of the pools, by their number here.
    pub fn pools(&self) -> &[PoolId] {
        &self.pools
    }

    /// The recorded names of the streams, by their number here; none: the program's own threads.
    pub fn streams(&self) -> &[Option<StreamId>] {
        &self.streams
    }

    /// How many events were left out because they name a lease whose beginning is not in the recording.
    pub fn unknown(&self) -> u64 {
        self.unknown
    }

    /// How many leases were still live at the end.
    pub fn unfreed(&self) -> u64 {
        self.unfreed
    }
}

#[derive(Default)]
struct Maker {
    script: Script,
    /// Slots of live leases, by address.
    live: HashMap<u64, u32>,
    empty: Vec<u32>,
    pools: HashMap<PoolId, u32>,
    streams: HashMap<Option<StreamId>, u32>,
}

impl Maker {
    fn event(&mut self, event: &Event) {
        match *event {
            Event::Alloc { at, pool, stream, requested: size, align, .. } => {
                // Somebody else's already: its end was lost with other events.
                if let Some(slot) = self.live.remove(&at) {
                    self.free(slot);
                }
                let slot = self.empty.pop().unwrap_or_else(|| {
                    self.script.slots += 1;
                    u32::try_from(self.script.slots - 1).unwrap_or(u32::MAX)
                });
                self.live.insert(at, slot);
                let (pool, stream) = (self.pool(pool), self.stream(stream));
                let align = if align.get().is_power_of_two() { align } else { Bytes::new(1) };
                self.script.steps.push(Step::Alloc { slot, pool, stream, size, align });
            }
            Event::Used { at, stream } => match self.live.get(&at).copied() {
                Some(slot) => {
                    let stream = self.stream(Some(stream));
                    self.script.steps.push(Step::Used { slot, stream });
                }
                None => self.script.unknown += 1,
            },
            Event::Free { at } => match self.live.remove(&at) {
                Some(slot) => self.free(slot),
                None => self.script.unknown += 1,
            },
            Event::CaptureBegin { stream } => {
                let stream = self.stream(Some(stream));
                self.script.steps.push(Step::CaptureBegin { stream });
            }
            Event::CaptureEnd { stream } => {
                let stream = self.stream(Some(stream));
                self.script.steps.push(Step::CaptureEnd { stream });
            }
            Event::Trim { pool, .. } => {
                let pool = self.pool(pool);
                self.script.steps.push(Step::Trim { pool });
            }
            _ => {}
        }
    }

    fn free(&mut self, slot: u32) {
        self.empty.push(slot);
        self.script.steps.push(Step::Free { slot });
    }

    fn pool(&mut self, pool: PoolId) -> u32 {
        number(&mut self.pools, &mut self.script.pools, pool)
    }

    fn stream(&mut self, stream: Option<StreamId>) -> u32 {
        number(&mut self.streams, &mut self.script.streams, stream)
    }
}

/// What is counted from 0 in the order of first occurrence.
fn number<T: Copy + Eq + std::hash::Hash>(numbers: &mut HashMap<T, u32>, names: &mut Vec<T>, name: T) -> u32 {
    *numbers.entry(name).or_insert_with(|| {
        names.push(name);
        u32::try_from(names.len() - 1).unwrap_or(u32::MAX)
    })
}
