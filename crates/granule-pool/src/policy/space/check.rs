//! The invariants of a space, as equations. For tests, and for whoever doubts.

use super::bins::Bins;
use super::nodes::{NONE, State};
use super::{Space, SpaceCounts};
use crate::policy::UNIT;

impl Space {
    /// Holds the tables against their invariants, and says which one they break:
    ///
    /// - each span is covered exactly: every node starts where the one below it ends, the first at 0, the last ends the span;
    /// - no two neighbours are apart that belong together;
    /// - bare and leaving nodes are whole places;
    /// - each free node is in the bin of its size and owner, each bare one in the list of those, nothing else is in any list;
    /// - the bitmaps have a bit for each bin that is not empty, and no other;
    /// - live + free = places backed * place, and all sums are those of the nodes;
    /// - every entry of the table is in a span or vacant.
    ///
    /// # Errors
    /// What does not hold, in words.
    pub fn check(&self) -> Result<(), String> {
        let mut sums = SpaceCounts::default();
        let (mut reached, mut free, mut bare, mut backed) = (0, 0, 0, 0);
        for (index, slot) in self.slots.iter().enumerate() {
            let Some(span) = &slot.span else { continue };
            sums.spans += 1;
            let (mut offset, mut below, mut has_finger) = (0, NONE, false);
            let mut places_bytes = 0;
            for id in self.nodes.upwards(span.first) {
                let node = &self.nodes[id];
                reached += 1;
                has_finger |= id == span.finger;
                equal("span", (id, node.span as usize), (id, index))?;
                equal("start", (id, node.offset, node.below), (id, offset, below))?;
                equal("whole units", (id, node.size % UNIT, node.size > 0), (id, 0, true))?;
                if below != NONE {
                    equal("apart", (below, id, self.may_join(below, id)), (below, id, false))?;
                }
                match node.state {
                    State::Vacant => return Err(format!("node {id} is vacant and in span {index}")),
                    State::Bare | State::Leaving => {
                        bare += usize::from(node.state == State::Bare);
                        equal(
                            "whole places",
                            (id, node.offset % span.place, node.size % span.place),
                            (id, 0, 0),
                        )?;
                    }
                    State::Free => {
                        free += 1;
                        sums.free_bytes += node.size;
                        sums.largest_free = sums.largest_free.max(node.size);
                        places_bytes += node.size;
                    }
                    State::Live => {
                        sums.live_blocks += 1;
                        sums.live_bytes += node.size;
                        places_bytes += node.size;
                    }
                }
                (offset, below) = (node.end(), id);
            }
            equal("end of span", (index, offset), (index, span.place * span.places as u64))?;
            equal("finger", (index, has_finger), (index, true))?;
            equal("whole places backed", (index, places_bytes % span.place), (index, 0))?;
            backed += places_bytes;
            sums.places_backed += (places_bytes / span.place) as usize;
        }
        equal("sums", self.counts(), sums)?;
        equal("live + free = backed", sums.live_bytes + sums.free_bytes, backed)?;
        equal("entries", reached + self.nodes.vacant(), self.nodes.len())?;
        self.check_lists(free, bare)
    }

    fn check_lists(&self, free: usize, bare: usize) -> Result<(), String> {
        let mut listed = 0;
        for (strangers, bins) in self.bins.iter().enumerate() {
            bins.check()?;
            for bin in bins.occupied(0) {
                let mut previous = NONE;
                for id in self.nodes.list(bins.first(bin)) {
                    let node = &self.nodes[id];
                    equal("state in a bin", (id, node.state), (id, State::Free))?;
                    equal("bin", (id, Bins::of(node.size)), (id, bin))?;
                    equal("whose bin", (id, self.is_own(&node.stamp)), (id, strangers == 0))?;
                    equal("previous in the bin", (id, node.previous), (id, previous))?;
                    previous = id;
                    listed += 1;
                }
            }
        }
        equal("free nodes in bins", listed, free)?;
        let mut listed = 0;
        let mut previous = NONE;
        for id in self.nodes.list(self.bare) {
            equal("bare", (id, self.nodes[id].state, self.nodes[id].previous), (id, State::Bare, previous))?;
            previous = id;
            listed += 1;
        }
        equal("bare nodes in their list", listed, bare)
    }
}

fn equal<T: PartialEq + std::fmt::Debug>(what: &str, is: T, should: T) -> Result<(), String> {
    if is == should { Ok(()) } else { Err(format!("{what}: {is:?} should be {should:?}")) }
}
