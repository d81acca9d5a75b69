//! Blocks that no single free node has room for: neighbours joined, with new memory between them or without.

use std::ops::Range;

use super::nodes::{NONE, State};
use super::{Block, Space, Span, SpanId, Want};
use crate::policy::Stamp;

/// Where memory would have to come so that a block can be cut: see [`Space::plan`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Growth {
    /// The span.
    pub span: SpanId,
    /// The places from the first that needs memory to the last; those among them that have some keep it.
    pub places: Range<usize>,
    /// How many of them need memory.
    pub new: usize,
    /// Where the block will start in the span, in bytes.
    pub offset: u64,
    /// The size that the block will have, in bytes.
    pub size: u64,
}

/// A stretch of nodes that a block may be cut across: all free and usable, or bare.
struct Window {
    start: u64,
    end: u64,
    /// The bare stretches in it, ascending.
    bare: Vec<Range<u64>>,
}

impl Window {
    /// The places that need memory for a block at `start..end`: from the first to the last of them, and how many.
    fn needs(&self, span: &Span, start: u64, end: u64) -> (Range<usize>, usize) {
        let from = self.bare.partition_point(|bare| bare.end <= start);
        let mut needed = 0..0;
        let mut count = 0;
        for bare in self.bare[from..].iter().take_while(|bare| bare.start < end) {
            let places = span.touched(bare.start.max(start), bare.end.min(end));
            count += places.len();
            needed = if needed.is_empty() { places } else { needed.start..places.end };
        }
        (needed, count)
    }
}

impl Space {
    /// Where memory would have to come so that [`Space::grow`] gets a block of at least `size` bytes at a multiple of `align`:
    /// with the fewest places, counting free `usable` memory beside them; of those plans the lowest. The alignment
    /// is at most the size of a place. None where no span has room: add one.
    pub fn plan(&self, size: u64, align: u64, usable: &dyn Fn(&Stamp) -> bool) -> Option<Growth> {
        let want = Want::new(size, align)?;
        let bare = self.nodes.list(self.bare);
        let best = bare.filter_map(|node| self.plan_around(node, want, usable));
        best.min_by_key(|growth| (growth.new, growth.span, growth.offset))
    }

    /// The block that was planned, now that its places have memory, with the stamp of all that it is joined from. None where
    /// something has taken its place since the plan; then nothing has changed.
    pub fn grow(&mut self, growth: &Growth) -> Option<(Block, Stamp)> {
        let end = growth.offset.checked_add(growth.size)?;
        let first = self.node_at(growth.span, growth.offset)?;
        let nodes: Vec<u32> =
            self.nodes.upwards(first).take_while(|&node| self.nodes[node].offset < end).collect();
        let is_open = |&node: &u32| matches!(self.nodes[node].state, State::Free | State::Bare);
        let last = *nodes.last()?;
        if self.nodes[last].end() < end || !nodes.iter().all(is_open) {
            return None;
        }
        for node in nodes {
            if self.nodes[node].state == State::Bare {
                let span = self.span(growth.span)?;
                let touched =
                    span.touched(self.nodes[node].offset.max(growth.offset), self.nodes[node].end().min(end));
                let (start, end) = (span.start(touched.start), span.start(touched.end));
                let node = self.fill(node, start, end);
                self.list(node);
            }
        }
        self.take_across(growth.span, growth.offset, end)
    }

