//! Random calls, held against the model after each.

use std::ops::Range;

use proptest::prelude::*;

use super::model::{Model, Ticks, What, covers, seen, ticks};
use crate::policy::{Block, Space, SpaceCounts, SpanId, Stamp, StreamId, UNIT, short_under_miri};

#[derive(Clone, Debug)]
enum Call {
    AddSpan { plain: bool, places: usize },
    RemoveSpan(usize),
    Take { units: u64, align: u32, clock: Ticks },
    TakeAny { units: u64, align: u32 },
    TakeJoined { units: u64, align: u32, clock: Ticks },
    Free { which: usize, stamp: Ticks },
    FreeAgain { which: usize },
    Back { span: usize, places: Range<usize> },
    Bare { span: usize, places: Range<usize> },
    Withdraw { span: usize, places: Range<usize> },
    Grow { units: u64, align: u32, clock: Ticks },
    GrowLate { units: u64 },
    Settle(Ticks),
    Adopt(Ticks),
}

const HOME: StreamId = StreamId(0);
/// Units in a place of a sparse span: blocks of up to 12 units are smaller and larger than it.
const PLACE: u64 = 4;
const PLACES: usize = 6;

fn stamp() -> impl Strategy<Value = Ticks> {
    // Mostly the home stream's, sometimes idle, sometimes of strangers too.
    prop_oneof![
        2 => Just(Ticks::new()),
        4 => (1_u64..4).prop_map(|tick| Ticks::from([(HOME, tick)])),
        2 => prop::collection::btree_map((0_u32..3).prop_map(StreamId), 1_u64..4, 1..3),
    ]
}

fn clock() -> impl Strategy<Value = Ticks> {
    (prop::bool::weighted(0.8), prop::collection::btree_map((1_u32..3).prop_map(StreamId), 0_u64..5, 0..3))
        .prop_map(|(home, mut clock)| {
            if home {
                clock.insert(HOME, u64::MAX);
            }
            clock
        })
}

fn call() -> impl Strategy<Value = Call> {
    let units = || 0_u64..13;
    let align = || 0_u32..4;
    let places = || (0..PLACES, 1..=PLACES).prop_map(|(start, len)| start..(start + len).min(PLACES));
    let span = || 0_usize..3;
    prop_oneof![
        1 => (any::<bool>(), 1..=PLACES).prop_map(|(plain, places)| Call::AddSpan { plain, places }),
        1 => span().prop_map(Call::RemoveSpan),
        8 => (units(), align(), clock()).prop_map(|(units, align, clock)| Call::Take { units, align, clock }),
        3 => (units(), align()).prop_map(|(units, align)| Call::TakeAny { units, align }),
        2 => (units(), align(), clock()).prop_map(|(units, align, clock)| Call::TakeJoined { units, align, clock }),
        10 => (any::<usize>(), stamp()).prop_map(|(which, stamp)| Call::Free { which, stamp }),
        1 => any::<usize>().prop_map(|which| Call::FreeAgain { which }),
        2 => (span(), places()).prop_map(|(span, places)| Call::Back { span, places }),
        2 => (span(), places()).prop_map(|(span, places)| Call::Bare { span, places }),
        1 => (span(), places()).prop_map(|(span, places)| Call::Withdraw { span, places }),
        6 => (units(), align(), clock()).prop_map(|(units, align, clock)| Call::Grow { units, align, clock }),
        1 => units().prop_map(|units| Call::GrowLate { units }),
        1 => clock().prop_map(Call::Settle),
        1 => clock().prop_map(Call::Adopt),
    ]
}

struct Run {
    space: Space,
    model: Model,
    live: Vec<Block>,
    freed: Vec<Block>,
    plain: u64,
}

impl Run {
    fn new(home: Option<StreamId>) -> Run {
        let space = home.map_or_else(Space::new, Space::of);
        let model = Model { home, ..Model::default() };
        Run { space, model, live: Vec::new(), freed: Vec::new(), plain: 0 }
    }

