//! Who owns which address: allocations, what is gone, and the one question "may these bytes be touched?".

use super::call::Call;
use super::granules::Granules;
use super::leases::Leases;
use super::report::Kind;
use super::span::{Place, Span};
use crate::code::Code;
use crate::machine::{Extent, Machine};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What kind of allocation an address belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Holder {
    /// `cuMemAlloc`.
    Device,
    /// `cuMemAllocAsync`, from the pool with this handle.
    Pool(u64),
    /// `cuMemAllocManaged`.
    Managed,
    /// `cuMemHostAlloc`, `cuMemAllocHost`, with its flags.
    Pinned(u32),
    /// `cuMemHostRegister`, with its flags.
    Registered(u32),
}

impl Holder {
    /// Memory that the host may touch at any time.
    pub(crate) fn on_host(self) -> bool {
        !matches!(self, Holder::Device | Holder::Pool(_))
    }
}

/// One allocation that is held.
#[derive(Clone, Debug)]
pub(crate) struct Allocation {
    pub(crate) start: u64,
    /// Bytes asked for. What was rounded up is red zone.
    pub(crate) len: u64,
    pub(crate) holder: Holder,
    pub(crate) context: u64,
    pub(crate) device: usize,
    pub(crate) span: Span,
    pub(crate) extent: Extent,
    pub(crate) made: Call,
    /// Given back in stream order by this call; still there until the stream gets to it.
    pub(crate) freed: Option<Call>,
}

impl Allocation {
    fn end(&self) -> u64 {
        self.start + self.len
    }
}

/// An allocation or mapping that is no more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gone {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) made: Call,
    pub(crate) ended: Call,
}

/// The latest of what is gone, for the sentence that explains a bad address.
#[derive(Debug, Default)]
pub(crate) struct Graveyard(VecDeque<Gone>);

impl Graveyard {
    const MOST: usize = 16_384;

    pub(crate) fn bury(&mut self, gone: Gone) {
        if self.0.len() == Self::MOST {
            self.0.pop_front();
        }
        self.0.push_back(gone);
    }

    /// The addresses may be anybody's from now on.
    pub(crate) fn forget(&mut self, start: u64, len: u64) {
        self.0.retain(|g| g.start + g.len <= start || start + len <= g.start);
    }

    pub(crate) fn find(&self, at: u64) -> Option<&Gone> {
        self.0.iter().rev().find(|g| g.start <= at && at < g.start + g.len)
    }
}

/// A touch that must not be: what to report and what the driver answers.
#[derive(Clone, Debug)]
pub(crate) struct Violation {
    pub(crate) kind: Kind,
    pub(crate) why: String,
}

/// Who touches memory.
#[derive(Clone, Copy)]
pub(crate) struct Toucher<'a> {
    /// The device that does it.
    pub(crate) device: usize,
    /// Devices whose plain memory it reaches besides its own.
    pub(crate) peers: &'a [usize],
    /// It reaches every device, as `cuMemcpyPeer` does.
    pub(crate) any_device: bool,
    /// The call that asked for it: neither memory that had been given back before nor what was mapped after counts.
    pub(crate) call: Call,
}

/// A run of addresses inside one allocation or mapping, and where its bytes are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot {
    pub(crate) at: u64,
    pub(crate) span: Span,
    pub(crate) extent: Extent,
    pub(crate) writable: bool,
}

impl Spot {
    fn cut(&self, at: u64, len: u64) -> Spot {
        let from = at - self.at;
        let extent = self.extent.part(from, len);
        let span = Span { start: self.span.start + from, len: extent.len(), ..self.span };
        Spot { at, span, extent, writable: self.writable }
    }
}

/// All memory that device pointers can point into.
#[derive(Default)]
pub(crate) struct Memory {
    pub(crate) live: BTreeMap<u64, Allocation>,
    pub(crate) gone: Graveyard,
    pub(crate) granules: Granules,
    pub(crate) leases: Leases,
    /// Devices that a pool's owner let in (`cuMemPoolSetAccess`).
    pub(crate) pool_access: BTreeSet<(u64, usize)>,
    /// Addresses outside the stores that were given back and are kept from everybody, so that their next user is seen.
    tombs: VecDeque<(u64, u64)>,
}

