//! What stands around a library's products, in the emulator: weights as 16-bit floats, and rows with a factor each.

use granule_quant::DType;
use half::{bf16, f16};

use super::library::Param;
use super::{Emulator, allowed, pointer, pointer_mut};
use crate::machine::Placed;
use crate::random::Random;
use crate::weights::{QUANTIZED, Weights, cols};

const THREADS: usize = granule_kernels::THREADS as usize;

fn numbers<const N: usize>(numbers: [usize; N]) -> [Param; N] {
    numbers.map(|number| Param::U64(number as u64))
}

fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.as_chunks().0.iter().map(|&bytes| u16::from_le_bytes(bytes))
}

impl Emulator {
    /// Rows `first` and on, `rows` of them, of quantized weights as f16.
    fn unpack(&self, weights: &Weights, first: usize, rows: usize) -> Vec<u16> {
        let mut to = Placed::new(rows * weights.cols * 2, 0);
        let (source, target) = (pointer(weights.bytes()), pointer_mut(to.bytes_mut()));
        let memories = [allowed(source, weights.bytes().len(), false), allowed(target, to.len(), true)];
        let [_, high, scales, d] = weights.planes;
        let runs = weights.cols / 32;
        let params =
            [&[source], &numbers([high, scales, d, first * runs, rows * runs])[..], &[target]].concat();
        let grid = [self.grid((rows * runs * 8).div_ceil(THREADS), 3), 1];
        self.launch(&format!("unpack_weights_{}", weights.dtype), grid, &memories, &params);
        halves(to.bytes()).collect()
    }

    /// The same of f32 weights: both terms, with the columns that pad them.
    fn unpack_floats(&self, weights: &Weights, first: usize, rows: usize) -> [Vec<u16>; 2] {
        let stride = weights.cols.next_multiple_of(8);
        let mut to = Placed::new(2 * rows * stride * 2, 0);
        let (source, target) = (pointer(weights.bytes()), pointer_mut(to.bytes_mut()));
        let memories = [allowed(source, weights.bytes().len(), false), allowed(target, to.len(), true)];
        let work = numbers([first, rows, weights.cols]);
        let params = [&[source], &work[..], &[target], &numbers([rows * stride * 2])[..]].concat();
        let grid = [self.grid(weights.cols.div_ceil(4).div_ceil(THREADS), 3), self.grid(rows, 4)];
        self.launch("unpack_weights_f32", grid, &memories, &params);
        let (first, second) = to.bytes().split_at(rows * stride * 2);
        [first, second].map(|term| halves(term).collect())
    }

    /// tokens x rows of `from`, scaled and added to `before`, or in place where there is none; `out_stride` apart.
    fn scale(
        &self,
        from: &[f32],
        factors: &[f32],
        before: Option<&[f32]>,
        rows: usize,
        stride: usize,
    ) -> Vec<f32> {
        let source = Placed::of(bytemuck::cast_slice(from), 4);
        let scales = Placed::of(bytemuck::cast_slice(factors), 8);
        let mut out = Placed::of(bytemuck::cast_slice(before.unwrap_or(from)), 4);
        let target = pointer_mut(out.bytes_mut());
        let (start, from_stride) =
            if before.is_some() { (pointer(source.bytes()), rows) } else { (target, stride) };
        let factor = pointer(scales.bytes());
        let mut memories = vec![allowed(factor, scales.len(), false), allowed(target, out.len(), true)];
        if before.is_some() {
            memories.push(allowed(start, source.len(), false));
        }
        let adds = usize::from(before.is_some());
        let [from_stride, stride, tokens, count, adds] =
            numbers([from_stride, stride, factors.len(), rows, adds]);
        let params = [start, from_stride, factor, target, stride, tokens, count, adds];
        let grid = [self.grid(rows.div_ceil(THREADS), 5), self.grid(factors.len(), 6)];
        self.launch("scale_rows", grid, &memories, &params);
        out.bytes().as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect()
    }
}

