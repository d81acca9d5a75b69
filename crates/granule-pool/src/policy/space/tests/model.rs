//! A space as naive as can be: each span is a list of pieces, and every change writes a stretch and tidies the whole list.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::policy::{BlockId, Space, SpanId, Stamp, StreamId, Tick, UNIT};

/// A stamp, or a clock, as a map.
pub(super) type Ticks = BTreeMap<StreamId, Tick>;

pub(super) fn ticks(stamp: &Stamp) -> Ticks {
    stamp.iter().collect()
}

/// True where the clock has all that the stamp says.
pub(super) fn covers(clock: &Ticks, stamp: &Ticks) -> bool {
    stamp.iter().all(|(stream, tick)| clock.get(stream).is_some_and(|known| known >= tick))
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum What {
    Bare,
    Leaving,
    Free(Ticks),
    Live(BlockId),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) bytes: Range<u64>,
    pub(super) what: What,
}

impl Piece {
    pub(super) fn size(&self) -> u64 {
        self.bytes.end - self.bytes.start
    }

    /// The stamp of a free piece.
    pub(super) fn stamp(&self) -> Option<&Ticks> {
        if let What::Free(stamp) = &self.what { Some(stamp) } else { None }
    }
}

#[derive(Clone, Debug)]
pub(super) struct ModelSpan {
    pub(super) id: SpanId,
    pub(super) base: u64,
    pub(super) place: u64,
    pub(super) places: usize,
    pub(super) pieces: Vec<Piece>,
}

impl ModelSpan {
    pub(super) fn bytes(&self, places: &Range<usize>) -> Range<u64> {
        let at = |place: usize| self.place * place.min(self.places) as u64;
        at(places.start)..at(places.end)
    }

    /// The pieces that touch a stretch.
    pub(super) fn touching(&self, bytes: &Range<u64>) -> impl Iterator<Item = &Piece> {
        self.pieces.iter().filter(move |piece| piece.bytes.start < bytes.end && bytes.start < piece.bytes.end)
    }

    /// Live bytes of a place.
    pub(super) fn live(&self, place: usize) -> u64 {
        let bytes = self.bytes(&(place..place + 1));
        let live = self.touching(&bytes).filter(|piece| matches!(piece.what, What::Live(_)));
        live.map(|piece| piece.bytes.end.min(bytes.end) - piece.bytes.start.max(bytes.start)).sum()
    }
}

#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    pub(super) home: Option<StreamId>,
    pub(super) spans: Vec<ModelSpan>,
}

impl Model {
    pub(super) fn add_span(&mut self, id: SpanId, base: u64, place: u64, places: usize) {
        let pieces = vec![Piece { bytes: 0..place * places as u64, what: What::Bare }];
        self.spans.push(ModelSpan { id, base, place, places, pieces });
        self.spans.sort_by_key(|span| span.id);
    }

    pub(super) fn span(&self, id: SpanId) -> &ModelSpan {
        self.spans.iter().find(|span| span.id == id).expect("a span")
    }

    /// Writes a stretch over whatever was there.
    pub(super) fn write(&mut self, id: SpanId, bytes: Range<u64>, what: What) {
        let span = self.spans.iter_mut().find(|span| span.id == id).expect("a span");
        let mut pieces = Vec::new();
        for piece in &span.pieces {
            for part in [
                piece.bytes.start..piece.bytes.end.min(bytes.start),
                piece.bytes.start.max(bytes.end)..piece.bytes.end,
            ] {
                if part.start < part.end {
                    pieces.push(Piece { bytes: part, what: piece.what.clone() });
                }
            }
        }
        pieces.push(Piece { bytes, what });
        pieces.sort_by_key(|piece| piece.bytes.start);
        span.pieces = pieces;
        self.tidy();
    }

