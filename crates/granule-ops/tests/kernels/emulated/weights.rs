//! `weights.cuh` against the numbers that the bits stand for.

use granule_quant::DType;
use half::f16;

use super::library::{Allowed, Emulated, Param};
use super::{CHECKED, PLAIN};
use crate::matmul::half_error;
use crate::weights::{QUANTIZED, Weights};

/// What the reader of the type makes of a matrix: all elements in f32, and in f16.
fn read(library: &Emulated, checked: bool, weights: &Weights, seed: u64) -> (Vec<f32>, Vec<f16>) {
    let n = weights.values.len();
    let (mut x, mut halves) = (vec![f32::NAN; n], vec![f16::NAN; n]);
    let start = weights.bytes().as_ptr().expose_provenance() as u64;
    let [x_at, halves_at] =
        [x.as_mut_ptr().expose_provenance() as u64, halves.as_mut_ptr().expose_provenance() as u64];
    let allowed = [(start, weights.bytes().len(), false), (x_at, 4 * n, true), (halves_at, 2 * n, true)];
    let allowed = allowed.map(|(start, len, write)| Allowed { start, len: len as u64, write });
    let planes = weights.planes.map(|at| Param::U64(start + at as u64));
    let params = [&planes[..], &[(n / 32) as u64, x_at, halves_at].map(Param::U64)].concat();
    let name = format!("weights_{}", weights.dtype);
    let done = library.launch(&name, [2, 1, 1], seed, &params, checked.then_some(&allowed[..]));
    done.unwrap_or_else(|why| panic!("{why}"));
    (x, halves)
}

/// An element in f16 is as near as it has to be; beyond f16, or where a scale is infinite, it is not finite.
fn check_half(dtype: DType, half: f64, want: f64, run: &[f32]) {
    if !half.is_finite() && want.abs() > 65504.0 {
        return;
    }
    // Of codes that differ the largest number is at least half of the scale.
    let most = run.iter().fold(0f64, |most, &x| most.max(f64::from(x).abs()));
    let off = (half - want).abs();
    assert!(off <= half_error(dtype, want, most), "{dtype}: {half} instead of {want}, off by {off:e}");
}

/// Reads weights of each type; `draw` makes them of type, rows and columns.
fn check(
    library: &Emulated,
    checked: bool,
    (rows, cols): (usize, usize),
    seed: u64,
    draw: fn(DType, usize, usize, u64) -> Weights,
) {
    for dtype in QUANTIZED {
        let weights = draw(dtype, rows, cols.next_multiple_of(dtype.block_len()), seed);
        let (x, halves) = read(library, checked, &weights, seed);
        for (i, (&got, &want)) in x.iter().zip(&weights.values).enumerate() {
            let same = if want.is_nan() { got.is_nan() } else { got.to_bits() == want.to_bits() };
            assert!(same, "{dtype}, element {i}: {got} instead of {want}");
            if want.is_nan() {
                assert!(halves[i].is_nan(), "{dtype}, element {i}: {}", halves[i]);
                continue;
            }
            let run = &weights.values[i / 32 * 32..][..32];
            check_half(dtype, halves[i].to_f32().into(), want.into(), run);
        }
    }
}

#[test]
fn every_type_reads_as_its_bits_say() {
    check(&PLAIN, false, (3, 32), 1, Weights::draw);
    check(&PLAIN, false, (37, 1024), 2, Weights::draw);
}

#[test]
fn every_type_reads_as_it_is_packed_and_decoded() {
    check(&PLAIN, false, (3, 32), 5, Weights::packed);
    check(&PLAIN, false, (19, 1024), 6, Weights::packed);
}

#[test]
fn every_access_is_inside_the_tensor() {
    check(&CHECKED, true, (1, 32), 3, Weights::draw);
    check(&CHECKED, true, (5, 256), 4, Weights::draw);
}
