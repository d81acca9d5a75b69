//! Drawing tokens in the emulator.

use granule_ops::sample::{Draw, Drawn, scratch_bytes};
use proptest::prelude::*;

use super::Emulator;
use super::library::{Allowed, Param};
use super::prefill::{Bytes, address};
use crate::random::Random;
use crate::sample::{Case, Samples};

/// Floats at a multiple of 16.
fn aligned(x: &[f32]) -> Vec<u128> {
    let mut words = vec![0u128; x.len().div_ceil(4)];
    bytemuck::cast_slice_mut(&mut words)[..x.len()].copy_from_slice(x);
    words
}

/// Draws at a multiple of 8.
fn words(draws: &[Draw]) -> Vec<u64> {
    let bytes: Vec<u8> = draws.iter().flat_map(Draw::to_bytes).collect();
    bytes.chunks_exact(8).map(|b| u64::from_le_bytes(b.try_into().unwrap())).collect()
}

impl Samples for Emulator {
    fn sample(&self, case: &Case, draws: bool) -> Vec<Drawn> {
        let rows = case.rows();
        let (logits, drawn_by) = (aligned(&case.logits), words(&case.draws));
        let mut scratch = vec![u64::MAX; scratch_bytes(rows) / 8];
        let mut to = vec![0u64; rows];
        let boards = scratch.as_mut_ptr().expose_provenance() as u64;
        let result = to.as_mut_ptr().expose_provenance() as u64;
        let slices = case.n_vocab.div_ceil(4096);
        let by = if draws { address(&drawn_by) } else { 0 };
        let bytes = Bytes::default().u64(address(&logits)).u64(by).u64(boards).u64(result);
        let bytes = bytes.u64(result + 4 * rows as u64).u32(rows).u32(case.n_vocab).u32(slices).u32(0);
        let allowed = [
            (address(&logits), 4 * case.logits.len(), false),
            (by, 8 * drawn_by.len(), false),
            (boards, 8 * scratch.len(), true),
            (result, 8 * rows, true),
        ];
        let allowed = allowed.map(|(start, len, write)| Allowed { start, len: len as u64, write });
        let mut random = Random(self.seed);
        for name in ["sample_begin", "sample_weigh", "sample_gather", "sample_draw"] {
            if !draws && name != "sample_begin" && name != "sample_draw" {
                continue;
            }
            let x = if name == "sample_draw" { 1 } else { self.grid(slices, random.next()) };
            let grid = [x as u32, self.grid(rows, random.next()) as u32, 1];
            let (order, allowed) = (random.next(), self.checked.then_some(&allowed[..]));
            let done = self.library.launch_struct(name, grid, 0, order, &bytes.0, allowed);
            done.unwrap_or_else(|why| panic!("grid {grid:?}, order {order}: {why}"));
        }
        (0..rows).map(|row| Drawn::of(bytemuck::cast_slice(&to), row).unwrap()).collect()
    }

    fn penalize(&self, case: &Case, ids: &[u32]) -> Vec<f32> {
        let (mut logits, draws) = (aligned(&case.logits), words(&case.draws));
        let start = logits.as_mut_ptr().expose_provenance() as u64;
        let (rows, most) = (case.rows(), ids.len() / case.rows());
        let numbers = [rows, case.n_vocab, most].map(|n| Param::U64(n as u64));
        let pointers = [start, address(&draws), address(ids)].map(Param::U64);
        let allowed = [
            (start, 4 * case.logits.len(), true),
            (address(&draws), 8 * draws.len(), false),
            (address(ids), 4 * ids.len(), false),
        ];
        let allowed = allowed.map(|(start, len, write)| Allowed { start, len: len as u64, write });
        self.launch("sample_penalize", [1, self.grid(rows, 8)], &allowed, &[pointers, numbers].concat());
        bytemuck::cast_slice(&logits)[..case.logits.len()].to_vec()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_row_is_drawn_by_the_rule(seed: u64) {
        Case::any(seed).check(&Emulator::plain(seed));
    }

    #[test]
    fn listed_tokens_are_penalized(seed: u64) {
        Case::any(seed).check_penalty(&Emulator::plain(seed), seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    fn every_access_is_inside_and_in_order(seed: u64) {
        let case = Case::any(seed);
        case.check(&Emulator::checked(seed));
        case.check_penalty(&Emulator::checked(seed), seed);
    }
}

#[test]
fn large_vocabularies() {
    for (seed, n_vocab) in (0..).zip([128_256, 151_936, 262_144, (1 << 20) - 1]) {
        Case::draw(seed, n_vocab, 2).check(&Emulator::plain(seed));
    }
}

#[test]
fn neighbours_are_rarely_needed() {
    let near: usize = (0..400).map(|seed| Case::draw(seed, 100, 4).check(&Emulator::plain(seed))).sum();
    assert!(near < 16, "{near} of 1600");
}