    fn span(&self, which: usize) -> Option<SpanId> {
        self.model.spans.get(which).map(|span| span.id)
    }

    /// A block that was cut out of memory with the stamp: it must be what was asked for, from where the model has that.
    fn took(&mut self, (block, stamp): (Block, Stamp), units: u64, align: u32) -> Result<(), TestCaseError> {
        let bytes = block.offset..block.offset + block.size;
        let span = self.model.span(block.span);
        prop_assert_eq!(block.size, units.max(1) * UNIT);
        prop_assert!((span.base + block.offset).is_multiple_of(UNIT << align), "{:?}", block);
        let mut merged = Ticks::new();
        for piece in span.touching(&bytes) {
            let Some(stamp) = piece.stamp() else {
                return Err(TestCaseError::fail(format!("{block:?} in {piece:?}")));
            };
            stamp.iter().for_each(|(&stream, &tick)| {
                merged.entry(stream).and_modify(|known| *known = tick.max(*known)).or_insert(tick);
            });
        }
        prop_assert_eq!(ticks(&stamp), merged);
        self.model.write(block.span, bytes, What::Live(block.id));
        self.live.push(block);
        Ok(())
    }

    fn take(&mut self, units: u64, align: u32, clock: Option<&Ticks>) -> Result<String, TestCaseError> {
        let (size, bytes) = (units.max(1) * UNIT, UNIT << align);
        let home = self.model.home;
        let is_own = |stamp: &Ticks| stamp.keys().all(|stream| Some(*stream) == home);
        let fitting: Vec<(bool, u64)> = self
            .model
            .free()
            .filter(|(_, piece)| clock.is_none_or(|clock| covers(clock, piece.stamp().expect("free"))))
            .filter(|(span, piece)| Model::fits(span, &piece.bytes, size, bytes).is_some())
            .map(|(_, piece)| (!is_own(piece.stamp().expect("free")), piece.size()))
            .collect();
        let taken = match clock {
            Some(clock) => self.space.take(units * UNIT, bytes, &|stamp| covers(clock, &ticks(stamp))),
            None => self.space.take(units * UNIT, bytes, &|_| true),
        };
        prop_assert_eq!(taken.is_some(), !fitting.is_empty(), "{:?}", fitting);
        let said = format!("{taken:?}");
        if let Some((block, stamp)) = taken {
            let span = self.model.span(block.span);
            let from = span.touching(&(block.offset..block.offset + 1)).next().expect("a piece").clone();
            // Own memory first; and, since sizes this small have a bin each, the best fit.
            let best = fitting.iter().min().expect("one fits");
            let cut = (!is_own(from.stamp().expect("free")), from.size());
            prop_assert!(
                cut == *best || align > 0 && cut.0 == best.0,
                "{:?} cut where {:?} would do",
                cut,
                best
            );
            self.took((block, stamp), units, align)?;
        }
        Ok(said)
    }

