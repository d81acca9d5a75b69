//! Growing and shrinking several growables at once: it happens to all of them, or nothing has changed.

use std::ops::Range as Span;

use granule_device::{Access, Bytes};

use crate::piece::Piece;
use crate::range::Privatized;
use crate::{Error, Growable, Stock};

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

/// The steps for one growable, and how far they went.
struct Plan {
    gaps: Vec<Span<usize>>,
    /// Places to make private and how many of their bytes to keep.
    private: Vec<(usize, usize)>,
    stock: Stock,
    grown: bool,
    privatized: Vec<Privatized>,
}

impl Plan {
    fn copied(&self) -> Bytes {
        let copied = |((_, keep), done): (&(usize, usize), &Privatized)| match done {
            Privatized::Copied(..) => *keep,
            Privatized::InPlace(_) => 0,
        };
        Bytes::from_usize(self.private.iter().zip(&self.privatized).map(copied).sum())
    }
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
    let mut plans = growths.iter().map(plan).collect::<Result<Vec<Plan>, Error>>()?;
    if let Err(error) = growths.iter_mut().zip(&mut plans).try_for_each(|(growth, plan)| grow(growth, plan)) {
        growths.iter_mut().zip(plans).for_each(|(growth, plan)| undo(growth, plan));
        return Err(error);
    }
    if let Err(error) =
        growths.iter_mut().zip(&mut plans).try_for_each(|(growth, plan)| privatize(growth, plan))
    {
        growths.iter_mut().zip(plans).for_each(|(growth, plan)| undo(growth, plan));
        return Err(error);
    }
    for growth in growths {
        growth.growable.set_len(growth.growable.len.max(growth.len));
    }
    Ok(plans.iter().map(Plan::copied).fold(Bytes::ZERO, Bytes::saturating_add))
}

/// What has to be done for one growable, with the granules for it in hand.
fn plan(growth: &Growth<'_>) -> Result<Plan, Error> {
    let (growable, range) = (&*growth.growable, &growth.growable.range);
    let too_long = || Error::Reserved { requested: growth.len, reserved: growable.reserved() };
    if growth.len > growable.reserved() {
        return Err(too_long());
    }
    let granule = range.granule_len();
    let wanted = growth.len.pieces_of(range.bank().granule()).ok_or_else(too_long)?;
    let mapped = growable.mapped_places();
    let gaps = range.gaps(&(mapped.min(wanted)..wanted))?;
    let write_from = growth.write_from.and_then(Bytes::to_usize).unwrap_or(usize::MAX);
    let private: Vec<(usize, usize)> = (write_from / granule..mapped.min(wanted))
        .filter(|&place| range.is_read_only(place))
        .map(|place| (place, write_from.saturating_sub(place * granule).min(granule)))
        .collect();
    let copies = private.iter().filter(|&&(place, _)| range.is_shared(place)).count();
    let stock = range.bank().take(range.owner(), gaps.iter().map(Span::len).sum::<usize>() + copies)?;
    Ok(Plan { gaps, private, stock, grown: false, privatized: Vec::new() })
}

fn grow(growth: &mut Growth<'_>, plan: &mut Plan) -> Result<(), Error> {
    growth.growable.range.map_gaps(&plan.gaps, &mut plan.stock)?;
    plan.grown = true;
    Ok(())
}

fn privatize(growth: &mut Growth<'_>, plan: &mut Plan) -> Result<(), Error> {
    for &(place, keep) in &plan.private {
        plan.privatized.push(growth.growable.range.privatize(place, keep, &mut plan.stock)?);
    }
    Ok(())
}

fn undo(growth: &mut Growth<'_>, plan: Plan) {
    let range = &mut growth.growable.range;
    plan.privatized.into_iter().rev().for_each(|done| range.unprivatize(done));
    if plan.grown {
        plan.gaps.into_iter().for_each(|gap| range.evict(gap));
    }
}

/// Makes each growable at most so long and gives back the granules past that: all of them, or nothing has changed.
///
/// # Errors
/// [`Error::Device`].
pub fn shrink_together(shrinks: &mut [(&mut Growable, Bytes)]) -> Result<(), Error> {
    let mut out: Vec<(usize, Vec<(Piece, Access)>)> = Vec::with_capacity(shrinks.len());
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
