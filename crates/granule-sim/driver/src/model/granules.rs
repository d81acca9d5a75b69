//! Virtual memory: reservations, handles of physical memory, mappings. Tables and rules only; nothing is mapped here.

use super::call::Call;
use super::memory::{Gone, Graveyard};
use crate::code::Code;
use std::collections::BTreeMap;

/// `CUmemLocation`: type and id. Types: 1 a device, 2 the host, 3 a NUMA node, 4 this thread's node.
pub(crate) type Location = (i32, i32);

/// `CUmemAccessDesc`: a location and its `CUmemAccess_flags`, 0 nothing, 1 read, 3 read and write.
pub(crate) type Access = (Location, i32);

/// Addresses without memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reservation {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) made: Call,
}

/// Physical memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handle {
    pub(crate) location: Location,
    pub(crate) store: usize,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) made: Call,
    /// Times created or retained, less times released.
    pub(crate) held: u32,
    /// Mappings of it.
    pub(crate) mapped: u32,
    /// `requestedHandleTypes` and the allocation flags it was made with.
    pub(crate) asked: (i32, [u8; 8]),
}

/// Physical memory at addresses.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) handle: u64,
    pub(crate) store: usize,
    pub(crate) offset: u64,
    pub(crate) made: Call,
    /// `CUmemAccess_flags` by location: 1 read, 3 read and write.
    pub(crate) access: BTreeMap<Location, u8>,
}

impl Mapping {
    pub(crate) fn access_of_device(&self, device: usize) -> u8 {
        self.access.get(&(1, device as i32)).copied().unwrap_or(0)
    }

    pub(crate) fn access_of_any_device(&self) -> u8 {
        self.access.values().fold(0, |all, one| all | one)
    }
}

/// All of virtual memory.
#[derive(Debug, Default)]
pub(crate) struct Granules {
    pub(crate) reservations: BTreeMap<u64, Reservation>,
    pub(crate) handles: BTreeMap<u64, Handle>,
    pub(crate) mappings: BTreeMap<u64, Mapping>,
    pub(crate) gone: Graveyard,
}

impl Granules {
    pub(crate) fn mapping(&self, at: u64) -> Option<&Mapping> {
        self.mappings.range(..=at).next_back().map(|(_, m)| m).filter(|m| at < m.start + m.len)
    }

    pub(crate) fn reservation(&self, at: u64) -> Option<&Reservation> {
        self.reservations.range(..=at).next_back().map(|(_, r)| r).filter(|r| at < r.start + r.len)
    }

    /// The reservation that begins at `start` with `len` bytes and in which nothing is mapped any more.
    pub(crate) fn free_reservation(&mut self, start: u64, len: u64) -> Result<Reservation, Code> {
        let reservation =
            self.reservations.get(&start).filter(|r| r.len == len).ok_or(Code::INVALID_VALUE)?;
        if self.mappings.range(start..start + len).next().is_some() {
            return Err(Code::INVALID_VALUE);
        }
        let reservation = *reservation;
        self.reservations.remove(&start);
        Ok(reservation)
    }

    /// Whether the whole handle can be mapped at `start`; returns it.
    pub(crate) fn may_map(&self, start: u64, len: u64, from: u64, handle: u64) -> Result<Handle, Code> {
        let found = *self.handles.get(&handle).filter(|h| h.held > 0).ok_or(Code::INVALID_VALUE)?;
        let end = start.checked_add(len).ok_or(Code::INVALID_VALUE)?;
        let room = self.reservation(start).is_some_and(|r| end <= r.start + r.len);
        let taken = self.mapping(start).is_some() || self.mappings.range(start..end).next().is_some();
        if from != 0 || len != found.len || !room || taken {
            return Err(Code::INVALID_VALUE);
        }
        Ok(found)
    }

    pub(crate) fn map(&mut self, start: u64, handle: u64, made: Call) {
        if let Some(h) = self.handles.get_mut(&handle) {
            h.mapped += 1;
            let mapping = Mapping {
                start,
                len: h.len,
                handle,
                store: h.store,
                offset: h.offset,
                made,
                access: BTreeMap::new(),
            };
            self.mappings.insert(start, mapping);
        }
    }