/// Every element is the 16-bit float nearest to what the bits stand for.
fn unpacking_rounds_decoding(
    machine: &Emulator,
    shapes: &[(usize, usize)],
    draw: fn(DType, usize, usize, u64) -> Weights,
) {
    for (i, dtype) in QUANTIZED.into_iter().enumerate() {
        for &(rows, columns) in shapes {
            let weights = draw(dtype, rows, cols(dtype, columns), machine.seed + i as u64);
            for first in [0, rows / 2] {
                let got = machine.unpack(&weights, first, rows - first);
                for (at, (&got, &want)) in got.iter().zip(&weights.values[first * weights.cols..]).enumerate()
                {
                    let (got, want) = (f16::from_bits(got), f16::from_f32(want));
                    let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
                    assert!(
                        same,
                        "{dtype}, {rows} x {columns} from row {first}, element {at}: {got} instead of {want}"
                    );
                }
            }
        }
    }
}

fn floats_are_two_terms(machine: &Emulator) {
    for (rows, cols) in [(1, 1), (3, 4), (4, 7), (5, 9), (3, 2100)] {
        let weights = Weights::draw(DType::F32, rows, cols, machine.seed);
        let stride = cols.next_multiple_of(8);
        for first in [0, rows / 2] {
            let [high, low] = machine.unpack_floats(&weights, first, rows - first);
            for at in 0..(rows - first) * cols {
                let (row, col) = (at / cols, at % cols);
                let want = weights.values[(first + row) * cols + col];
                let [high, low] = [&high, &low].map(|term| bf16::from_bits(term[row * stride + col]));
                let nearest = bf16::from_f32(want);
                assert_eq!(
                    (high, low),
                    (nearest, bf16::from_f32(want - nearest.to_f32())),
                    "{rows} x {cols}, {at}"
                );
            }
        }
    }
}

fn scaling_is_a_product(machine: &Emulator) {
    let mut random = Random(machine.seed);
    for (tokens, rows, stride) in [(1, 1, 1), (3, 5, 9), (2, 700, 700), (4, 300, 301)] {
        let mut draw = |n: usize| -> Vec<f32> { (0..n).map(|_| random.signed() * 9.0).collect() };
        let (from, before) = (draw(tokens * rows), draw(tokens * stride));
        let factors: Vec<f32> = (0..tokens).map(|token| [0.125, 2f32.powi(-40), 1.0, 3.0][token]).collect();
        let added = machine.scale(&from, &factors, Some(&before), rows, stride);
        let in_place = machine.scale(&before, &factors, None, rows, stride);
        for at in 0..tokens * stride {
            let (token, row) = (at / stride, at % stride);
            let inside = row < rows;
            let want =
                if inside { before[at] + factors[token] * from[token * rows + row] } else { before[at] };
            assert_eq!(added[at], want, "{tokens} x {rows}, {at}");
            assert_eq!(in_place[at], if inside { factors[token] * before[at] } else { before[at] });
        }
    }
}

#[test]
fn weights_are_unpacked_to_the_nearest_halves() {
    for seed in 1..4 {
        let machine = Emulator::plain(seed);
        unpacking_rounds_decoding(&machine, &[(1, 32), (5, 96), (9, 1024)], Weights::draw);
        // Any bytes: scales that are infinite or no numbers, and elements beyond f16.
        unpacking_rounds_decoding(&machine, &[(3, 512)], Weights::packed);
        floats_are_two_terms(&machine);
        scaling_is_a_product(&machine);
    }
}

#[test]
fn every_access_is_inside() {
    let machine = Emulator::checked(7);
    unpacking_rounds_decoding(&machine, &[(1, 32), (5, 96), (3, 512)], Weights::draw);
    floats_are_two_terms(&machine);
    scaling_is_a_product(&machine);
}
