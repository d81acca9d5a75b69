//! Memory of devices and pinned, managed and registered memory: given out and taken back.

use super::call::Call;
use super::memory::{Allocation, Gone, Holder, Memory};
use super::report::Kind;
use super::span::{Place, Span};
use super::{Caller, Result, Simulation};
use crate::code::Code;
use crate::machine::{Extent, Machine};

impl Simulation {
    /// `cuMemAlloc` hands out addresses at multiples of this, and so do its capacities.
    pub(crate) const ROUNDING: u64 = 512;

    /// Device memory for the caller's context.
    pub(crate) fn allocate(&mut self, caller: &Caller, len: u64) -> Result<u64> {
        let context = self.context(caller)?;
        self.forbid_while_capturing(caller)?;
        let device = self.context_info(context)?.device;
        self.allocate_on(caller, context, device, len, Holder::Device)
    }

    pub(crate) fn allocate_on(
        &mut self,
        caller: &Caller,
        context: u64,
        device: usize,
        len: u64,
        holder: Holder,
    ) -> Result<u64> {
        if len == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let rounded = len.checked_next_multiple_of(Self::ROUNDING).ok_or(Code::OUT_OF_MEMORY)?;
        self.charge(device, rounded)?;
        // A page of its own on both sides keeps a kernel that runs far off away from the neighbours.
        let whole = rounded + 2 * Memory::RED_ZONE;
        let Some(base) = self.devices[device].offsets(whole + Machine::PAGE, Machine::PAGE) else {
            self.devices[device].used -= rounded;
            return Err(Code::OUT_OF_MEMORY);
        };
        let offset = base + Memory::RED_ZONE;
        let extent = self.machine.extent(device, offset, len);
        self.red_zones(device, offset, len).into_iter().for_each(|zone| zone.fill(&[Memory::RED]));
        extent.fill(&[Memory::FRESH]);
        let start = self.machine.front(device, offset);
        let span = Span { place: Place::Store(device), start: offset, len };
        self.memory.live.insert(
            start,
            Allocation { start, len, holder, context, device, span, extent, made: caller.call, freed: None },
        );
        Ok(start)
    }

    /// The bytes before and behind an allocation of device memory that belong to nobody.
    fn red_zones(&self, device: usize, offset: u64, len: u64) -> [Extent; 2] {
        let behind = (len.next_multiple_of(Self::ROUNDING) - len) + Memory::RED_ZONE;
        [
            self.machine.extent(device, offset - Memory::RED_ZONE, Memory::RED_ZONE),
            self.machine.extent(device, offset + len, behind),
        ]
    }

    /// Reports red zones of a device that were written, and paints them anew.
    pub(crate) fn check_red_zones(&mut self, after: Call, only: Option<u64>) {
        let device_memory = self.memory.live.values().filter(|a| !a.holder.on_host());
        let painted: Vec<_> = device_memory
            .filter(|a| only.is_none_or(|start| a.start == start))
            .map(|a| (self.red_zones(a.device, a.span.start, a.len), a.start, a.len, a.made))
            .collect();
        for (zones, start, len, made) in painted {
            for (zone, place) in zones.iter().zip(["before", "behind"]) {
                if let Some(n) = zone.first_other_than(Memory::RED) {
                    let distance = if place == "before" { zone.len() - n } else { n };
                    let message = format!(
                        "seen after {after}: the byte {distance} bytes {place} the {len} bytes at {start:#x} ({made}) \
                         was written"
                    );
                    self.reports.add(Kind::OutOfBounds, message);
                    zone.fill(&[Memory::RED]);
                }
            }
        }
    }

    /// Memory of the host that devices reach under the same address.
    pub(crate) fn allocate_on_host(&mut self, caller: &Caller, len: u64, holder: Holder) -> Result<u64> {
        let context = self.context(caller)?;
        self.forbid_while_capturing(caller)?;
        if len == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let extent = self.machine.host_memory(len).ok_or(Code::OUT_OF_MEMORY)?.part(0, len);
        extent.fill(&[Memory::FRESH]);
        self.keep_host_memory(caller, context, extent, holder)
    }

    /// The program's own memory, now reachable for devices.
    pub(crate) fn register(&mut self, caller: &Caller, extent: Extent, flags: u32) -> Result<()> {
        let context = self.context(caller)?;
        if extent.len() == 0 || extent.address() == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let end = extent.address().checked_add(extent.len()).ok_or(Code::INVALID_VALUE)?;
        let taken = self.memory.around(extent.address()).is_some()
            || self.memory.live.range(extent.address()..end).next().is_some();
        if taken {
            return Err(Code::HOST_MEMORY_ALREADY_REGISTERED);
        }
        self.keep_host_memory(caller, context, extent, Holder::Registered(flags)).map(|_| ())
    }

    fn keep_host_memory(
        &mut self,
        caller: &Caller,
        context: u64,
        extent: Extent,
        holder: Holder,
    ) -> Result<u64> {
        let device = self.context_info(context)?.device;
        let (start, len) = (extent.address(), extent.len());
        let span = Span { place: Place::Host, start, len };
        self.memory.live.insert(
            start,
            Allocation { start, len, holder, context, device, span, extent, made: caller.call, freed: None },
        );
        Ok(start)
    }

