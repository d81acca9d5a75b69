//! Memory that comes and goes by whole places.

use std::ops::Range;

use super::nodes::{NONE, Node, State};
use super::{InUse, Space, Span, SpanId};
use crate::policy::Stamp;

impl Span {
    pub(super) fn start(&self, place: usize) -> u64 {
        self.place * place.min(self.places) as u64
    }

    /// The places that a stretch of bytes touches.
    pub(super) fn touched(&self, start: u64, end: u64) -> Range<usize> {
        (start / self.place) as usize..end.div_ceil(self.place) as usize
    }

    /// The places that lie within a stretch of bytes.
    fn within(&self, start: u64, end: u64) -> Range<usize> {
        let (first, end) = (start.div_ceil(self.place) as usize, (end / self.place) as usize);
        first..end.max(first)
    }

    /// How many bytes of the place, which it touches, a node has.
    fn overlap(&self, place: usize, node: &Node) -> u64 {
        node.end().min(self.start(place + 1)) - node.offset.max(self.start(place))
    }
}

impl Space {
    /// Those of the places that are bare have memory from here on: idle, and one with what lies beside it.
    pub fn back(&mut self, id: SpanId, places: Range<usize>) {
        let Some(span) = self.span(id) else { return };
        let (start, end) = (span.start(places.start), span.start(places.end));
        let bare: Vec<u32> =
            self.nodes.list(self.bare).filter(|&node| self.nodes[node].span == id.index).collect();
        for node in bare {
            let (from, to) = (self.nodes[node].offset.max(start), self.nodes[node].end().min(end));
            if from < to {
                let node = self.fill(node, from, to);
                self.rest(node);
            }
        }
    }

    /// Makes the stretch of a listed bare node, whole places, free. It is in no list then.
    pub(super) fn fill(&mut self, node: u32, start: u64, end: u64) -> u32 {
        let node = self.carve(node, start, end);
        self.nodes[node].state = State::Free;
        self.count_memory(self.nodes[node].span, self.nodes[node].size as i64);
        node
    }

    /// The memory of these places is gone: nothing is cut from them until they are backed again.
    ///
    /// # Errors
    /// [`InUse`] where a block lies in one of them; nothing has changed.
    pub fn bare(&mut self, id: SpanId, places: Range<usize>) -> Result<(), InUse> {
        self.empty(id, places, State::Bare)
    }

    /// The memory of these places is on its way out: nothing is cut from them, and [`Space::plan`] passes them by, until
    /// [`Space::bare`] says that it is gone. Bare ones stay bare.
    ///
    /// # Errors
    /// [`InUse`] where a block lies in one of them; nothing has changed.
    pub fn withdraw(&mut self, id: SpanId, places: Range<usize>) -> Result<(), InUse> {
        self.empty(id, places, State::Leaving)
    }

    fn empty(&mut self, id: SpanId, places: Range<usize>, state: State) -> Result<(), InUse> {
        let nodes = self.without_blocks(id, places)?;
        let mut freed = 0;
        for &node in &nodes {
            let entry = &mut self.nodes[node];
            if entry.state == State::Free {
                freed += entry.size;
            }
            if entry.state != State::Bare {
                entry.state = state;
                entry.stamp = Stamp::Idle;
            }
            self.list(node);
        }
        self.count_memory(id.index, -(freed as i64));
        // Only now: they are neighbours of each other.
        self.rest_all(nodes.into_iter());
        Ok(())
    }

    /// Maximal runs of places that have memory and no live byte, with what may still use them: runs of one stamp, ascending.
    pub fn idle(&self) -> impl Iterator<Item = (SpanId, Range<usize>, Stamp)> {
        let mut runs: Vec<(SpanId, Range<usize>, Stamp)> = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            let Some(span) = &slot.span else { continue };
            let id = SpanId { index: index as u32, generation: slot.generation };
            let mut add = |places: Range<usize>, stamp: &Stamp| match runs.last_mut() {
                _ if places.is_empty() => {}
                Some((of, run, same)) if *of == id && run.end == places.start && same == stamp => {
                    run.end = places.end
                }
                _ => runs.push((id, places, stamp.clone())),
            };
            // A place that no node fills alone: which, how much of it is free so far, and who may still use that.
            let mut shared = (usize::MAX, 0, Stamp::Idle);
            for node in self.nodes.upwards(span.first).map(|node| &self.nodes[node]) {
                if node.state != State::Free {
                    continue;
                }
                let touched = span.touched(node.offset, node.end());
                let whole = span.within(node.offset, node.end());
                let before = touched.start..whole.start.min(touched.end);
                let after = whole.end.max(touched.start)..touched.end;
                for (places, filled) in [(before, false), (whole, true), (after, false)] {
                    if filled {
                        add(places, &node.stamp);
                        continue;
                    }
                    for place in places {
                        if shared.0 != place {
                            shared = (place, 0, Stamp::Idle);
                        }
                        shared.1 += span.overlap(place, node);
                        shared.2.merge(&node.stamp);
                        if shared.1 == span.place {
                            add(place..place + 1, &shared.2);
                        }
                    }
                }
            }
        }
        runs.into_iter()
    }

    /// Cuts the places out as nodes in no list, where no block is among them.
    fn without_blocks(&mut self, id: SpanId, places: Range<usize>) -> Result<Vec<u32>, InUse> {
        let span = self.span(id).ok_or(InUse)?;
        let (start, end) = (span.start(places.start), span.start(places.end));
        if start >= end {
            return Ok(Vec::new());
        }
        let first = self.node_at(id, start).ok_or(InUse)?;
        let nodes: Vec<u32> =
            self.nodes.upwards(first).take_while(|&node| self.nodes[node].offset < end).collect();
        if nodes.iter().any(|&node| self.nodes[node].state == State::Live) {
            return Err(InUse);
        }
        let cut = |node: u32| {
            let (from, to) = (self.nodes[node].offset.max(start), self.nodes[node].end().min(end));
            self.carve(node, from, to)
        };
        Ok(nodes.into_iter().map(cut).collect())
    }

    /// The node in which `offset` lies.
    pub(super) fn node_at(&mut self, id: SpanId, offset: u64) -> Option<u32> {
        let mut node = self.span(id)?.finger;
        while offset < self.nodes[node].offset {
            node = self.nodes[node].below;
        }
        while offset >= self.nodes[node].end() {
            node = self.nodes[node].above;
            if node == NONE {
                return None;
            }
        }
        if let Some(span) = &mut self.slots[id.index()].span {
            span.finger = node;
        }
        Some(node)
    }

    /// So many bytes of the span, whole places, have got memory, or have lost it.
    fn count_memory(&mut self, span: u32, bytes: i64) {
        let place = self.slots[span as usize].span.as_ref().map_or(1, |span| span.place);
        self.counts.free_bytes = self.counts.free_bytes.saturating_add_signed(bytes);
        self.counts.places_backed =
            self.counts.places_backed.saturating_add_signed((bytes / place as i64) as isize);
    }
}