    /// The starts of the mappings that make up exactly `start .. start + len`.
    pub(crate) fn whole_mappings(&self, start: u64, len: u64) -> Result<Vec<u64>, Code> {
        let end = start.checked_add(len).filter(|_| len > 0).ok_or(Code::INVALID_VALUE)?;
        let mut next = start;
        let mut found = Vec::new();
        while next < end {
            let mapping = self.mappings.get(&next).ok_or(Code::INVALID_VALUE)?;
            found.push(next);
            next += mapping.len;
        }
        if next == end { Ok(found) } else { Err(Code::INVALID_VALUE) }
    }

    /// Takes one mapping out. Returns it, and its handle where nothing holds that any more.
    pub(crate) fn unmap(&mut self, start: u64, ended: Call) -> Option<(Mapping, Option<Handle>)> {
        let mapping = self.mappings.remove(&start)?;
        self.gone.bury(Gone { start, len: mapping.len, made: mapping.made, ended });
        if let Some(handle) = self.handles.get_mut(&mapping.handle) {
            handle.mapped -= 1;
        }
        let last = self.drop_if_unused(mapping.handle);
        Some((mapping, last))
    }

    /// One holder less. The handle, where that was the last and nothing is mapped.
    pub(crate) fn release(&mut self, handle: u64) -> Result<Option<Handle>, Code> {
        let found = self.handles.get_mut(&handle).filter(|h| h.held > 0).ok_or(Code::INVALID_VALUE)?;
        found.held -= 1;
        Ok(self.drop_if_unused(handle))
    }

    fn drop_if_unused(&mut self, handle: u64) -> Option<Handle> {
        let unused = self.handles.get(&handle).is_some_and(|h| h.held == 0 && h.mapped == 0);
        if unused { self.handles.remove(&handle) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: Call = Call { number: 1, name: "cuMemMap" };
    const G: u64 = 1 << 21;

    fn one_handle() -> Granules {
        let mut granules = Granules::default();
        granules.reservations.insert(16 * G, Reservation { start: 16 * G, len: 4 * G, made: CALL });
        let handle = Handle {
            location: (1, 0),
            store: 0,
            offset: 0,
            len: G,
            made: CALL,
            held: 1,
            mapped: 0,
            asked: (0, [0; 8]),
        };
        granules.handles.insert(5, handle);
        granules
    }

    #[test]
    fn a_released_handle_lives_while_it_is_mapped() {
        let mut granules = one_handle();
        for place in [16, 18] {
            assert!(granules.may_map(place * G, G, 0, 5).is_ok());
            granules.map(place * G, 5, CALL);
        }
        assert!(granules.release(5).unwrap().is_none());
        assert_eq!(granules.release(5).unwrap_err(), Code::INVALID_VALUE, "released once too often");
        assert_eq!(granules.may_map(17 * G, G, 0, 5).unwrap_err(), Code::INVALID_VALUE, "no longer held");
        assert!(granules.unmap(16 * G, CALL).unwrap().1.is_none());
        assert!(granules.unmap(18 * G, CALL).unwrap().1.is_some());
    }

    #[test]
    fn mappings_stay_apart_inside_and_whole() {
        let mut granules = one_handle();
        granules.map(17 * G, 5, CALL);
        for (start, len, from) in [(17, G, 0), (15, G, 0), (20, G, 0), (16, G, G), (16, G / 2, 0)] {
            assert!(granules.may_map(start * G, len, from, 5).is_err(), "{start} {len} {from}");
        }
        granules.map(18 * G, 5, CALL);
        assert_eq!(granules.whole_mappings(17 * G, 2 * G).unwrap(), [17 * G, 18 * G]);
        for (start, len) in [(16 * G, 2 * G), (17 * G, 3 * G), (17 * G, G / 2), (17 * G, 0)] {
            assert!(granules.whole_mappings(start, len).is_err());
        }
        assert!(granules.free_reservation(16 * G, 4 * G).is_err(), "still mapped");
        granules.unmap(17 * G, CALL);
        granules.unmap(18 * G, CALL);
        assert!(granules.free_reservation(16 * G, 3 * G).is_err(), "not all of it");
        assert!(granules.free_reservation(16 * G, 4 * G).is_ok());
    }
}
