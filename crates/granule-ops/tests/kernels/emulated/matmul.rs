//! Products of prompts in the emulator, against f64.

use granule_quant::DType;

use super::library::{Allowed, Emulated};
use super::{CHECKED, PLAIN};
use crate::matmul::Case;
use crate::random::Random;
use crate::weights::cols;

/// Tiles, as powers of two: tokens and weight rows.
const TILES: [(usize, usize); 6] = [(7, 7), (6, 7), (5, 7), (6, 6), (5, 6), (5, 5)];

/// Runs the kernel; `seed` decides the order of threads.
fn run(library: &Emulated, checked: bool, case: &Case, tile: (usize, usize), seed: u64) -> Vec<Vec<f32>> {
    let activations = case.activations();
    let x = activations.bytes().as_ptr().expose_provenance() as u64;
    let mut outs: Vec<Vec<f32>> = case
        .weights
        .iter()
        .zip(&case.before)
        .map(|(weights, before)| before.clone().unwrap_or_else(|| vec![f32::NAN; case.tokens * weights.rows]))
        .collect();
    let mut allowed = vec![(x, activations.bytes().len(), false)];
    let mut argument = [x, x + activations.rest as u64].map(u64::to_le_bytes).concat();
    let mut tiles = 0;
    for ((weights, before), out) in case.weights.iter().zip(&case.before).zip(&mut outs) {
        let start = weights.bytes().as_ptr().expose_provenance() as u64;
        let at = out.as_mut_ptr().expose_provenance() as u64;
        argument.extend(weights.planes.map(|plane| (start + plane as u64).to_le_bytes()).concat());
        argument.extend(at.to_le_bytes());
        let numbers = [weights.rows, tiles, usize::from(before.is_some()), tile.0 | tile.1 << 16];
        argument.extend(numbers.map(|n| (n as u32).to_le_bytes()).concat());
        tiles += case.tokens.div_ceil(1 << tile.0) * weights.rows.div_ceil(1 << tile.1);
        allowed.push((at, out.len() * 4, true));
        allowed.push((start, weights.bytes().len(), false));
    }
    argument.resize(2 * 8 + 4 * 56, 0);
    let numbers = [case.weights.len(), case.tokens, case.cols, 2 * activations.stride];
    argument.extend(numbers.map(|n| (n as u32).to_le_bytes()).concat());
    let stages = if matches!(case.dtype, DType::F16 | DType::BF16) { 6 } else { 5 };
    let allowed: Vec<Allowed> =
        allowed.into_iter().map(|(start, len, write)| Allowed { start, len: len as u64, write }).collect();
    let name = format!("matmul_{}", case.dtype);
    let done = library.launch_struct(
        &name,
        [tiles as u32, 1, 1],
        stages << 14,
        seed,
        &argument,
        checked.then_some(&allowed[..]),
    );
    done.unwrap_or_else(|why| panic!("{name}, tile {tile:?}, seed {seed}: {why}"));
    outs
}

fn check(library: &Emulated, checked: bool, case: &Case, tile: (usize, usize), seed: u64) -> Vec<Vec<f32>> {
    let outs = run(library, checked, case, tile, seed);
    outs.iter().enumerate().for_each(|(i, out)| case.check(i, out));
    outs
}

#[test]
fn every_type_in_a_tile_of_each_shape() {
    for (i, &dtype) in DType::ALL.iter().enumerate() {
        let seed = i as u64;
        check(&PLAIN, false, &Case::draw(dtype, &[40], cols(dtype, 96), 5, seed), TILES[5], seed);
        check(&PLAIN, false, &Case::draw(dtype, &[37], cols(dtype, 64), 33, seed), TILES[i % 5], seed);
    }
}

/// More than one tile each way, the last ones not whole, several steps of columns, the last one not whole.
#[test]
fn tails_of_every_length() {
    let mut random = Random(7);
    for (i, tile) in TILES.into_iter().enumerate() {
        for (j, dtype) in
            [DType::Q4_0, DType::F16, DType::BF16, DType::F32, DType::Q6_K].into_iter().enumerate()
        {
            let (tokens, rows) = (1 + random.below((1 << tile.0) + 9), 1 + random.below((1 << tile.1) + 9));
            let columns = if dtype.is_quantized() { 32 } else { 1 } * (1 + random.below(17));
            let seed = (i * 8 + j) as u64;
            check(&PLAIN, false, &Case::draw(dtype, &[rows], cols(dtype, columns), tokens, seed), tile, seed);
        }
    }
    for columns in [1, 7, 8, 9, 63, 65, 191, 257] {
        for dtype in [DType::F16, DType::BF16, DType::F32] {
            check(&PLAIN, false, &Case::draw(dtype, &[9], columns, 3, columns as u64), TILES[columns % 6], 1);
        }
    }
}

/// The bits are the same whatever else is in the launch, and whatever order threads run in.
#[test]
fn results_are_a_jobs_own() {
    for (dtype, tile) in [(DType::Q4_K, TILES[5]), (DType::F16, TILES[3])] {
        let mut case = Case::draw(dtype, &[33, 7, 64, 20], 256, 35, 5);
        let together = check(&PLAIN, false, &case, tile, 1);
        assert_eq!(run(&PLAIN, false, &case, tile, 2), together, "{dtype}");
        for out in together.into_iter().rev() {
            let (weights, before) = (case.weights.pop().unwrap(), case.before.pop().unwrap());
            let rest = (std::mem::take(&mut case.weights), std::mem::take(&mut case.before));
            (case.weights, case.before) = (vec![weights], vec![before]);
            assert_eq!(run(&PLAIN, false, &case, tile, 9), [out], "{dtype}");
            (case.weights, case.before) = rest;
        }
    }
}

/// What is not a number stays with its token, or with its row of weights.
#[test]
fn nan_goes_no_further() {
    for dtype in [DType::Q4_0, DType::F16, DType::BF16, DType::F32] {
        for tile in TILES {
            let mut case = Case::draw(dtype, &[35], 64, 40, 1);
            let whole = run(&PLAIN, false, &case, tile, 1).remove(0);
            case.x[37 * 64 + 5] = f32::NAN;
            let out = run(&PLAIN, false, &case, tile, 2).remove(0);
            for (at, (got, want)) in out.iter().zip(&whole).enumerate() {
                assert!(if at / 35 == 37 { got.is_nan() } else { got == want }, "{dtype}, {tile:?}, {at}");
            }
        }
    }
}

/// Token tiles come in groups.
#[test]
fn more_tokens_than_a_group_of_tiles_has() {
    check(&PLAIN, false, &Case::draw(DType::Q4_0, &[40, 9], 32, 17 * 32 + 5, 3), TILES[5], 3);
}

#[test]
fn every_access_is_inside_and_in_order() {
    for (i, &dtype) in DType::ALL.iter().enumerate() {
        let seed = i as u64;
        check(&CHECKED, true, &Case::draw(dtype, &[34, 3], cols(dtype, 96), 5, seed), TILES[5], seed);
    }
    for (i, tile) in TILES.into_iter().enumerate() {
        let seed = i as u64;
        for dtype in [DType::Q8_0, DType::BF16, DType::F32] {
            check(&CHECKED, true, &Case::draw(dtype, &[70], 320, 66, seed), tile, seed);
        }
    }
    // Exactly what is there: rows that end in the middle of 16 bytes.
    for columns in [1, 6, 9] {
        check(&CHECKED, true, &Case::draw(DType::F16, &[5], columns, 3, 1), TILES[0], 1);
        check(&CHECKED, true, &Case::draw(DType::F32, &[5], columns, 3, 1), TILES[5], 1);
    }
}
