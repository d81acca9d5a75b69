//! Products of a few tokens in the emulator, against f64.

use granule_quant::DType;

use super::library::{Allowed, Emulated};
use super::{CHECKED, PLAIN};
use crate::matvec::Case;
use crate::random::Random;
use crate::weights::{Weights, cols};

/// Rows of a warp that takes them by lanes, and of a block that takes them on tensor cores; warps of a block, jobs of a launch.
const WARP_ROWS: usize = 4;
const TILE_ROWS: usize = 16;
const WARPS: usize = 8;
const JOBS: usize = 4;

/// Bytes of `struct MatvecJob`.
fn job(weights: &Weights, out: u64, (tiles, split): (usize, usize), adds: bool) -> Vec<u8> {
    let start = weights.bytes().as_ptr().expose_provenance() as u64;
    let words = weights.planes.map(|plane| start + plane as u64);
    let numbers = [weights.rows, tiles, split, usize::from(adds)].map(|n| (n as u32).to_le_bytes());
    [bytes_of(words), out.to_le_bytes().to_vec(), numbers.concat()].concat()
}

fn bytes_of(words: [u64; 4]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Runs the kernel; `seed` decides the order of threads, the grid, and how rows are split where that is open.
fn run(library: &Emulated, checked: bool, case: &Case, split: usize, seed: u64) -> Vec<Vec<f32>> {
    let dtype = case.weights[0].dtype;
    let mut random = Random(seed);
    let parts = case.parts();
    let x = parts.bytes().as_ptr().expose_provenance() as u64;
    let tensor = dtype.is_quantized() && case.tokens > 1;
    let (name, tile_rows) = match (dtype.is_quantized(), case.tokens) {
        (_, 1) => (format!("matvec_{dtype}_1"), (WARP_ROWS * WARPS) >> split),
        (true, _) => (format!("matvec_{dtype}_8"), TILE_ROWS),
        (false, _) => (format!("matvec_{dtype}_4"), (WARP_ROWS * WARPS) >> split),
    };
    let mut outs: Vec<Vec<f32>> = case
        .weights
        .iter()
        .zip(&case.before)
        .map(|(weights, before)| before.clone().unwrap_or_else(|| vec![f32::NAN; case.tokens * weights.rows]))
        .collect();
    let mut allowed = vec![(x, parts.bytes().len(), false)];
    let mut argument = Vec::new();
    let mut most = 0;
    for ((weights, before), out) in case.weights.iter().zip(&case.before).zip(&mut outs) {
        let tiles = weights.rows.div_ceil(tile_rows);
        most = tiles.max(most);
        let at = out.as_mut_ptr().expose_provenance() as u64;
        argument.extend(job(weights, at, (tiles, if tensor { 0 } else { split }), before.is_some()));
        allowed.push((at, out.len() * 4, true));
        allowed.push((weights.bytes().as_ptr().expose_provenance() as u64, weights.bytes().len(), false));
    }
    argument.resize(JOBS * 56, 0);
    argument.extend(bytes_of(parts.starts.map(|start| x + start as u64)));
    let size = if dtype.is_quantized() { 32 } else { 16 / dtype.block_bytes() };
    let numbers = [case.tokens, case.cols.div_ceil(size), parts.stride, 0];
    argument.extend(numbers.map(|n| (n as u32).to_le_bytes()).concat());
    // A block for each tile, or any other number.
    let blocks = if random.below(3) == 0 { 1 + random.below(most + 2) } else { most };
    let grid = [blocks as u32, case.weights.len() as u32, 1];
    let allowed: Vec<Allowed> =
        allowed.into_iter().map(|(start, len, write)| Allowed { start, len: len as u64, write }).collect();
    let done = library.launch_struct(&name, grid, 0, seed, &argument, checked.then_some(&allowed[..]));
    done.unwrap_or_else(|why| panic!("{name}, seed {seed}: {why}"));
    outs
}

fn check(library: &Emulated, checked: bool, case: &Case, split: usize, seed: u64) -> Vec<Vec<f32>> {
    let outs = run(library, checked, case, split, seed);
    outs.iter().enumerate().for_each(|(i, out)| case.check(i, out));
    outs
}

#[test]
fn every_type_meets_one_token() {
    for (i, &dtype) in DType::ALL.iter().enumerate() {
        for (j, (rows, columns)) in
            [(1, 32), (33, 64), (5, 256), (37, 1056), (9, 2816)].into_iter().enumerate()
        {
            let seed = (i * 8 + j) as u64;
            check(
                &PLAIN,
                false,
                &Case::draw(dtype, &[rows], cols(dtype, columns), 1, seed),
                (i + j) % 4,
                seed,
            );
        }
    }
}

#[test]
fn every_type_meets_several_tokens() {
    for (i, &dtype) in DType::ALL.iter().enumerate() {
        for (j, (rows, columns, tokens)) in
            [(1, 32, 2), (33, 64, 8), (17, 256, 3), (5, 1056, 9), (2, 2816, 5)].into_iter().enumerate()
        {
            let seed = (i * 8 + j) as u64;
            check(
                &PLAIN,
                false,
                &Case::draw(dtype, &[rows], cols(dtype, columns), tokens, seed),
                (i + j) % 4,
                seed,
            );
        }
    }
}

#[test]
fn every_number_of_tokens() {
    for dtype in [DType::Q4_0, DType::Q6_K, DType::F16] {
        for tokens in 1..=9 {
            check(&PLAIN, false, &Case::draw(dtype, &[19], 512, tokens, tokens as u64), 1, tokens as u64);
        }
    }
}

#[test]
fn float_rows_of_any_length() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for cols in [1, 3, 4, 5, 7, 8, 9, 12, 13, 31, 33, 1029, 1030, 1036] {
            for tokens in [1, 3] {
                check(
                    &PLAIN,
                    false,
                    &Case::draw(dtype, &[6], cols, tokens, cols as u64),
                    cols % 4,
                    cols as u64,
                );
            }
        }
    }
}

