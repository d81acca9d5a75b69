//! Virtual memory calls. They take effect at once: nothing of this is ordered with any stream.

use super::call::Call;
use super::granules::{Access, Handle, Location, Mapping, Reservation};
use super::memory::{Gone, Memory};
use super::report::Kind;
use super::span::{Place, Span};
use super::{Caller, Result, Simulation};
use crate::code::Code;

/// What a handle shall be: `CUmemAllocationProp` without what the simulator does not use.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Properties {
    pub(crate) kind: i32,
    pub(crate) shared_as: i32,
    pub(crate) location: Location,
    pub(crate) flags: [u8; 8],
}

impl Simulation {
    /// Whether virtual memory exists, and nothing forbids to change it now.
    fn virtual_memory(&mut self, caller: &Caller) -> Result<()> {
        if !self.config.virtual_memory {
            return Err(Code::NOT_SUPPORTED);
        }
        self.forbid_vmm_while_capturing(caller)
    }

    pub(crate) fn granularity(&self, properties: &Properties) -> Result<u64> {
        if !self.config.virtual_memory {
            return Err(Code::NOT_SUPPORTED);
        }
        self.store_of(properties)?;
        Ok(self.config.granularity)
    }

    /// The store that memory with these properties lies in.
    fn store_of(&self, properties: &Properties) -> Result<usize> {
        let pinned = 1;
        match properties.location {
            _ if properties.kind != pinned => Err(Code::INVALID_VALUE),
            (1, device) => self.device(device),
            (2..=4, _) if !self.config.host_granules => Err(Code::NOT_SUPPORTED),
            (3, node) if node != 0 => Err(Code::INVALID_VALUE),
            (2..=4, _) => Ok(self.config.devices),
            _ => Err(Code::INVALID_VALUE),
        }
    }

    fn whole_granules(&self, len: u64) -> Result<()> {
        if len > 0 && len.is_multiple_of(self.config.granularity) { Ok(()) } else { Err(Code::INVALID_VALUE) }
    }

    pub(crate) fn reserve(&mut self, caller: &Caller, len: u64, align: u64, flags: u64) -> Result<u64> {
        self.virtual_memory(caller)?;
        self.whole_granules(len)?;
        if flags != 0 || align != 0 && !align.is_power_of_two() {
            return Err(Code::INVALID_VALUE);
        }
        let align = align.max(self.config.granularity);
        let start = self.machine.reserve(len, align).ok_or(Code::OUT_OF_MEMORY)?;
        self.memory.granules.reservations.insert(start, Reservation { start, len, made: caller.call });
        Ok(start)
    }

    pub(crate) fn unreserve(&mut self, caller: &Caller, start: u64, len: u64) -> Result<()> {
        self.virtual_memory(caller)?;
        let r = self.memory.granules.free_reservation(start, len)?;
        for (at, len, made) in self.memory.leases.forget(start) {
            let message = format!(
                "{} ends the reservation around a lease of {len} bytes at {at:#x} ({made})",
                caller.call
            );
            self.reports.add(Kind::LeakAtContextRelease, message);
        }
        self.memory.gone.bury(Gone { start, len, made: r.made, ended: caller.call });
        self.keep_away(start, len);
        Ok(())
    }

    /// Nothing is mapped at these addresses, and for a good while nobody else gets them.
    pub(crate) fn keep_away(&mut self, start: u64, len: u64) {
        if let Some((start, len)) = self.memory.entomb(start, len) {
            self.machine.unreserve(start, len);
        }
    }

    pub(crate) fn create(
        &mut self,
        caller: &Caller,
        len: u64,
        properties: &Properties,
        flags: u64,
    ) -> Result<u64> {
        self.virtual_memory(caller)?;
        let store = self.store_of(properties)?;
        self.whole_granules(len)?;
        if flags != 0 {
            return Err(Code::INVALID_VALUE);
        }
        self.charge(store, len)?;
        let Some(offset) = self.devices[store].granule(len) else {
            self.devices[store].used -= len;
            return Err(Code::OUT_OF_MEMORY);
        };
        self.machine.extent(store, offset, len).fill(&[Memory::FRESH]);
        let handle = self.new_handle();
        let made = Handle {
            location: properties.location,
            store,
            offset,
            len,
            made: caller.call,
            held: 1,
            mapped: 0,
            asked: (properties.shared_as, properties.flags),
        };
        self.memory.granules.handles.insert(handle, made);
        Ok(handle)
    }

    pub(crate) fn release(&mut self, caller: &Caller, handle: u64) -> Result<()> {
        self.virtual_memory(caller)?;
        let last = self.memory.granules.release(handle)?;
        self.give_back(last);
        Ok(())
    }

