//! `Grid`: which granule-sized places of a range a group's rows lie in, and the other way round. Pure arithmetic.

use std::ops::Range;

/// A group's rows over its range's places.
///
/// ```text
/// place          0            1            2            3
/// byte           |------------|------------|------------|-- …    granule
///                |sinks|  r0  |  r1  |  r2 |   r3  |  r4  …
///                      rows_at                                   + row * stride
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grid {
    /// Byte of row 0.
    pub(crate) rows_at: usize,
    /// Bytes from one row to the next.
    pub(crate) stride: usize,
    /// Bytes of a place.
    pub(crate) granule: usize,
    /// Rows that lie in the bytes before row 0 too.
    pub(crate) sinks: usize,
}

impl Grid {
    /// The bytes of these rows, sinks not among them.
    pub(crate) fn bytes(&self, rows: &Range<usize>) -> Range<usize> {
        self.rows_at + rows.start * self.stride..self.rows_at + rows.end * self.stride
    }

    /// The bytes that writing these rows touches, as one range: with the sinks where one of the rows is one.
    pub(crate) fn reach(&self, rows: &Range<usize>) -> Range<usize> {
        match self.bytes(rows) {
            bytes if rows.is_empty() => bytes.start..bytes.start,
            bytes if rows.start < self.sinks => 0..bytes.end,
            bytes => bytes,
        }
    }

    /// The places that [`Grid::reach`] touches.
    pub(crate) fn places(&self, rows: &Range<usize>) -> Range<usize> {
        let bytes = self.reach(rows);
        if bytes.is_empty() { 0..0 } else { bytes.start / self.granule..bytes.end.div_ceil(self.granule) }
    }

    /// How many rows end before a place does not: rows `0..` the answer lie in the places `0..place`.
    pub(crate) fn rows_before(&self, place: usize) -> usize {
        place.saturating_mul(self.granule).saturating_sub(self.rows_at) / self.stride.max(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 8 } else { 256 }))]
        /// Against bytes painted one by one.
        #[test]
        fn like_painted_bytes(
            rows_at in 0..50usize, stride in 1..40usize, granule in 1..30usize, sinks in 0..3usize,
            start in 0..12usize, len in 0..12usize,
        ) {
            let sinks = if rows_at == 0 { 0 } else { sinks };
            let grid = Grid { rows_at, stride, granule, sinks };
            let rows = start..start + len;
            let mut touched = vec![false; 40 + (rows_at + 24 * stride) / granule];
            for row in rows.clone() {
                for byte in rows_at + row * stride..rows_at + (row + 1) * stride {
                    touched[byte / granule] = true;
                }
                if row < sinks {
                    // A row that is a sink is written together with all bytes up to it.
                    (0..rows_at + (row + 1) * stride).for_each(|byte| touched[byte / granule] = true);
                }
            }
            let places = grid.places(&rows);
            for (place, &touched) in touched.iter().enumerate() {
                prop_assert_eq!(places.contains(&place), touched, "{} of {:?}", place, places);
            }
            for place in 0..touched.len() {
                let before = (0..24).take_while(|row| rows_at + (row + 1) * stride <= place * granule).count();
                prop_assert_eq!(grid.rows_before(place).min(24), before);
            }
        }
    }
}
