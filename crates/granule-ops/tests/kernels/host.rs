//! The host's twins of the kernels, held to the same oracle. What a kernel flags they refuse.

use granule_device::{DeviceSlice, DeviceSliceMut};
use granule_ops::compare::{self, Difference};
use granule_ops::fill::{self, Pattern};
use granule_ops::pack_weights::{self, WeightRows};
use granule_ops::{Error, RowShape, Rows, RowsMut, dequantize, quantize, relayout};
use granule_quant::DType;
use proptest::prelude::*;

use crate::machine::{Machine, Placed};
use crate::planes::{self, Packer};
use crate::{oracle, properties};

/// This process.
struct Host;

fn rows<'a>(from: &'a Placed, x: &RowShape, to: &'a mut Placed, y: &RowShape) -> (Rows<'a>, RowsMut<'a>) {
    let from = Rows::new(DeviceSlice::from(from.bytes()), *x).unwrap();
    (from, RowsMut::new(DeviceSliceMut::from(to.bytes_mut()), *y).unwrap())
}

impl Machine for Host {
    const REFUSES: bool = true;

    fn quantize(&self, from: &Placed, x: &RowShape, to: &mut Placed, y: &RowShape) -> u32 {
        let (from, to) = rows(from, x, to, y);
        match quantize::cpu(from, to) {
            Ok(()) => 0,
            Err(Error::Quant(granule_quant::Error::NotFinite { .. })) => oracle::NOT_FINITE,
            Err(Error::Quant(granule_quant::Error::Overflow { .. })) => oracle::OVERFLOW,
            Err(error) => panic!("{error}"),
        }
    }

    fn dequantize(&self, from: &Placed, x: &RowShape, to: &mut Placed, y: &RowShape) {
        let (from, to) = rows(from, x, to, y);
        dequantize::cpu(from, to).unwrap();
    }

    fn relayout(&self, from: &Placed, x: &RowShape, to: &mut Placed, y: &RowShape) {
        let (from, to) = rows(from, x, to, y);
        relayout::cpu(from, to).unwrap();
    }

    fn fill(&self, to: &mut Placed, pattern: &[u8]) {
        fill::cpu(DeviceSliceMut::from(to.bytes_mut()), Pattern::new(pattern).unwrap()).unwrap();
    }

    fn compare(&self, a: &Placed, b: &Placed) -> Difference {
        compare::cpu(DeviceSlice::from(a.bytes()), DeviceSlice::from(b.bytes())).unwrap()
    }
}

impl Packer for Host {
    fn pack(&self, weights: &WeightRows, from: &[u8], _: usize, to: &mut [u8]) {
        pack_weights::cpu(weights, DeviceSlice::from(from), DeviceSliceMut::from(to)).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn quantize_equals_the_reference(case in properties::case(300)) {
        properties::quantize_equals_the_reference(&Host, &case);
    }

    #[test]
    fn dequantize_equals_the_reference(case in properties::case(300)) {
        properties::dequantize_equals_the_reference(&Host, &case);
    }

    #[test]
    fn relayout_moves_every_byte(case in properties::case(300)) {
        properties::relayout_moves_every_byte(&Host, &case);
    }

    #[test]
    fn fill_repeats_the_pattern(bytes in properties::bytes()) {
        properties::fill_repeats_the_pattern(&Host, bytes);
    }

    #[test]
    fn compare_counts_what_differs(bytes in properties::bytes()) {
        properties::compare_counts_what_differs(&Host, bytes);
    }
}

#[test]
fn packing_is_that_of_granule_quant() {
    planes::packing_is_the_hosts(&Host, 1);
    // What it refuses, it leaves alone.
    let mut matrix = [7; 512];
    for (piece, len, bytes) in [(0..2, 35, 512), (0..2, 36, 511), (1..3, 36, 512)] {
        let weights = WeightRows { piece, ..WeightRows::all(DType::Q4_0, 2, 32) };
        let to = DeviceSliceMut::from(&mut matrix[..bytes]);
        let refused = pack_weights::cpu(&weights, DeviceSlice::from(&[0; 36][..len]), to);
        assert!(matches!(refused, Err(Error::Shape { .. })), "{refused:?}");
    }
    assert_eq!(matrix, [7; 512]);
}

#[test]
fn patterns_have_a_power_of_two_of_bytes() {
    for width in 0..40 {
        let fits = [1, 2, 4, 8, 16].contains(&width);
        assert_eq!(Pattern::new(&vec![3; width]).is_ok(), fits, "{width}");
    }
    let mut bytes = [0; 6];
    let refused = fill::cpu(DeviceSliceMut::from(&mut bytes[..]), Pattern::new(&[1; 4]).unwrap());
    assert!(matches!(refused, Err(Error::Dimension { .. })));
    assert_eq!(bytes, [0; 6]);
}