    fn give_back(&mut self, handle: Option<Handle>) {
        if let Some(h) = handle {
            self.devices[h.store].used -= h.len;
            if !self.devices[h.store].granule_back(h.offset, h.len) {
                self.machine.discard(h.store, h.offset, h.len);
            }
            if let Some(shadow) = self.shadows.as_mut().and_then(|all| all.get_mut(h.store)) {
                shadow.clear(h.offset, h.len);
            }
            let span = Span { place: Place::Store(h.store), start: h.offset, len: h.len };
            self.races.forget(&span);
        }
    }

    pub(crate) fn retain(&mut self, caller: &Caller, at: u64) -> Result<u64> {
        self.virtual_memory(caller)?;
        let handle = self.memory.granules.mapping(at).ok_or(Code::INVALID_VALUE)?.handle;
        self.memory.granules.handles.get_mut(&handle).ok_or(Code::INVALID_VALUE)?.held += 1;
        Ok(handle)
    }

    pub(crate) fn properties(&self, handle: u64) -> Result<Properties> {
        let h = self.memory.granules.handles.get(&handle).ok_or(Code::INVALID_VALUE)?;
        Ok(Properties { kind: 1, shared_as: h.asked.0, location: h.location, flags: h.asked.1 })
    }

    pub(crate) fn map(
        &mut self,
        caller: &Caller,
        (start, len): (u64, u64),
        from: u64,
        handle: u64,
        flags: u64,
    ) -> Result<()> {
        self.virtual_memory(caller)?;
        self.whole_granules(len)?;
        if flags != 0 || !start.is_multiple_of(self.config.granularity) {
            return Err(Code::INVALID_VALUE);
        }
        let h = self.memory.granules.may_map(start, len, from, handle)?;
        if !self.machine.map(start, len, h.store, h.offset) {
            return Err(Code::OUT_OF_MEMORY);
        }
        self.memory.granules.map(start, handle, caller.call);
        Ok(())
    }

    pub(crate) fn unmap(&mut self, caller: &Caller, start: u64, len: u64) -> Result<()> {
        self.virtual_memory(caller)?;
        for place in self.memory.granules.whole_mappings(start, len)? {
            self.end_mapping(caller.call, place);
        }
        Ok(())
    }

    fn end_mapping(&mut self, ended: Call, place: u64) {
        let Some((mapping, last)) = self.memory.granules.unmap(place, ended) else { return };
        self.machine.unmap(mapping.start, mapping.len);
        self.report_early_unmap(ended, &mapping);
        self.give_back(last);
    }

    /// Work that was issued before and that the host does not know to be done may still touch the mapping.
    fn report_early_unmap(&mut self, ended: Call, mapping: &Mapping) {
        for user in self.races.unfinished_at(mapping.start, mapping.len, &self.host) {
            let message = format!(
                "{ended} unmaps {} bytes at {:#x} ({}) while {user} may still touch them",
                mapping.len, mapping.start, mapping.made
            );
            self.reports.add(Kind::UseAfterRetire, message);
        }
    }

    pub(crate) fn set_access(
        &mut self,
        caller: &Caller,
        (start, len): (u64, u64),
        access: &[Access],
    ) -> Result<()> {
        self.virtual_memory(caller)?;
        let mappings = self.memory.granules.whole_mappings(start, len)?;
        for &((kind, id), flags) in access {
            match kind {
                1 => {
                    self.device(id)?;
                }
                2..=4 if self.config.host_granules => {}
                _ => return Err(Code::INVALID_VALUE),
            }
            if !matches!(flags, 0 | 1 | 3) {
                return Err(Code::INVALID_VALUE);
            }
            if flags == 1 && !self.config.read_only {
                return Err(Code::NOT_SUPPORTED);
            }
        }
        if access.is_empty() {
            return Err(Code::INVALID_VALUE);
        }
        for &place in &mappings {
            let Some(m) = self.memory.granules.mappings.get(&place) else { continue };
            let store = m.store as i32;
            let foreign = |&((kind, id), _): &Access| kind == 1 && id != store;
            let owned = m.store < self.config.devices;
            if owned && !self.config.peers && access.iter().any(foreign) {
                return Err(Code::INVALID_DEVICE);
            }
        }
        for place in mappings {
            let Some(m) = self.memory.granules.mappings.get_mut(&place) else { continue };
            for &(location, flags) in access {
                m.access.insert(location, flags as u8);
            }
            let on_host = m.access.iter().filter(|((kind, _), _)| *kind != 1).map(|(_, flags)| *flags).max();
            if m.store == self.config.devices
                && let Some(flags) = on_host
            {
                self.machine.let_host_in(m.start, m.len, flags);
            }
        }
        Ok(())
    }

    pub(crate) fn get_access(&self, location: Location, at: u64) -> Result<u64> {
        let mapping = self.memory.granules.mapping(at).ok_or(Code::INVALID_VALUE)?;
        Ok(mapping.access.get(&location).copied().unwrap_or(0).into())
    }
}