    /// Takes back what `cuMemAlloc`, `cuMemAllocManaged` or a pool gave. All but a pool's memory waits for the work of
    /// its device (managed memory: of all devices), as drivers do; a program must not take that for an order, since
    /// no document promises it.
    pub(crate) fn free(&mut self, caller: &Caller, start: u64) -> Result<()> {
        if start == 0 {
            return Ok(());
        }
        self.context(caller)?;
        self.forbid_while_capturing(caller)?;
        let a = self.held(caller, start, |h| !matches!(h, Holder::Pinned(_) | Holder::Registered(_)))?;
        if let Holder::Pool(_) = a.holder {
            self.report_early_end(caller.call, &a, "frees without a wait memory of a pool");
        } else {
            let everywhere = a.holder.on_host();
            let contexts = self.contexts.iter().filter(|(_, c)| everywhere || c.device == a.device);
            let contexts: Vec<u64> = contexts.map(|(&context, _)| context).collect();
            self.run_streams(|s| contexts.contains(&s.context))?;
        }
        self.drop_allocation(caller.call, start);
        Ok(())
    }

    /// Takes back pinned memory, or ends a registration.
    pub(crate) fn free_on_host(&mut self, caller: &Caller, start: u64, registered: bool) -> Result<()> {
        self.context(caller)?;
        let fits = |h: Holder| match h {
            Holder::Pinned(_) => !registered,
            Holder::Registered(_) => registered,
            _ => false,
        };
        let code = if registered { Code::HOST_MEMORY_NOT_REGISTERED } else { Code::INVALID_VALUE };
        let a = self.held(caller, start, fits).map_err(|_| code)?;
        self.report_early_end(caller.call, &a, "ends host memory");
        // Other devices' ranks of NCCL may wait for this very thread.
        let _ = self.run_streams(|_| true);
        self.drop_allocation(caller.call, start);
        Ok(())
    }

    /// Work that the host does not know to be done may still touch memory that ends. What a launch touches is not known
    /// before it runs.
    fn report_early_end(&mut self, call: Call, a: &Allocation, doing: &str) {
        for user in self.races.unfinished_at(a.start, a.len, &self.host) {
            // The beginning of a pool's memory is noted like a use of it.
            if user != a.made {
                let message = format!(
                    "{call} {doing} ({} bytes at {:#x}, {}) that {user} may still touch",
                    a.len, a.start, a.made
                );
                self.reports.add(Kind::UseAfterFree, message);
            }
        }
    }

    /// The allocation that begins at `start`; a second free is reported.
    pub(crate) fn held(
        &mut self,
        caller: &Caller,
        start: u64,
        fits: impl Fn(Holder) -> bool,
    ) -> Result<Allocation> {
        let found = self.memory.live.get(&start).filter(|a| fits(a.holder));
        match found {
            Some(a) if a.freed.is_none() => Ok(a.clone()),
            Some(a) => {
                let earlier = a.freed.map_or_else(String::new, |c| c.to_string());
                let message = format!("{} frees {start:#x}, which {earlier} freed before", caller.call);
                self.reports.add(Kind::UseAfterFree, message);
                Err(Code::INVALID_VALUE)
            }
            None => {
                if let Some(a) = self.memory.around(start) {
                    let message = format!(
                        "{} cannot free {start:#x}: it lies inside the {} bytes at {:#x} of {}, or that call frees another \
                         kind of memory",
                        caller.call, a.len, a.start, a.made
                    );
                    self.reports.add(Kind::BadArguments, message);
                    return Err(Code::INVALID_VALUE);
                }
                let violation = self.memory.nothing_at(start);
                let message = format!("{} frees what is no allocation: {}", caller.call, violation.why);
                self.reports.add(violation.kind, message);
                Err(Code::INVALID_VALUE)
            }
        }
    }

    /// The allocation is gone: addresses lead nowhere, pages go back.
    pub(crate) fn drop_allocation(&mut self, ended: Call, start: u64) {
        if self.memory.live.get(&start).is_some_and(|a| !a.holder.on_host()) {
            self.check_red_zones(ended, Some(start));
        }
        let Some(a) = self.memory.live.remove(&start) else { return };
        for (at, len, made) in self.memory.leases.forget(start) {
            let message = format!(
                "{ended} ends the allocation of {} around a lease of {len} bytes at {at:#x} ({made})",
                a.made
            );
            self.reports.add(Kind::LeakAtContextRelease, message);
        }
        self.races.forget(&a.span);
        if !matches!(a.holder, Holder::Registered(_)) {
            self.memory.gone.bury(Gone { start, len: a.len, made: a.made, ended });
        }
        match a.holder {
            Holder::Device | Holder::Pool(_) => {
                if let Holder::Pool(pool) = a.holder {
                    self.pool_shrinks(pool, a.len);
                }
                self.devices[a.device].used -= a.len.next_multiple_of(Self::ROUNDING);
                let len = a.len.next_multiple_of(Machine::PAGE) + Machine::PAGE;
                self.machine.discard(a.device, a.span.start - Memory::RED_ZONE, len);
            }
            Holder::Managed | Holder::Pinned(_) => {
                let whole = a.len.next_multiple_of(Machine::PAGE);
                self.machine.unmap(start, whole);
                self.keep_away(start, whole);
            }
            // Still the program's memory.
            Holder::Registered(_) => {}
        }
    }
}
