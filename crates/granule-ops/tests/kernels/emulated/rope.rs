//! Rotary positions in the emulator.

use proptest::prelude::*;

use super::Emulator;
use super::library::Allowed;
use super::prefill::{Bytes, address};
use crate::random::Random;
use crate::rope::{Case, Rotates};

impl Rotates for Emulator {
    fn rotate(&self, case: &Case) -> Vec<f32> {
        let mut x: Vec<u128> = vec![0; case.x.len().div_ceil(4)];
        let mut angles: Vec<u128> = vec![0; case.angles.len().div_ceil(4)];
        bytemuck::cast_slice_mut(&mut x)[..case.x.len()].copy_from_slice(&case.x);
        bytemuck::cast_slice_mut(&mut angles)[..case.angles.len()].copy_from_slice(&case.angles);
        let start = x.as_mut_ptr().expose_provenance() as u64;
        let tokens = case.angles.len() / case.dims;
        let bytes = Bytes::default().u64(start).u64(address(&angles)).u32(tokens).u32(case.n_heads);
        let bytes = bytes.u32(case.head_dim).u32(case.dims);
        let allowed = [(start, 4 * case.x.len(), true), (address(&angles), 4 * case.angles.len(), false)];
        let allowed = allowed.map(|(start, len, write)| Allowed { start, len: len as u64, write });
        let pieces = (case.n_heads * case.dims).div_ceil(4 * 256);
        let grid = [self.grid(pieces, 6) as u32, self.grid(tokens, 7) as u32, 1];
        let order = Random(self.seed).next();
        let done = self.library.launch_struct(
            "rope",
            grid,
            0,
            order,
            &bytes.0,
            self.checked.then_some(&allowed[..]),
        );
        done.unwrap_or_else(|why| panic!("grid {grid:?}, order {order}: {why}"));
        bytemuck::cast_slice(&x)[..case.x.len()].to_vec()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn every_pair_is_turned(seed: u64) {
        Case::draw(seed).check(&Emulator::plain(seed));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn every_access_is_inside_and_in_order(seed: u64) {
        Case::draw(seed).check(&Emulator::checked(seed));
    }
}
