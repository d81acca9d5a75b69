//! The conversions between number types over all there is to convert.

use granule_ops::RowShape;
use granule_quant::DType;
use half::f16;

use crate::machine::{Machine, Placed};
use crate::oracle::{self, float_row};
use crate::properties::assert_same;

/// Every scale with every quant, or every `step`-th scale, to each float type: whatever a kernel can be asked to
/// dequantize. Of a block with 32 quants, 8 blocks for a scale have them all.
pub(crate) fn every_scale_and_quant_dequantizes(machine: &impl Machine, step: usize) {
    for dtype in [DType::Q8_0, DType::Q4_0] {
        let width = dtype.block_bytes() - 2;
        for scales in (0..=u16::MAX).step_by(step).collect::<Vec<_>>().chunks(4096) {
            // Every byte value is in every place of the quants plane once: of Q4_0 that is every pair of nibbles.
            let block = |d: u16, k: usize| [&d.to_le_bytes()[..], &quants(k * width, width)].concat();
            let blocks: Vec<u8> =
                scales.iter().flat_map(|&d| (0..256 / width).flat_map(move |k| block(d, k))).collect();
            let cols = blocks.len() / dtype.block_bytes() * 32;
            let (x, from) = (RowShape::dense(dtype, 1, cols).unwrap(), Placed::of(&blocks, 0));
            for floats in [DType::F32, DType::F16, DType::BF16] {
                let y = RowShape::dense(floats, 1, cols).unwrap();
                let mut to = Placed::new(y.bytes(), 0);
                let expected = oracle::dequantize(&from, &x, &to, &y);
                machine.dequantize(&from, &x, &mut to, &y);
                assert_same(&oracle::one_nan(to, &y), &expected);
            }
        }
    }
}

/// The byte values from `first` on.
fn quants(first: usize, width: usize) -> Vec<u8> {
    (first..first + width).map(|byte| byte as u8).collect()
}

/// Blocks of one number and 31 zeros, quantized to Q4_0 and Q8_0.
fn quantize_each(machine: &impl Machine, floats: DType, numbers: impl Iterator<Item = f32>) {
    let numbers: Vec<f32> = numbers.collect();
    for numbers in numbers.chunks(8192) {
        let mut x = vec![0.0; numbers.len() * 32];
        x.chunks_mut(32).zip(numbers).enumerate().for_each(|(i, (block, &x))| block[i % 32] = x);
        for dtype in [DType::Q4_0, DType::Q8_0] {
            let (from, cols) = (Placed::of(&float_row(floats, &x), 0), x.len());
            let (x, y) =
                (RowShape::dense(floats, 1, cols).unwrap(), RowShape::dense(dtype, 1, cols).unwrap());
            let mut to = Placed::new(y.bytes(), 0);
            let (expected, expected_flag) = oracle::quantize(&from, &x, &to, &y);
            let flag = machine.quantize(&from, &x, &mut to, &y);
            assert_same(&to, &expected);
            assert_eq!(flag, expected_flag);
        }
    }
}

/// Every f16 there is as a scale (or every `step`-th, from the largest down), every middle between two, and the numbers just beside those, rounded from f32. The scale
/// of a Q4_0 block is its largest number divided by -8, so any f32 can be had.
pub(crate) fn every_scale_rounds(machine: &impl Machine, step: usize) {
    let scales = (0..=0x7c00_u16).rev().step_by(step).flat_map(|bits| {
        let low = f16::from_bits(bits).to_f32();
        // Beyond the largest there is none to be halfway to, but 65520 is where infinity begins.
        let high = if bits >= 0x7bff { 65536.0 } else { f16::from_bits(bits + 1).to_f32() };
        let middle = if bits == 0x7c00 { 1e30 } else { low / 2.0 + high / 2.0 };
        let low = if bits == 0x7c00 { 65536.0 } else { low };
        [low, low.next_up(), middle.next_down(), middle, middle.next_up()]
    });
    quantize_each(machine, DType::F32, scales.flat_map(|d| [d * -8.0, d * 8.0]));
}

/// Every number of f16 and bf16, or every `step`-th, as the largest of a block.
pub(crate) fn every_half_is_read(machine: &impl Machine, step: usize) {
    quantize_each(
        machine,
        DType::F16,
        (0..=u16::MAX).step_by(step).map(|bits| f16::from_bits(bits).to_f32()),
    );
    quantize_each(
        machine,
        DType::BF16,
        (0..=u16::MAX).step_by(step).map(|bits| half::bf16::from_bits(bits).to_f32()),
    );
}
