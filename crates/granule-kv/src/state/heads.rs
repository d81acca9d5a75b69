//! Layers whose key-value heads are in several caches: which part of a token's bytes each of them has. Pure.
//!
//! ```text
//! whole, one token of one layer:   K quants: head 0 | 1 | 2 …   K scales: head 0 | 1 | 2 …   V quants …   V scales …
//! a part with heads 1 and 2:       K quants: head     1 | 2     K scales: head     1 | 2     V quants …   V scales …
//! ```
//!
//! Sinks are the same: one plane for each of them, of keys and of values.

use std::ops::Range;

use crate::{Error, KvLayout};

/// Records of one kind, rows or a layer's sinks, whose planes all have the same heads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ByHeads {
    heads: usize,
    /// The bytes of one head in each plane.
    planes: Vec<usize>,
}

impl ByHeads {
    /// Rows of a layout's types and head dim, with so many heads.
    pub(super) fn rows(layout: &KvLayout, heads: usize) -> Result<ByHeads, Error> {
        let planes = layout.canonical_planes()?.map(|len| len / layout.shape().n_kv_heads);
        Ok(ByHeads { heads, planes: planes.into() })
    }

    /// A layer's sinks, likewise.
    pub(super) fn sinks(layout: &KvLayout, heads: usize) -> ByHeads {
        let planes = 2 * layout.sinks();
        let each = layout.sink_bytes() / (planes * layout.shape().n_kv_heads).max(1);
        ByHeads { heads, planes: vec![each; planes] }
    }

    /// The bytes that a part with these heads has of so many bytes of whole records.
    pub(super) fn part_len(&self, heads: &Range<usize>, whole: usize) -> usize {
        whole / self.heads.max(1) * heads.len()
    }

    /// Copies the records of a part that has these heads into those of the whole.
    pub(super) fn put(&self, heads: &Range<usize>, part: &[u8], whole: &mut [u8]) {
        let mut part = part;
        for place in self.places(heads, whole.len()) {
            let (these, rest) = part.split_at(place.len());
            whole[place].copy_from_slice(these);
            part = rest;
        }
    }

    /// What a part with these heads has of the whole's records, in `buffer` unless it has all.
    pub(super) fn take<'a>(
        &self,
        heads: &Range<usize>,
        whole: &'a [u8],
        buffer: &'a mut Vec<u8>,
    ) -> &'a [u8] {
        if heads.len() == self.heads {
            return whole;
        }
        buffer.clear();
        self.places(heads, whole.len()).for_each(|place| buffer.extend_from_slice(&whole[place]));
        buffer
    }

    /// Where the bytes of these heads lie in so many bytes of whole records, in order.
    fn places(&self, heads: &Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> + use<'_> {
        let (heads, record) = (heads.clone(), self.heads * self.planes.iter().sum::<usize>());
        (0..len).step_by(record.max(1)).flat_map(move |start| {
            let heads = heads.clone();
            self.planes.iter().scan(start, move |at, each| {
                let plane = *at;
                *at += self.heads * each;
                Some(plane + heads.start * each..plane + heads.end * each)
            })
        })
    }
}

/// Whether parts with these heads, in their order, make up heads from 0 on without a gap, and how many; the same heads may be in several.
pub(super) fn covered(parts: &[Range<usize>]) -> Option<usize> {
    let mut start = 0;
    parts.iter().try_fold(0, |end, part| {
        let follows = (start..=end).contains(&part.start) && part.end >= end && !part.is_empty();
        start = part.start;
        follows.then_some(part.end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_cut_and_put_together_by_heads() {
        // Three heads; two planes, of two bytes a head and of one.
        let rows = ByHeads { heads: 3, planes: vec![2, 1] };
        let whole: Vec<u8> = (0..18).collect();
        let mut part = Vec::new();
        rows.take(&(1..3), &whole, &mut part);
        assert_eq!(rows.take(&(0..3), &whole, &mut Vec::new()), whole);
        assert_eq!(part, [2, 3, 4, 5, 7, 8, 11, 12, 13, 14, 16, 17]);
        let mut back = vec![0xff; 18];
        rows.put(&(1..3), &part, &mut back);
        rows.put(&(0..1), &[0, 1, 6, 9, 10, 15], &mut back);
        assert_eq!(back, whole);
    }

    #[test]
    fn parts_without_gaps_cover() {
        for (parts, n) in [
            (&[0..2, 2..3][..], Some(3)),
            (&[0..1, 0..1, 1..2], Some(2)),
            (&[0..2, 1..3], Some(3)),
            (&[0..1, 2..3], None),
            (&[1..2, 2..3], None),
            (&[0..2, 2..2], None),
            (&[0..2, 2..3, 1..3], None),
            (&[0..3, 0..2], None),
        ] {
            assert_eq!(covered(parts), n, "{parts:?}");
        }
    }
}
