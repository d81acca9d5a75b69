//! The table of nodes: each is a stretch of a span, linked to its physical neighbours and into at most one list.

use crate::policy::Stamp;

/// No node: the end of a list.
pub(super) const NONE: u32 = u32::MAX;

/// What a stretch of a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The entry of the table stands for nothing and is in the list of vacant ones.
    Vacant,
    /// Whole places without memory.
    Bare,
    /// Whole places whose memory is on its way out: out of use, and not to be filled yet.
    Leaving,
    /// Memory that nobody has.
    Free,
    /// A block.
    Live,
}

/// One cache line: freeing a block looks at three of them.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Node {
    /// Where it starts in its span, and how long it is.
    pub(super) offset: u64,
    pub(super) size: u64,
    /// The physical neighbours in the span.
    pub(super) below: u32,
    pub(super) above: u32,
    /// The neighbours in the list it is in: a bin where it is free, the bare ones where it is bare, the vacant ones.
    pub(super) previous: u32,
    pub(super) next: u32,
    pub(super) span: u32,
    /// How many blocks this entry has been: what tells a block's id from those of the blocks before it.
    pub(super) generation: u32,
    pub(super) state: State,
    /// Of a free node: who may still use it. It changes only while the node is in no list.
    pub(super) stamp: Stamp,
}

impl Node {
    pub(super) fn end(&self) -> u64 {
        self.offset + self.size
    }
}

const _: () = assert!(size_of::<Node>() == 64);

/// The nodes, by index. An entry that is vacated is used again before the table grows.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    entries: Vec<Node>,
    vacant: Vec<u32>,
}

impl Nodes {
    /// How many entries there are, vacant ones included.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many entries stand for nothing.
    pub(super) fn vacant(&self) -> usize {
        self.vacant.len()
    }

    pub(super) fn get_mut(&mut self, index: u32) -> Option<&mut Node> {
        self.entries.get_mut(index as usize)
    }

    /// A node without neighbours.
    pub(super) fn add(&mut self, span: u32, offset: u64, size: u64, state: State) -> u32 {
        let node = Node {
            offset,
            size,
            below: NONE,
            above: NONE,
            previous: NONE,
            next: NONE,
            span,
            generation: 0,
            state,
            stamp: Stamp::Idle,
        };
        match self.vacant.pop() {
            Some(index) => {
                let generation = self[index].generation;
                self[index] = Node { generation, ..node };
                index
            }
            None => {
                // There is no memory for 2^32 nodes and for what they are about.
                let index = self.entries.len() as u32;
                self.entries.push(node);
                index
            }
        }
    }

    /// Cuts a node in two at `offset`, which lies within it. The upper part is a node of the same state and stamp.
    pub(super) fn split(&mut self, lower: u32, offset: u64) -> u32 {
        let Node { span, state, above, .. } = self[lower];
        let (size, stamp) = (self[lower].end() - offset, self[lower].stamp.clone());
        let upper = self.add(span, offset, size, state);
        self[upper].stamp = stamp;
        self[upper].below = lower;
        self[upper].above = above;
        if above != NONE {
            self[above].below = upper;
        }
        self[lower].above = upper;
        self[lower].size -= size;
        upper
    }

    /// Makes a node one with the neighbour above it, whose entry becomes vacant.
    pub(super) fn absorb(&mut self, lower: u32, upper: u32) {
        let Node { size, above, .. } = self[upper];
        self[lower].size += size;
        self[lower].above = above;
        if above != NONE {
            self[above].below = lower;
        }
        self.vacate(upper);
    }

    /// The entry stands for nothing from here on.
    pub(super) fn vacate(&mut self, index: u32) {
        let node = &mut self[index];
        node.state = State::Vacant;
        node.stamp = Stamp::Idle;
        self.vacant.push(index);
    }

    /// Puts a node, which is in no list, in front of the list that starts at `head`.
    #[inline]
    pub(super) fn push(&mut self, head: &mut u32, index: u32) {
        let next = std::mem::replace(head, index);
        let node = &mut self[index];
        (node.previous, node.next) = (NONE, next);
        if next != NONE {
            self[next].previous = index;
        }
    }

    /// Takes a node out of the list that starts at `head`.
    #[inline]
    pub(super) fn remove(&mut self, head: &mut u32, index: u32) {
        let Node { previous, next, .. } = self[index];
        match previous {
            NONE => *head = next,
            previous => self[previous].next = next,
        }
        if next != NONE {
            self[next].previous = previous;
        }
    }

    /// The nodes of a list from `first` on.
    pub(super) fn list(&self, first: u32) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(some(first), |&index| some(self[index].next))
    }

    /// The physical neighbours of a span from `first` on, upwards.
    pub(super) fn upwards(&self, first: u32) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(some(first), |&index| some(self[index].above))
    }
}

fn some(index: u32) -> Option<u32> {
    (index != NONE).then_some(index)
}

impl std::ops::Index<u32> for Nodes {
    type Output = Node;

    #[inline]
    fn index(&self, index: u32) -> &Node {
        &self.entries[index as usize]
    }
}

impl std::ops::IndexMut<u32> for Nodes {
    #[inline]
    fn index_mut(&mut self, index: u32) -> &mut Node {
        &mut self.entries[index as usize]
    }
}