#[test]
fn what_is_not_a_number_stays_with_its_token() {
    for &dtype in DType::ALL {
        for (tokens, spoiled) in [(1, 0), (3, 1), (3, 2)] {
            let mut case = Case::draw(dtype, &[6, 18], cols(dtype, 96), tokens, 3);
            case.spoiled = Some(spoiled);
            check(&PLAIN, false, &case, 1, 3);
        }
    }
}

/// The bits are the same whatever else is in the launch and however large the grid is.
#[test]
fn results_are_a_jobs_own() {
    for dtype in [DType::Q8_0, DType::Q4_K, DType::IQ4_NL, DType::BF16] {
        for tokens in [1, 4] {
            let mut case = Case::draw(dtype, &[33, 7, 64, 20], 512, tokens, 5);
            let together = check(&PLAIN, false, &case, 2, 1);
            for seed in 2..5 {
                assert_eq!(run(&PLAIN, false, &case, 2, seed), together, "{dtype}");
            }
            for out in together.into_iter().rev() {
                let (weights, before) = (case.weights.pop().unwrap(), case.before.pop().unwrap());
                let rest = (std::mem::take(&mut case.weights), std::mem::take(&mut case.before));
                (case.weights, case.before) = (vec![weights], vec![before]);
                assert_eq!(run(&PLAIN, false, &case, 2, 9), [out], "{dtype}");
                (case.weights, case.before) = rest;
            }
        }
    }
}

#[test]
fn every_access_is_inside_and_in_order() {
    for (i, &dtype) in DType::ALL.iter().enumerate() {
        let seed = i as u64;
        check(&CHECKED, true, &Case::draw(dtype, &[18, 3], cols(dtype, 96), 1, seed), i % 4, seed);
        check(&CHECKED, true, &Case::draw(dtype, &[18, 3], cols(dtype, 96), 3, seed), i % 4, seed);
    }
    // Exactly what is there: floats whose rows end in the middle of 16 bytes.
    for cols in [1, 6, 9] {
        check(&CHECKED, true, &Case::draw(DType::F16, &[5], cols, 3, 1), 0, 1);
    }
}
