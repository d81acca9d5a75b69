//! Growing and shrinking several ranges or growables at once: it happens to all of them, or nothing has changed.

use std::ops::Range as Span;

use granule_device::{Access, Bytes};

use crate::piece::Piece;
use crate::range::Privatized;
use crate::{Error, Growable, Range, Stock};

/// What is to become of one growable in [`grow_together`].
#[derive(Debug)]
pub struct Growth<'a> {
    growable: &'a mut Growable,
    len: Bytes,
    write_from: Option<Bytes>,
}

impl<'a> Growth<'a> {
    /// At least `len` long; what is shared stays shared, also where it lies in the granule that `len` ends in.
    pub fn of(growable: &'a mut Growable, len: Bytes) -> Growth<'a> {
        Growth { growable, len, write_from: None }
    }

    /// And writable from byte `at` to that length: granules there that are shared are replaced by private ones at the same
    /// address, with the bytes before `at` kept and those from it on not. That copy is all that is ever copied.
    pub fn writable_from(self, at: Bytes) -> Growth<'a> {
        Growth { write_from: Some(at), ..self }
    }
}

/// What is to become of one range in [`claim_together`].
#[derive(Debug)]
pub struct Claim<'a> {
    range: &'a mut Range,
    places: Span<usize>,
    keep: Span<usize>,
}

impl<'a> Claim<'a> {
    /// Memory behind all of the places, and all of it writable. Where it is shared it is replaced by private granules at the
    /// same addresses, into which those bytes of the range that lie in `keep` are copied.
    pub fn new(range: &'a mut Range, places: Span<usize>, keep: Span<usize>) -> Claim<'a> {
        Claim { range, places, keep }
    }
}

/// What [`Range::take_out`] answers.
type TakenOut = Vec<(Piece, Access)>;

/// The steps for one range, and how far they went.
struct Plan {
    gaps: Vec<Span<usize>>,
    /// Places to make private and which of their bytes to keep.
    private: Vec<(usize, Span<usize>)>,
    stock: Stock,
    grown: bool,
    privatized: Vec<Privatized>,
}

impl Plan {
    /// The plan for a range that needs memory in the gaps, and to write to these places, with the granules for it in hand.
    fn new(
        range: &Range,
        gaps: Vec<Span<usize>>,
        write: Span<usize>,
        keep: &Span<usize>,
    ) -> Result<Plan, Error> {
        let granule = range.granule_len();
        let within = |place: usize| {
            let start = place.saturating_mul(granule);
            let clamp = |byte: usize| byte.saturating_sub(start).min(granule);
            clamp(keep.start)..clamp(keep.end)
        };
        let private: Vec<(usize, Span<usize>)> = write
            .filter(|&place| range.is_mapped(place) && range.is_read_only(place))
            .map(|place| (place, within(place)))
            .collect();
        let copies = private.iter().filter(|&&(place, _)| range.is_shared(place)).count();
        let needed = gaps.iter().map(Span::len).sum::<usize>() + copies;
        let stock = range.bank().take(range.owner(), needed)?;
        Ok(Plan { gaps, private, stock, grown: false, privatized: Vec::new() })
    }

    fn grow(&mut self, range: &mut Range) -> Result<(), Error> {
        range.map_gaps(&self.gaps, &mut self.stock)?;
        self.grown = true;
        Ok(())
    }

    fn privatize(&mut self, range: &mut Range) -> Result<(), Error> {
        for (place, keep) in &self.private {
            self.privatized.push(range.privatize(*place, keep.clone(), &mut self.stock)?);
        }
        Ok(())
    }

    fn undo(self, range: &mut Range) {
        self.privatized.into_iter().rev().for_each(|done| range.unprivatize(done));
        if self.grown {
            self.gaps.into_iter().for_each(|gap| range.evict(gap));
        }
    }