    /// Brings together what belongs together.
    fn tidy(&mut self) {
        let home = self.home;
        let own = |stamp: &Ticks| stamp.keys().all(|stream| Some(*stream) == home);
        for span in &mut self.spans {
            let mut tidy: Vec<Piece> = Vec::new();
            for piece in span.pieces.drain(..) {
                match (tidy.last_mut(), &piece.what) {
                    (Some(Piece { bytes, what: What::Free(a) }), What::Free(b))
                        if a == b || own(a) && own(b) =>
                    {
                        bytes.end = piece.bytes.end;
                        for (&stream, &tick) in b {
                            let known = a.entry(stream).or_default();
                            *known = tick.max(*known);
                        }
                    }
                    (Some(Piece { bytes, what: What::Bare }), What::Bare)
                    | (Some(Piece { bytes, what: What::Leaving }), What::Leaving) => {
                        bytes.end = piece.bytes.end
                    }
                    _ => tidy.push(piece),
                }
            }
            span.pieces = tidy;
        }
    }

    /// Changes the stamps of free pieces, all of them before any come together.
    pub(super) fn stamp_anew(&mut self, anew: impl Fn(&Ticks) -> Option<Ticks>) {
        for piece in self.spans.iter_mut().flat_map(|span| &mut span.pieces) {
            if let What::Free(stamp) = &mut piece.what
                && let Some(other) = anew(stamp)
            {
                *stamp = other;
            }
        }
        self.tidy();
    }

    pub(super) fn free(&self) -> impl Iterator<Item = (&ModelSpan, &Piece)> {
        let pieces = self.spans.iter().flat_map(|span| span.pieces.iter().map(move |piece| (span, piece)));
        pieces.filter(|(_, piece)| matches!(piece.what, What::Free(_)))
    }

    /// The first offset in a stretch at which the request fits, trying each unit.
    pub(super) fn fits(span: &ModelSpan, bytes: &Range<u64>, size: u64, align: u64) -> Option<u64> {
        let starts = (bytes.start..bytes.end).step_by(UNIT as usize);
        let aligned = starts.filter(|start| (span.base + start).is_multiple_of(align));
        aligned.into_iter().find(|start| start + size <= bytes.end)
    }

    /// The fewest places that need memory so that neighbours with some bare ones among them have room, trying each unit.
    pub(super) fn fewest_new_places(&self, size: u64, align: u64, clock: &Ticks) -> Option<usize> {
        let mut fewest: Option<usize> = None;
        for span in &self.spans {
            let open = |piece: &Piece| match &piece.what {
                What::Bare => true,
                What::Free(stamp) => covers(clock, stamp),
                What::Leaving | What::Live(_) => false,
            };
            for stretch in span.pieces.chunk_by(|a, b| open(a) && open(b)) {
                if !open(&stretch[0]) || stretch.iter().all(|piece| piece.what != What::Bare) {
                    continue;
                }
                let bytes = stretch[0].bytes.start..stretch[stretch.len() - 1].bytes.end;
                for start in (bytes.start..bytes.end).step_by(UNIT as usize) {
                    if !(span.base + start).is_multiple_of(align) || start + size > bytes.end {
                        continue;
                    }
                    let new = self.new_places(span, &(start..start + size)).len();
                    fewest = Some(fewest.map_or(new, |fewest| fewest.min(new)));
                }
            }
        }
        fewest
    }

    /// The places of a stretch that have no memory.
    pub(super) fn new_places(&self, span: &ModelSpan, bytes: &Range<u64>) -> Vec<usize> {
        let touched = (bytes.start / span.place) as usize..bytes.end.div_ceil(span.place) as usize;
        let is_bare = |place: &usize| {
            span.touching(&span.bytes(&(*place..*place + 1))).all(|piece| matches!(piece.what, What::Bare))
        };
        touched.filter(is_bare).collect()
    }
}

/// What a space says of itself, in the words of the model.
pub(super) fn seen(space: &Space) -> Vec<(SpanId, Vec<Piece>)> {
    use super::super::nodes::State;
    let mut spans = Vec::new();
    for first in space.firsts() {
        let pieces = space.nodes.upwards(first).map(|index| {
            let node = &space.nodes[index];
            let what = match node.state {
                State::Vacant => panic!("a vacant node in a span"),
                State::Bare => What::Bare,
                State::Leaving => What::Leaving,
                State::Free => What::Free(ticks(&node.stamp)),
                State::Live => What::Live(BlockId { index, generation: node.generation }),
            };
            Piece { bytes: node.offset..node.end(), what }
        });
        spans.push((space.id_of(space.nodes[first].span), pieces.collect()));
    }
    spans.sort_by_key(|(id, _)| *id);
    spans
}
