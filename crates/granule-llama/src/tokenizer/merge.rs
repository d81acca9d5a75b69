//! Byte-pair merging, shared by both kinds of tokenizer: again and again the best pair of neighbours becomes one.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

const NONE: usize = usize::MAX;

/// A piece of text in a doubly linked list.
struct Node<P> {
    /// `None` once it has become part of the piece before it.
    piece: Option<P>,
    prev: usize,
    next: usize,
}

/// Two neighbours that may become one.
struct Candidate<K, P> {
    key: K,
    left: usize,
    right: usize,
    pieces: (P, P),
    merged: P,
}

impl<K: Ord, P> Candidate<K, P> {
    /// The greatest key first, the leftmost pair of those.
    fn rank(&self) -> (&K, Reverse<usize>) {
        (&self.key, Reverse(self.left))
    }
}

impl<K: Ord, P> Ord for Candidate<K, P> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl<K: Ord, P> PartialOrd for Candidate<K, P> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<K: Ord, P> PartialEq for Candidate<K, P> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<K: Ord, P> Eq for Candidate<K, P> {}

/// The memory of a merge, kept from one to the next.
pub(super) struct Merger<K, P> {
    nodes: Vec<Node<P>>,
    heap: BinaryHeap<Candidate<K, P>>,
}

impl<K: Ord, P: Copy + PartialEq> Merger<K, P> {
    pub(super) fn new() -> Self {
        Self { nodes: Vec::new(), heap: BinaryHeap::new() }
    }

    /// Merge `pieces` for as long as `pair` knows what two neighbours become, and how good that is: the pair with the
    /// greatest key goes first, the leftmost of equals. Of `n` pieces at most `2 n` pairs are looked at twice; a
    /// merged piece must differ from both of its parts. Returns what is left, in order.
    pub(super) fn merge(
        &mut self,
        pieces: impl Iterator<Item = P>,
        pair: impl Fn(P, P) -> Option<(K, P)>,
    ) -> impl Iterator<Item = P> {
        self.nodes.clear();
        self.heap.clear();
        self.nodes.extend(pieces.enumerate().map(|(i, piece)| Node {
            piece: Some(piece),
            prev: i.checked_sub(1).unwrap_or(NONE),
            next: i + 1,
        }));
        if let Some(last) = self.nodes.last_mut() {
            last.next = NONE;
        }
        for left in 1..self.nodes.len() {
            self.consider(left - 1, left, &pair);
        }
        while let Some(best) = self.heap.pop() {
            // Pieces only grow or vanish, so a pair is still there if both of its pieces are.
            if self.nodes[best.left].piece != Some(best.pieces.0)
                || self.nodes[best.right].piece != Some(best.pieces.1)
            {
                continue;
            }
            let next = self.nodes[best.right].next;
            self.nodes[best.right].piece = None;
            self.nodes[best.left].piece = Some(best.merged);
            self.nodes[best.left].next = next;
            if next != NONE {
                self.nodes[next].prev = best.left;
            }
            self.consider(self.nodes[best.left].prev, best.left, &pair);
            self.consider(best.left, next, &pair);
        }
        self.nodes.iter().filter_map(|node| node.piece)
    }

    fn consider(&mut self, left: usize, right: usize, pair: &impl Fn(P, P) -> Option<(K, P)>) {
        let piece = |at: usize| self.nodes.get(at).and_then(|node| node.piece);
        if let (Some(a), Some(b)) = (piece(left), piece(right))
            && let Some((key, merged)) = pair(a, b)
        {
            self.heap.push(Candidate { key, left, right, pieces: (a, b), merged });
        }
    }
}