impl Memory {
    /// Bytes around each allocation of device memory that nobody may write.
    pub(crate) const RED_ZONE: u64 = 512;
    pub(crate) const RED: u8 = 0xfd;
    pub(crate) const FRESH: u8 = 0xa5;
    pub(crate) const FREED: u8 = 0xdd;

    /// Keeps addresses that were given back from everybody; the oldest such range beyond a limit is answered, for the
    /// system to use again.
    pub(crate) fn entomb(&mut self, start: u64, len: u64) -> Option<(u64, u64)> {
        self.tombs.push_back((start, len));
        let all: u64 = self.tombs.iter().map(|(_, len)| len).sum();
        if self.tombs.len() <= 4096 && all <= 1 << 42 {
            return None;
        }
        let (start, len) = self.tombs.pop_front()?;
        self.gone.forget(start, len);
        self.granules.gone.forget(start, len);
        Some((start, len))
    }

    /// The allocation around an address.
    pub(crate) fn around(&self, at: u64) -> Option<&Allocation> {
        self.live.range(..=at).next_back().map(|(_, a)| a).filter(|a| at < a.end())
    }

    /// The whole allocation or mapping around `at`, if `who` may touch it.
    pub(crate) fn spot(&self, machine: &Machine, who: Toucher<'_>, at: u64) -> Result<Spot, Violation> {
        if let Some(a) = self.around(at) {
            if let Some(freed) = a.freed.filter(|f| f.number < who.call.number) {
                return Err(Violation {
                    kind: Kind::UseAfterFree,
                    why: format!("{at:#x} was freed by {freed} ({} bytes of {})", a.len, a.made),
                });
            }
            let reached = match a.holder {
                _ if who.any_device || a.device == who.device => true,
                Holder::Device => who.peers.contains(&a.device),
                Holder::Pool(pool) => self.pool_access.contains(&(pool, who.device)),
                Holder::Managed | Holder::Pinned(_) | Holder::Registered(_) => true,
            };
            if !reached {
                return Err(Violation {
                    kind: Kind::NoAccess,
                    why: format!(
                        "{at:#x} is memory of device {} ({}), to which device {} has no peer access",
                        a.device, a.made, who.device
                    ),
                });
            }
            return Ok(Spot { at: a.start, span: a.span, extent: a.extent, writable: true });
        }
        if let Some(m) = self.granules.mapping(at) {
            if m.made.number > who.call.number {
                return Err(self.mapped_too_late(at, m.made, who.call));
            }
            let access =
                if who.any_device { m.access_of_any_device() } else { m.access_of_device(who.device) };
            if access == 0 {
                return Err(Violation {
                    kind: Kind::NoAccess,
                    why: format!("{at:#x} is mapped by {} without access for device {}", m.made, who.device),
                });
            }
            let span = Span { place: Place::Store(m.store), start: m.offset, len: m.len };
            let extent = machine.extent(m.store, m.offset, m.len);
            return Ok(Spot { at: m.start, span, extent, writable: access & 2 != 0 });
        }
        Err(self.nothing_at(at))
    }

    /// The pieces that `len` bytes at `at` consist of; at least one where `len` is not 0.
    pub(crate) fn resolve(
        &self,
        machine: &Machine,
        who: Toucher<'_>,
        (at, len): (u64, u64),
        write: bool,
    ) -> Result<Vec<Spot>, Violation> {
        let Some(end) = at.checked_add(len) else {
            let why = format!("{len} bytes at {at:#x} run past the end of all addresses");
            return Err(Violation { kind: Kind::OutOfBounds, why });
        };
        let mut pieces = Vec::new();
        let mut next = at;
        while next < end {
            let spot = match self.spot(machine, who, next) {
                Err(_) if next > at => return Err(self.past_the_end(at, end, next)),
                other => other?,
            };
            if write && !spot.writable {
                return Err(Violation {
                    kind: Kind::WriteThroughReadOnly,
                    why: format!("{next:#x} is mapped to be read only{}", self.mapped_by(next)),
                });
            }
            let piece = spot.cut(next, end - next);
            next += piece.span.len;
            pieces.push(piece);
        }
        Ok(pieces)
    }

    /// Whether the bytes lie in one lease, where leases are in force around them.
    pub(crate) fn leased(leases: &Leases, at: u64, len: u64) -> Result<(), Violation> {
        leases.trespass(at, len).map_or(Ok(()), |why| {
            Err(Violation { kind: Kind::PastLease, why: format!("{len} bytes at {at:#x}: {why}") })
        })
    }