    fn copied(&self) -> Bytes {
        let copied = |((_, keep), done): (&(usize, Span<usize>), &Privatized)| match done {
            Privatized::Copied(..) => keep.len(),
            Privatized::InPlace(_) => 0,
        };
        Bytes::from_usize(self.private.iter().zip(&self.privatized).map(copied).sum())
    }
}

/// Carries out all plans or none; answers how many bytes were copied.
fn carry_out<T>(
    all: &mut [T],
    range_of: fn(&mut T) -> &mut Range,
    mut plans: Vec<Plan>,
) -> Result<Bytes, Error> {
    // Private copies come last: they are what is worth most to not have to undo.
    for step in [Plan::grow, Plan::privatize] {
        if let Err(error) =
            all.iter_mut().zip(&mut plans).try_for_each(|(one, plan)| step(plan, range_of(one)))
        {
            all.iter_mut().zip(plans).for_each(|(one, plan)| plan.undo(range_of(one)));
            return Err(error);
        }
    }
    Ok(plans.iter().map(Plan::copied).fold(Bytes::ZERO, Bytes::saturating_add))
}

/// Has memory behind the places of all claims and makes it writable: in all of them, or in none and nothing has changed. First
/// the budget is asked for everything, then memory is mapped, and private copies come last. Where all is there already this
/// makes no device call. Answers how many bytes were copied for private copies.
///
/// # Errors
/// [`Error::OutOfMemory`], [`Error::TooLarge`]; [`Error::Device`], also where a place is lent.
pub fn claim_together(claims: &mut [Claim<'_>]) -> Result<Bytes, Error> {
    let plan = |claim: &Claim<'_>| {
        let gaps = claim.range.gaps(&claim.places)?;
        Plan::new(claim.range, gaps, claim.places.clone(), &claim.keep)
    };
    let plans = claims.iter().map(plan).collect::<Result<Vec<Plan>, Error>>()?;
    carry_out(claims, |claim| claim.range, plans)
}

/// Takes the memory away from behind these places of all ranges, those that have any, or of none and nothing has changed but
/// for what the bytes were. Where it is not shared it goes back to the bank.
///
/// # Errors
/// [`Error::Device`].
pub fn clear_together(clears: &mut [(&mut Range, Vec<Span<usize>>)]) -> Result<(), Error> {
    // Of which range, from which place on, and what was there.
    let mut out: Vec<(usize, usize, TakenOut)> = Vec::new();
    for index in 0..clears.len() {
        let (range, spans) = &mut clears[index];
        let taken = spans.iter().try_for_each(|span| {
            for run in range.mapped_runs(span)? {
                let pieces = range.take_out(run.clone())?;
                out.push((index, run.start, pieces));
            }
            Ok(())
        });
        if let Err(error) = taken {
            for (index, place, pieces) in out {
                clears[index].0.put_back(place, pieces);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Grows all of them, or none and nothing has changed: first the budget is asked for everything, then memory is mapped, and
/// private copies come last. Where all are long and private enough already this makes no device call. Answers how many bytes
/// were copied for private copies: never more than a granule for each growable that is to be written.
///
/// ```
/// # use granule_bank::*; use granule_device::*;
/// # let device = Device::host_with(HostOptions::new().granule(Bytes::kib(16)).capacity(Bytes::kib(64)))?;
/// let bank = Bank::new(device, BankOptions::new())?;
/// let owner = Owner::new("kv");
/// let (mut a, mut b) = (bank.growable(&owner, Bytes::mib(1))?, bank.growable(&owner, Bytes::mib(1))?);
/// grow_together(&mut [Growth::of(&mut a, Bytes::kib(20)), Growth::of(&mut b, Bytes::kib(20))])?;
/// let more = grow_together(&mut [Growth::of(&mut a, Bytes::kib(24)), Growth::of(&mut b, Bytes::kib(48))]);
/// assert!(matches!(more, Err(Error::OutOfMemory { .. })));
/// assert_eq!(a.len(), Bytes::kib(20));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`Error::Reserved`], [`Error::OutOfMemory`], [`Error::TooLarge`], [`Error::Device`].
pub fn grow_together(growths: &mut [Growth<'_>]) -> Result<Bytes, Error> {
    let plans = growths.iter().map(plan).collect::<Result<Vec<Plan>, Error>>()?;
    let copied = carry_out(growths, |growth| &mut growth.growable.range, plans)?;
    for growth in growths {
        growth.growable.set_len(growth.growable.len.max(growth.len));
    }
    Ok(copied)
}

/// What has to be done for one growable.
fn plan(growth: &Growth<'_>) -> Result<Plan, Error> {
    let (growable, range) = (&*growth.growable, &growth.growable.range);
    let too_long = || Error::Reserved { requested: growth.len, reserved: growable.reserved() };
    if growth.len > growable.reserved() {
        return Err(too_long());
    }
    let wanted = growth.len.pieces_of(range.bank().granule()).ok_or_else(too_long)?;
    let mapped = growable.mapped_places();
    let gaps = range.gaps(&(mapped.min(wanted)..wanted))?;
    let write_from = growth.write_from.and_then(Bytes::to_usize).unwrap_or(usize::MAX);
    let write = write_from / range.granule_len()..mapped.min(wanted);
    Plan::new(range, gaps, write, &(0..write_from))
}

/// Makes each growable at most so long and gives back the granules past that: all of them, or nothing has changed.
///
/// # Errors
/// [`Error::Device`].
pub fn shrink_together(shrinks: &mut [(&mut Growable, Bytes)]) -> Result<(), Error> {
    let mut out: Vec<(usize, TakenOut)> = Vec::with_capacity(shrinks.len());
    for index in 0..shrinks.len() {
        let (growable, len) = &mut shrinks[index];
        let keep = len.pieces_of(growable.bank().granule()).unwrap_or(usize::MAX);
        let places = keep.min(growable.mapped_places())..growable.mapped_places();
        match growable.range.take_out(places.clone()) {
            Ok(pieces) => out.push((places.start, pieces)),
            Err(error) => {
                for ((growable, _), (place, pieces)) in shrinks.iter_mut().zip(out) {
                    let back = place + growable.range.put_back(place, pieces);
                    let left = growable.bank().granule().saturating_mul(back as u64);
                    growable.set_len(growable.len.min(left));
                }
                return Err(error);
            }
        }
    }
    for (growable, len) in shrinks {
        growable.set_len(growable.len.min(*len));
    }
    Ok(())
}