    /// Makes the call of both, and says what the space answered.
    fn call(&mut self, call: &Call) -> Result<String, TestCaseError> {
        match call {
            Call::AddSpan { plain, places } => {
                if self.model.spans.len() >= 3 {
                    return Ok(String::new());
                }
                // A plain span is one place of any size, at an address that is aligned to the unit alone.
                self.plain += 3;
                let (base, place, places) =
                    if *plain { (self.plain * UNIT, 7 * UNIT, 1) } else { (0, PLACE * UNIT, *places) };
                let id = self.space.add_span_at(base, place, places);
                prop_assert!(self.model.spans.iter().all(|span| span.id != id));
                self.model.add_span(id, base, place, places);
                Ok(format!("{id:?}"))
            }
            Call::RemoveSpan(span) => {
                let Some(id) = self.span(*span) else { return Ok(String::new()) };
                let bare = self.model.span(id).pieces.iter().all(|piece| piece.what == What::Bare);
                let removed = self.space.remove_span(id);
                prop_assert_eq!(removed.is_ok(), bare);
                if bare {
                    self.model.spans.retain(|span| span.id != id);
                    prop_assert!(self.space.remove_span(id).is_err(), "removed twice");
                    prop_assert!(self.space.bare(id, 0..1).is_err());
                }
                Ok(format!("{removed:?}"))
            }
            Call::Take { units, align, clock } => self.take(*units, *align, Some(clock)),
            Call::TakeAny { units, align } => self.take(*units, *align, None),
            Call::TakeJoined { units, align, clock } => {
                let (size, bytes) = (units.max(&1) * UNIT, UNIT << align);
                let open = |what: &What| matches!(what, What::Free(stamp) if covers(clock, stamp));
                let mut room = false;
                for span in &self.model.spans {
                    for stretch in span.pieces.chunk_by(|a, b| open(&a.what) && open(&b.what)) {
                        let whole = stretch[0].bytes.start..stretch[stretch.len() - 1].bytes.end;
                        room |= open(&stretch[0].what) && Model::fits(span, &whole, size, bytes).is_some();
                    }
                }
                let taken =
                    self.space.take_joined(units * UNIT, bytes, &|stamp| covers(clock, &ticks(stamp)));
                prop_assert_eq!(taken.is_some(), room);
                let said = format!("{taken:?}");
                taken.map_or(Ok(()), |taken| self.took(taken, *units, *align))?;
                Ok(said)
            }
            Call::Free { which, stamp } => {
                if self.live.is_empty() {
                    return Ok(String::new());
                }
                let block = self.live.swap_remove(which % self.live.len());
                let given = Stamp::of(stamp.iter().map(|(&stream, &tick)| (stream, tick)));
                prop_assert_eq!(self.space.free(block.id, given), Ok(()));
                let bytes = block.offset..block.offset + block.size;
                self.model.write(block.span, bytes, What::Free(stamp.clone()));
                self.freed.push(block);
                Ok(String::new())
            }
            Call::FreeAgain { which } => {
                if self.freed.is_empty() {
                    return Ok(String::new());
                }
                let block = self.freed[which % self.freed.len()];
                prop_assert!(self.space.free(block.id, Stamp::Idle).is_err(), "{:?} freed twice", block);
                Ok(String::new())
            }
            Call::Back { span, places } => {
                let Some(id) = self.span(*span) else { return Ok(String::new()) };
                self.space.back(id, places.clone());
                for place in places.clone() {
                    let span = self.model.span(id);
                    let bytes = span.bytes(&(place..place + 1));
                    if bytes.start < bytes.end && !self.model.new_places(span, &bytes).is_empty() {
                        self.model.write(id, bytes, What::Free(Ticks::new()));
                    }
                }
                Ok(String::new())
            }
            Call::Bare { span, places } => self.empty(*span, places, false),
            Call::Withdraw { span, places } => self.empty(*span, places, true),
            Call::Grow { units, align, clock } => self.grow(*units, *align, clock),
            Call::GrowLate { units } => {
                let Some(growth) = self.space.plan(units * UNIT, 1, &|_| true) else {
                    return Ok(String::new());
                };
                // Somebody else takes the plan's place, if there is memory in it, and it must not be given twice.
                self.space.back(growth.span, growth.places.clone());
                let Some((block, _)) = self.space.grow(&growth) else {
                    return Err(TestCaseError::fail("a plan whose places got memory otherwise"));
                };
                prop_assert_eq!(self.space.grow(&growth), None);
                prop_assert_eq!(self.space.free(block.id, Stamp::Idle), Ok(()));
                self.space.check().map_err(TestCaseError::fail)?;
                // The model is told what came of it, stamps and all: only the places are of interest here.
                self.model
                    .spans
                    .iter_mut()
                    .zip(seen(&self.space))
                    .for_each(|(span, (_, pieces))| span.pieces = pieces);
                Ok(format!("{growth:?}"))
            }
            Call::Settle(clock) => {
                self.space.settle(&|stamp| covers(clock, &ticks(stamp)));
                self.model.stamp_anew(|stamp| covers(clock, stamp).then(Ticks::new));
                Ok(String::new())
            }
            Call::Adopt(clock) => {
                self.space.adopt(&|stamp| covers(clock, &ticks(stamp)), 9);
                if let Some(home) = self.model.home {
                    let strange = |stamp: &Ticks| stamp.keys().any(|&stream| stream != home);
                    let own = || Ticks::from([(home, 9)]);
                    self.model.stamp_anew(|stamp| (strange(stamp) && covers(clock, stamp)).then(own));
                }
                Ok(String::new())
            }
        }
    }