    /// What `call` meant to touch at `at` is not what was mapped there after it.
    fn mapped_too_late(&self, at: u64, mapped: Call, call: Call) -> Violation {
        match self.granules.gone.find(at).filter(|gone| gone.ended.number > call.number) {
            Some(gone) => Violation {
                kind: Kind::UseAfterRetire,
                why: format!(
                    "{at:#x} was unmapped by {} (mapped by {}); what {mapped} put there came after {call}",
                    gone.ended, gone.made
                ),
            },
            None => Violation {
                kind: Kind::OutsideMapping,
                why: format!("{at:#x} was mapped only by {mapped}, after {call}"),
            },
        }
    }

    fn mapped_by(&self, at: u64) -> String {
        self.granules.mapping(at).map_or_else(String::new, |m| format!(" (mapped by {})", m.made))
    }

    fn past_the_end(&self, at: u64, end: u64, stop: u64) -> Violation {
        let owner = match (self.around(at), self.granules.mapping(at)) {
            (Some(a), _) => format!("the allocation of {} bytes by {}", a.len, a.made),
            (_, Some(m)) => {
                let past = self.granules.gone.find(stop).map(|g| (Kind::UseAfterRetire, g));
                if let Some((kind, gone)) = past {
                    let why = format!("{stop:#x} was unmapped by {} (mapped by {})", gone.ended, gone.made);
                    return Violation { kind, why };
                }
                let why = format!(
                    "{} bytes at {at:#x} leave what is mapped at {stop:#x} (mapped last by {})",
                    end - at,
                    m.made
                );
                return Violation { kind: Kind::OutsideMapping, why };
            }
            _ => "its memory".to_owned(),
        };
        let why = format!("{} bytes at {at:#x} end {} bytes past the end of {owner}", end - at, end - stop);
        Violation { kind: Kind::OutOfBounds, why }
    }

    /// Why there is nothing at an address.
    pub(crate) fn nothing_at(&self, at: u64) -> Violation {
        if let Some(gone) = self.gone.find(at) {
            let why = format!("{at:#x} was freed by {} ({} bytes of {})", gone.ended, gone.len, gone.made);
            return Violation { kind: Kind::UseAfterFree, why };
        }
        if let Some(reservation) = self.granules.reservation(at) {
            if let Some(gone) = self.granules.gone.find(at) {
                let why = format!("{at:#x} was unmapped by {} (mapped by {})", gone.ended, gone.made);
                return Violation { kind: Kind::UseAfterRetire, why };
            }
            let why = format!("{at:#x} is reserved ({}), and nothing is mapped there", reservation.made);
            return Violation { kind: Kind::OutsideMapping, why };
        }
        if let Some(gone) = self.granules.gone.find(at) {
            let why = format!("{at:#x} was unmapped by {} (mapped by {})", gone.ended, gone.made);
            return Violation { kind: Kind::UseAfterRetire, why };
        }
        let near = 1 << 16;
        if let Some((_, a)) =
            self.live.range(..at).next_back().filter(|(_, a)| (a.end()..a.end() + near).contains(&at))
        {
            let why = format!(
                "{at:#x} lies {} bytes past the end of the allocation of {} bytes by {}",
                at - a.end(),
                a.len,
                a.made
            );
            return Violation { kind: Kind::OutOfBounds, why };
        }
        if let Some((_, a)) = self.live.range(at..).next().filter(|(s, _)| **s > at && *s - at < near) {
            let why = format!(
                "{at:#x} lies {} bytes before the allocation of {} bytes by {}",
                a.start - at,
                a.len,
                a.made
            );
            return Violation { kind: Kind::OutOfBounds, why };
        }
        Violation { kind: Kind::OutsideMapping, why: format!("nothing is allocated or mapped at {at:#x}") }
    }

    /// What the driver answers to a copy or fill with this fault.
    pub(crate) fn code_of(kind: Kind) -> Code {
        match kind {
            Kind::NoAccess | Kind::WriteThroughReadOnly => Code::ILLEGAL_ADDRESS,
            _ => Code::INVALID_VALUE,
        }
    }

    /// The allocation or reservation around `at`: start and length.
    pub(crate) fn ground(&self, at: u64) -> Option<(u64, u64)> {
        self.around(at)
            .map(|a| (a.start, a.len))
            .or_else(|| self.granules.reservation(at).map(|r| (r.start, r.len)))
    }
}
