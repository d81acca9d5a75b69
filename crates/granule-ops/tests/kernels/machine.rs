//! What runs a kernel in these tests, and the memory it runs on.

use granule_ops::RowShape;
use granule_ops::compare::Difference;

/// Bytes that no test writes by itself.
const UNTOUCHED: u8 = 0xa5;

/// Bytes on each side of a memory that have to stay as they are: more than the widest access reaches.
const MARGIN: usize = 64;

/// Memory at a chosen distance from a multiple of 16, with untouched bytes around it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Placed {
    words: Vec<u128>,
    start: usize,
    len: usize,
}

impl Placed {
    /// `len` untouched bytes, `past` (below 16) bytes past a multiple of 16.
    pub(crate) fn new(len: usize, past: usize) -> Placed {
        let words = (MARGIN + past + len + MARGIN).div_ceil(16);
        Placed { words: vec![u128::from_ne_bytes([UNTOUCHED; 16]); words], start: MARGIN + past, len }
    }

    pub(crate) fn of(bytes: &[u8], past: usize) -> Placed {
        let mut placed = Placed::new(bytes.len(), past);
        placed.bytes_mut().copy_from_slice(bytes);
        placed
    }

    /// The memory and what is around it; it begins at a multiple of 16.
    pub(crate) fn all(&self) -> &[u8] {
        bytemuck::cast_slice(&self.words)
    }

    pub(crate) fn all_mut(&mut self) -> &mut [u8] {
        bytemuck::cast_slice_mut(&mut self.words)
    }

    /// Where the memory is in all of it.
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.len
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.all()[self.range()]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let range = self.range();
        &mut self.all_mut()[range]
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// Runs kernels. Shapes belong together, and memory has the alignment that the kernels want.
pub(crate) trait Machine {
    /// Whether numbers that cannot be encoded are refused, and what was to be written is then anything.
    const REFUSES: bool = false;

    /// Answers the bits of the flag that it raised.
    fn quantize(&self, from: &Placed, x: &RowShape, to: &mut Placed, y: &RowShape) -> u32;
    fn dequantize(&self, from: &Placed, x: &RowShape, to: &mut Placed, y: &RowShape);
    fn relayout(&self, from: &Placed, x: &RowShape, to: &mut Placed, y: &RowShape);
    fn fill(&self, to: &mut Placed, pattern: &[u8]);
    fn compare(&self, a: &Placed, b: &Placed) -> Difference;
}