    fn empty(&mut self, span: usize, places: &Range<usize>, withdraw: bool) -> Result<String, TestCaseError> {
        let Some(id) = self.span(span) else { return Ok(String::new()) };
        let span = self.model.span(id);
        let bytes = span.bytes(places);
        let used = span.touching(&bytes).any(|piece| matches!(piece.what, What::Live(_)));
        let done = if withdraw {
            self.space.withdraw(id, places.clone())
        } else {
            self.space.bare(id, places.clone())
        };
        prop_assert_eq!(done.is_err(), used && !bytes.is_empty());
        if done.is_ok() && !bytes.is_empty() {
            let stays: Vec<_> = if withdraw {
                let bare = span.touching(&bytes).filter(|piece| piece.what == What::Bare);
                bare.map(|piece| piece.bytes.start.max(bytes.start)..piece.bytes.end.min(bytes.end)).collect()
            } else {
                Vec::new()
            };
            self.model.write(id, bytes, if withdraw { What::Leaving } else { What::Bare });
            stays.into_iter().for_each(|bytes| self.model.write(id, bytes, What::Bare));
        }
        Ok(format!("{done:?}"))
    }

    fn grow(&mut self, units: u64, align: u32, clock: &Ticks) -> Result<String, TestCaseError> {
        // An alignment above a place's has no promise of the fewest places.
        let align = align.min(PLACE.ilog2());
        let (size, bytes) = (units.max(1) * UNIT, UNIT << align);
        let growth = self.space.plan(units * UNIT, bytes, &|stamp| covers(clock, &ticks(stamp)));
        let said = format!("{growth:?}");
        prop_assert_eq!(
            growth.as_ref().map(|growth| growth.new),
            self.model.fewest_new_places(size, bytes, clock)
        );
        let Some(growth) = growth else { return Ok(said) };
        let span = self.model.span(growth.span);
        let block = growth.offset..growth.offset + growth.size;
        let new = self.model.new_places(span, &block);
        prop_assert_eq!(growth.new, new.len());
        prop_assert_eq!(
            new.first().copied().map_or(0..0, |first| first..new[new.len() - 1] + 1),
            growth.places.clone()
        );
        for piece in span.touching(&block) {
            prop_assert!(piece.what == What::Bare || piece.stamp().is_some_and(|stamp| covers(clock, stamp)));
        }
        for place in new {
            // The model is told to back each place; the block is cut before they come together with their neighbours.
            let bytes = self.model.span(growth.span).bytes(&(place..place + 1));
            let span = self.model.spans.iter_mut().find(|span| span.id == growth.span).expect("a span");
            span.pieces = back_apart(&span.pieces, &bytes);
        }
        let Some((taken, stamp)) = self.space.grow(&growth) else {
            return Err(TestCaseError::fail(format!("{growth:?} did not grow")));
        };
        prop_assert_eq!((taken.offset, taken.size, taken.span), (growth.offset, growth.size, growth.span));
        self.took((taken, stamp), units, align)?;
        Ok(said)
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        self.space.check().map_err(TestCaseError::fail)?;
        let model: Vec<_> = self.model.spans.iter().map(|span| (span.id, span.pieces.clone())).collect();
        prop_assert_eq!(seen(&self.space), model);
        let mut counts = SpaceCounts { spans: self.model.spans.len(), ..SpaceCounts::default() };
        let mut idle: Vec<(SpanId, Range<usize>, Ticks)> = Vec::new();
        for span in &self.model.spans {
            for piece in &span.pieces {
                match &piece.what {
                    What::Live(_) => {
                        counts.live_blocks += 1;
                        counts.live_bytes += piece.size();
                    }
                    What::Free(_) => {
                        counts.free_bytes += piece.size();
                        counts.largest_free = counts.largest_free.max(piece.size());
                    }
                    What::Bare | What::Leaving => {}
                }
            }
            for place in 0..span.places {
                let mut stamp = Ticks::new();
                let bytes = span.bytes(&(place..place + 1));
                if span.touching(&bytes).any(|piece| matches!(piece.what, What::Bare | What::Leaving)) {
                    continue;
                }
                counts.places_backed += 1;
                if span.live(place) > 0 {
                    continue;
                }
                for (&stream, &tick) in span.touching(&bytes).filter_map(|piece| piece.stamp()).flatten() {
                    stamp.entry(stream).and_modify(|known| *known = tick.max(*known)).or_insert(tick);
                }
                match idle.last_mut() {
                    Some((of, run, same)) if *of == span.id && run.end == place && *same == stamp => {
                        run.end += 1
                    }
                    _ => idle.push((span.id, place..place + 1, stamp)),
                }
            }
        }
        prop_assert_eq!(self.space.counts(), counts);
        let seen: Vec<_> = self.space.idle().map(|(span, run, stamp)| (span, run, ticks(&stamp))).collect();
        let by_span = |runs: &[(SpanId, Range<usize>, Ticks)]| {
            let mut runs = runs.to_vec();
            runs.sort_by_key(|(span, run, _)| (*span, run.start));
            runs
        };
        prop_assert_eq!(by_span(&seen), by_span(&idle));
        Ok(())
    }
}

