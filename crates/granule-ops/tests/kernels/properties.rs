//! Every kernel against the oracle, on shapes around each boundary and numbers of every kind.

use granule_ops::compare::Difference;
use granule_ops::{Planes, RowShape};
use granule_quant::DType;
use proptest::prelude::*;

use crate::machine::{Machine, Placed};
use crate::numbers::{any_bytes, float_bytes};
use crate::oracle;
use crate::random::Random;

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const BLOCKS: [DType; 2] = [DType::Q8_0, DType::Q4_0];

/// What a test of rows is run on.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    floats: DType,
    dtype: DType,
    rows: usize,
    cols: usize,
    /// Between the rows, in steps of the least alignment.
    gaps: [usize; 2],
    /// Before each plane; none for plain rows.
    planar: Option<[usize; 2]>,
    /// Bytes past a multiple of 16 at which plain rows of blocks begin.
    past: usize,
    wild: bool,
    seed: u64,
}

impl Case {
    /// The rows of floats.
    fn floats(&self) -> RowShape {
        let bytes = self.floats.row_bytes(self.cols).unwrap();
        RowShape::strided(self.floats, self.rows, self.cols, bytes + self.gaps[0] * 16).unwrap()
    }

    fn plain(&self) -> RowShape {
        let bytes = self.dtype.row_bytes(self.cols).unwrap();
        RowShape::strided(self.dtype, self.rows, self.cols, bytes + self.gaps[1] * 2).unwrap()
    }

    fn planar(&self, [before_quants, before_scales]: [usize; 2]) -> RowShape {
        let dense = RowShape::planar(self.dtype, 1, self.cols).unwrap();
        let quants = before_quants * 16;
        let scales = quants + dense.planes().unwrap().scales + before_scales * 16;
        let stride = dense.stride() + (before_quants + before_scales + self.gaps[1]) * 16;
        RowShape::planar_at(self.dtype, self.rows, self.cols, stride, Planes { quants, scales }).unwrap()
    }

    /// The rows of blocks, and how far past a multiple of 16 they begin.
    fn blocks(&self) -> (RowShape, usize) {
        match self.planar {
            Some(before) => (self.planar(before), 0),
            None => (self.plain(), self.past),
        }
    }
}

/// Rows of up to `blocks` blocks, around the sizes at which something new begins.
pub(crate) fn case(blocks: usize) -> impl Strategy<Value = Case> {
    let lengths: Vec<usize> = [0, 1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300]
        .into_iter()
        .filter(|&n| n <= blocks)
        .collect();
    let types = (prop::sample::select(&FLOATS[..]), prop::sample::select(&BLOCKS[..]));
    let sizes = (0usize..4, prop::sample::select(lengths));
    let places =
        (prop::array::uniform2(0usize..3), prop::option::of(prop::array::uniform2(0usize..3)), 0usize..8);
    (types, sizes, places, prop::bool::weighted(0.2), any::<u64>()).prop_map(
        |((floats, dtype), (rows, blocks), (gaps, planar, past), wild, seed)| {
            let cols = blocks * 32;
            Case { floats, dtype, rows, cols, gaps, planar, past: past * 2, wild, seed }
        },
    )
}

/// Both memories are the same, and so is what lies around them.
pub(crate) fn assert_same(got: &Placed, expected: &Placed) {
    let differing =
        got.all().iter().zip(expected.all()).enumerate().filter(|(_, (got, expected))| got != expected);
    let start = expected.range().start as isize;
    let differing: Vec<_> =
        differing.map(|(i, (got, expected))| (i as isize - start, got, expected)).collect();
    let some = &differing[..differing.len().min(8)];
    assert!(some.is_empty(), "{} bytes differ: (index, got, expected) {some:?}", differing.len());
}

