//! Byte-pair merging, shared by both kinds of tokenizer: again and again the best pair of neighbours becomes one.

use crate::error::{Error, Result};
use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// In place of a neighbour: there is none.
const NONE: u32 = u32::MAX;
/// In place of the neighbour before: the piece has become part of that one.
const MERGED: u32 = u32::MAX - 1;

/// A piece of text. Pieces are small, because a long text has millions of them at once.
pub(super) trait Piece: Copy {
    /// In bytes, never 0.
    fn len(self) -> u32;
}

/// A piece of text in a doubly linked list.
struct Node<P> {
    piece: P,
    prev: u32,
    next: u32,
}

/// Two neighbours that may become one.
struct Candidate<K, P> {
    key: K,
    left: u32,
    right: u32,
    merged: P,
}

impl<K: Ord, P> Ord for Candidate<K, P> {
    /// The greatest key first, the leftmost pair of those.
    fn cmp(&self, other: &Self) -> Ordering {
        (&self.key, Reverse(self.left)).cmp(&(&other.key, Reverse(other.left)))
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

impl<K: Ord, P: Piece> Merger<K, P> {
    pub(super) fn new() -> Self {
        Self { nodes: Vec::new(), heap: BinaryHeap::new() }
    }

    /// Merge the `pieces` of a word of `len` bytes for as long as `pair` knows what two neighbours become, and how
    /// good that is: the pair with the greatest key goes first, the leftmost of equals. Returns what is left, in
    /// order. Of `n` pieces at most `3 n` pairs are looked at.
    ///
    /// # Errors
    /// [`Error::TextTooLong`].
    pub(super) fn merge(
        &mut self,
        len: usize,
        pieces: impl Iterator<Item = P>,
        pair: impl Fn(P, P) -> Option<(K, P)>,
    ) -> Result<impl Iterator<Item = P>> {
        // So all lengths and places in the list fit.
        if len >= MERGED as usize {
            return Err(Error::TextTooLong { len });
        }
        self.nodes.clear();
        self.heap.clear();
        self.nodes.extend((0u32..).zip(pieces).map(|(at, piece)| Node {
            piece,
            prev: at.checked_sub(1).unwrap_or(NONE),
            next: at + 1,
        }));
        if let Some(last) = self.nodes.last_mut() {
            last.next = NONE;
        }
        for right in 1..self.nodes.len() as u32 {
            self.consider(right - 1, right, &pair);
        }
        while let Some(best) = self.heap.pop() {
            let (left, right) = (&self.nodes[best.left as usize], &self.nodes[best.right as usize]);
            // Pieces only grow or vanish: a pair is as it was if both are there and as long together as they were.
            let there = left.prev != MERGED && right.prev != MERGED;
            if !there || left.piece.len() + right.piece.len() != best.merged.len() {
                continue;
            }
            let (prev, next) = (left.prev, right.next);
            self.nodes[best.right as usize].prev = MERGED;
            let left = &mut self.nodes[best.left as usize];
            left.piece = best.merged;
            left.next = next;
            if let Some(next) = self.nodes.get_mut(next as usize) {
                next.prev = best.left;
            }
            self.consider(prev, best.left, &pair);
            self.consider(best.left, next, &pair);
        }
        Ok(self.nodes.iter().filter(|node| node.prev != MERGED).map(|node| node.piece))
    }

    fn consider(&mut self, left: u32, right: u32, pair: &impl Fn(P, P) -> Option<(K, P)>) {
        if let (Some(a), Some(b)) = (self.nodes.get(left as usize), self.nodes.get(right as usize))
            && let Some((key, merged)) = pair(a.piece, b.piece)
        {
            self.heap.push(Candidate { key, left, right, merged });
        }
    }
}