/// Writes idle memory without bringing anything together.
fn back_apart(pieces: &[super::model::Piece], bytes: &Range<u64>) -> Vec<super::model::Piece> {
    use super::model::Piece;
    let mut out = Vec::new();
    for piece in pieces {
        let (from, to) = (piece.bytes.start.max(bytes.start), piece.bytes.end.min(bytes.end));
        if from >= to {
            out.push(piece.clone());
            continue;
        }
        let parts = [
            (piece.bytes.start..from, piece.what.clone()),
            (from..to, What::Free(Ticks::new())),
            (to..piece.bytes.end, piece.what.clone()),
        ];
        out.extend(
            parts
                .into_iter()
                .filter(|(bytes, _)| bytes.start < bytes.end)
                .map(|(bytes, what)| Piece { bytes, what }),
        );
    }
    out
}

fn run(home: Option<StreamId>, calls: &[Call]) -> Result<Vec<String>, TestCaseError> {
    let mut run = Run::new(home);
    let mut said = Vec::new();
    for call in [&Call::AddSpan { plain: false, places: PLACES }].into_iter().chain(calls) {
        said.push(run.call(call)?);
        run.compare().map_err(|error| TestCaseError::fail(format!("after {call:?}: {error}")))?;
    }
    Ok(said)
}

proptest! {
    #![proptest_config(crate::policy::few_under_miri(1500))]

    #[test]
    fn a_streams_space_does_what_the_model_does(calls in prop::collection::vec(call(), 0..short_under_miri(60))) {
        run(Some(HOME), &calls)?;
    }

    #[test]
    fn nobodys_space_does_what_the_model_does(calls in prop::collection::vec(call(), 0..short_under_miri(60))) {
        run(None, &calls)?;
    }

    #[test]
    fn the_same_calls_give_the_same_blocks(calls in prop::collection::vec(call(), 0..short_under_miri(40))) {
        prop_assert_eq!(run(Some(HOME), &calls)?, run(Some(HOME), &calls)?);
    }
}