pub(crate) fn quantize_equals_the_reference<M: Machine>(machine: &M, case: &Case) {
    let (x, (y, past)) = (case.floats(), case.blocks());
    let mut random = Random(case.seed);
    let mut from = Placed::new(x.bytes(), 0);
    for i in 0..x.rows() {
        let row = float_bytes(&mut random, case.floats, case.cols, case.wild);
        from.bytes_mut()[i * x.stride()..][..row.len()].copy_from_slice(&row);
    }
    let mut to = Placed::new(y.bytes(), past);
    let (expected, expected_flag) = oracle::quantize(&from, &x, &to, &y);
    let flag = machine.quantize(&from, &x, &mut to, &y);
    if M::REFUSES && expected_flag != 0 {
        // It stops at the first.
        return assert!(flag != 0 && flag & expected_flag == flag, "{flag:b} of {expected_flag:b}");
    }
    assert_same(&to, &expected);
    assert_eq!(flag, expected_flag);
}

pub(crate) fn dequantize_equals_the_reference(machine: &impl Machine, case: &Case) {
    let ((x, past), y) = (case.blocks(), case.floats());
    let from = Placed::of(&any_bytes(&mut Random(case.seed), x.bytes()), past);
    let mut to = Placed::new(y.bytes(), 0);
    let expected = oracle::dequantize(&from, &x, &to, &y);
    machine.dequantize(&from, &x, &mut to, &y);
    assert_same(&oracle::one_nan(to, &y), &expected);
}

pub(crate) fn relayout_moves_every_byte(machine: &impl Machine, case: &Case) {
    let (plain, planar) = (case.plain(), case.planar(case.planar.unwrap_or([0, 0])));
    let mut random = Random(case.seed);
    for (x, past_x, y, past_y) in [(plain, case.past, planar, 0), (planar, 0, plain, case.past)] {
        let from = Placed::of(&any_bytes(&mut random, x.bytes()), past_x);
        let mut to = Placed::new(y.bytes(), past_y);
        let expected = oracle::relayout(&from, &x, &to, &y);
        machine.relayout(&from, &x, &mut to, &y);
        assert_same(&to, &expected);
    }
}

/// Lengths and places of plain bytes.
pub(crate) fn bytes() -> impl Strategy<Value = (usize, usize, usize, u64)> {
    let len = prop_oneof![
        3 => 0usize..70,
        1 => prop::sample::select(vec![4096usize, 16383, 16384, 16385, 16400, 16415, 33000]),
    ];
    (len, 0usize..16, 0usize..16, any::<u64>())
}

pub(crate) fn fill_repeats_the_pattern(
    machine: &impl Machine,
    (len, past, _, seed): (usize, usize, usize, u64),
) {
    let mut random = Random(seed);
    let width = 1 << random.below(5);
    let pattern = any_bytes(&mut random, width);
    let mut to = Placed::new(len / width * width, past);
    let mut expected = to.clone();
    expected.bytes_mut().chunks_mut(width).for_each(|piece| piece.copy_from_slice(&pattern));
    machine.fill(&mut to, &pattern);
    assert_same(&to, &expected);
}

pub(crate) fn compare_counts_what_differs(
    machine: &impl Machine,
    (len, past_a, past_b, seed): (usize, usize, usize, u64),
) {
    let mut random = Random(seed);
    let a = any_bytes(&mut random, len);
    let mut b = a.clone();
    let past_b = if seed.is_multiple_of(2) { past_a } else { past_b };
    let changes = [0, 1, 2, 40, len][random.below(5)];
    let mut changed = std::collections::BTreeSet::new();
    for _ in 0..if len == 0 { 0 } else { changes } {
        let at = random.below(len);
        if changed.insert(at) {
            b[at] ^= 1 << random.below(8);
        }
    }
    let expected = Difference { count: changed.len() as u64, first: changed.first().map(|&at| at as u64) };
    assert_eq!(machine.compare(&Placed::of(&a, past_a), &Placed::of(&b, past_b)), expected);
}
