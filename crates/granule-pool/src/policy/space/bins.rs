//! `Bins`: free nodes by size, in two levels, so that one that fits is found by looking at two bitmaps.
//!
//! ```text
//!  row 0        units 0 .. 31, a bin each
//!  row r >= 1   units 2^(r+4) .. 2^(r+5) - 1, in 32 bins of 2^(r-1) units
//!  rows         bit r is set  <=>  columns[r] != 0
//!  columns[r]   bit c is set  <=>  the list of bin 32 r + c has a node
//! ```
//!
//! After M. Masmano, I. Ripoll, A. Crespo, J. Real: "TLSF: a new dynamic memory allocator for real-time systems" (2004).

use super::nodes::{NONE, Nodes};
use crate::policy::UNIT;

const COLUMNS_LOG2: u32 = 5;
const COLUMNS: usize = 1 << COLUMNS_LOG2;
/// Sizes have 64 bits, of which those below a unit are zero; row 0 takes as many as a row has columns.
const ROWS: usize = (64 - UNIT.ilog2() - COLUMNS_LOG2 + 1) as usize;

#[derive(Debug)]
pub(super) struct Bins {
    rows: u64,
    columns: [u32; ROWS],
    heads: Box<[u32]>,
}

impl Bins {
    pub(super) fn new() -> Bins {
        Bins { rows: 0, columns: [0; ROWS], heads: vec![NONE; ROWS * COLUMNS].into_boxed_slice() }
    }

    /// The bin of nodes of this size, a multiple of the unit.
    #[inline]
    pub(super) fn of(size: u64) -> usize {
        let units = size / UNIT;
        if units < COLUMNS as u64 {
            return units as usize;
        }
        let shift = units.ilog2() - COLUMNS_LOG2;
        // The leading bit of the units counts as one row.
        (units >> shift) as usize + ((shift as usize) << COLUMNS_LOG2)
    }

    /// The first bin of which every node has at least this size.
    #[inline]
    pub(super) fn at_least(size: u64) -> usize {
        let units = size / UNIT;
        let step = if units < COLUMNS as u64 { 1 } else { 1 << (units.ilog2() - COLUMNS_LOG2) };
        Bins::of(size.saturating_add((step - 1) * UNIT))
    }

    /// The first bin from `bin` on that has a node.
    #[inline]
    pub(super) fn next(&self, bin: usize) -> Option<usize> {
        let (row, column) = (bin / COLUMNS, bin % COLUMNS);
        let here = self.columns.get(row)? & (u32::MAX << column);
        if here != 0 {
            return Some(row * COLUMNS + here.trailing_zeros() as usize);
        }
        let above = self.rows & (u64::MAX << (row + 1));
        if above == 0 {
            return None;
        }
        let row = above.trailing_zeros() as usize;
        Some(row * COLUMNS + self.columns[row].trailing_zeros() as usize)
    }

    /// The last bin that has a node: the largest ones.
    pub(super) fn last(&self) -> Option<usize> {
        let row = self.rows.checked_ilog2()? as usize;
        Some(row * COLUMNS + self.columns[row].ilog2() as usize)
    }

    /// The bins that have a node, from `bin` on.
    pub(super) fn occupied(&self, bin: usize) -> impl Iterator<Item = usize> + '_ {
        std::iter::successors(self.next(bin), |&bin| self.next(bin + 1))
    }

    /// The first node of the bin.
    #[inline]
    pub(super) fn first(&self, bin: usize) -> u32 {
        self.heads[bin]
    }

    #[inline]
    pub(super) fn insert(&mut self, nodes: &mut Nodes, index: u32) {
        let bin = Bins::of(nodes[index].size);
        nodes.push(&mut self.heads[bin], index);
        let row = bin / COLUMNS;
        self.columns[row] |= 1 << (bin % COLUMNS);
        self.rows |= 1 << row;
    }

    #[inline]
    pub(super) fn remove(&mut self, nodes: &mut Nodes, index: u32) {
        let bin = Bins::of(nodes[index].size);
        nodes.remove(&mut self.heads[bin], index);
        if self.heads[bin] == NONE {
            let row = bin / COLUMNS;
            self.columns[row] &= !(1 << (bin % COLUMNS));
            if self.columns[row] == 0 {
                self.rows &= !(1 << row);
            }
        }
    }

    /// The bitmaps against the lists: what is wrong, if anything.
    pub(super) fn check(&self) -> Result<(), String> {
        for (row, &columns) in self.columns.iter().enumerate() {
            if (self.rows >> row & 1 == 1) != (columns != 0) {
                return Err(format!("row {row}: bit {} but columns {columns:#x}", self.rows >> row & 1));
            }
            for column in 0..COLUMNS {
                let bin = row * COLUMNS + column;
                if (columns >> column & 1 == 1) != (self.heads[bin] != NONE) {
                    return Err(format!(
                        "bin {bin}: bit {} but head {}",
                        columns >> column & 1,
                        self.heads[bin]
                    ));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bin by its documentation: the last one that starts at or below the size.
    fn written_out(units: u64) -> usize {
        let lowest = |bin: usize| match (bin / 32, bin % 32) {
            (0, column) => column as u128,
            (row, column) => (1 << (row + 4)) + ((column as u128) << (row - 1)),
        };
        (0..ROWS * COLUMNS).rev().find(|&bin| lowest(bin) <= u128::from(units)).expect("a bin")
    }

    #[test]
    fn a_size_is_in_the_bin_that_the_documentation_says() {
        let around = (0..55).flat_map(|bit| {
            let power = 1_u64 << bit;
            [power - 1, power, power + 1, power + power / 3, power + power / 32]
        });
        let step = if cfg!(miri) { 37 } else { 1 };
        for units in (0..200).chain(around).step_by(step) {
            let bin = written_out(units);
            assert_eq!(Bins::of(units * UNIT), bin, "{units}");
            let smallest_of_its_bin = units == 0 || written_out(units - 1) != bin;
            let enough = if smallest_of_its_bin { bin } else { bin + 1 };
            assert_eq!(Bins::at_least(units * UNIT), enough, "{units}");
        }
        assert_eq!(Bins::of(u64::MAX), written_out(u64::MAX / UNIT));
    }
}