    /// As [`Space::take`], from neighbours that are free and usable and only have different stamps: the smallest such stretch
    /// that has room. It looks at every node there is.
    pub fn take_joined(
        &mut self,
        size: u64,
        align: u64,
        usable: &dyn Fn(&Stamp) -> bool,
    ) -> Option<(Block, Stamp)> {
        let want = Want::new(size, align)?;
        let mut best: Option<(u64, SpanId, u64)> = None;
        for first in self.firsts() {
            let span = self.nodes[first].span;
            let mut offer = |run: Range<u64>| {
                let Some(start) = self.align_up(span, run.start, want.align) else { return };
                let fits = start.checked_add(want.size).is_some_and(|end| end <= run.end);
                if fits && best.is_none_or(|(length, ..)| run.end - run.start < length) {
                    best = Some((run.end - run.start, self.id_of(span), start));
                }
            };
            let mut run = 0..0;
            for node in self.nodes.upwards(first).map(|node| &self.nodes[node]) {
                if node.state == State::Free && (node.stamp.is_idle() || usable(&node.stamp)) {
                    run = if run.is_empty() { node.offset..node.end() } else { run.start..node.end() };
                } else {
                    offer(std::mem::take(&mut run));
                }
            }
            offer(run);
        }
        let (_, span, start) = best?;
        self.take_across(span, start, start + want.size)
    }

    /// Makes a block of a stretch that listed free nodes cover.
    fn take_across(&mut self, span: SpanId, start: u64, end: u64) -> Option<(Block, Stamp)> {
        let first = self.node_at(span, start)?;
        let until = self.nodes[first].end().min(end);
        let node = self.carve(first, start, until);
        while self.nodes[node].end() < end {
            let above = self.nodes[node].above;
            let (from, until) = (self.nodes[above].offset, self.nodes[above].end().min(end));
            let above = self.carve(above, from, until);
            self.merge(node, above);
        }
        let taken = self.hand_out(node);
        // What is left at the ends may be new memory, which belongs to what lies beside it.
        for side in [self.nodes[node].below, self.nodes[node].above] {
            if side != NONE && self.nodes[side].state == State::Free {
                self.unlist(side);
                self.rest(side);
            }
        }
        Some(taken)
    }

    /// The best plan in the stretch of open nodes around a bare one.
    fn plan_around(&self, bare: u32, want: Want, usable: &dyn Fn(&Stamp) -> bool) -> Option<Growth> {
        let index = self.nodes[bare].span;
        let span = self.slots[index as usize].span.as_ref()?;
        let window = self.window(bare, usable)?;
        // The fewest places are touched where the block starts or ends at the edge of a bare stretch, or as close to one as
        // its alignment allows: from anywhere else it can be moved towards an edge and touch no place more.
        let edges =
            window.bare.iter().flat_map(|bare| [bare.start, bare.end]).chain([window.start, window.end]);
        let starts = edges.flat_map(|edge| [Some(edge), edge.checked_sub(want.size)]).flatten();
        let starts = starts.flat_map(|start| {
            let up = self.align_up(index, start, want.align);
            let down = up.filter(|&up| up > start).and_then(|up| up.checked_sub(want.align));
            [up, down]
        });
        let plans = starts.flatten().filter_map(|start| {
            let end = start.checked_add(want.size)?;
            if start < window.start || end > window.end {
                return None;
            }
            let (places, new) = window.needs(span, start, end);
            Some(Growth { span: self.id_of(index), places, new, offset: start, size: want.size })
        });
        plans.min_by_key(|growth| (growth.new, growth.offset))
    }

    /// The stretch of open nodes around a bare one. None where it was seen from a bare node below.
    fn window(&self, bare: u32, usable: &dyn Fn(&Stamp) -> bool) -> Option<Window> {
        let is_open = |node: u32| match self.nodes[node].state {
            State::Bare => true,
            State::Free => self.nodes[node].stamp.is_idle() || usable(&self.nodes[node].stamp),
            _ => false,
        };
        let mut first = bare;
        while let below = self.nodes[first].below
            && below != NONE
            && is_open(below)
        {
            if self.nodes[below].state == State::Bare {
                return None;
            }
            first = below;
        }
        let open: Vec<u32> = self.nodes.upwards(first).take_while(|&node| is_open(node)).collect();
        let stretch = |node: u32| self.nodes[node].offset..self.nodes[node].end();
        let bare = open
            .iter()
            .filter(|&&node| self.nodes[node].state == State::Bare)
            .map(|&node| stretch(node))
            .collect();
        Some(Window { start: stretch(first).start, end: stretch(*open.last()?).end, bare })
    }
}
