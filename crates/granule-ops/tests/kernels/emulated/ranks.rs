//! Sums over ranks, and what they have put together, in the emulator.

use proptest::prelude::*;

use super::library::{Allowed, Param};
use super::prefill::Bytes;
use super::{Emulator, allowed, pointer, pointer_mut};
use crate::machine::Placed;
use crate::random::Random;
use crate::ranks::{self, Case, Collects};

impl Emulator {
    fn collect(&self, name: &str, pieces: usize, parts: usize, argument: Bytes, memories: &[Allowed]) {
        let grid = [self.grid(pieces, 8) as u32, parts as u32, 1];
        let order = Random(self.seed).next();
        let allowed = self.checked.then_some(memories);
        let done = self.library.launch_struct(name, grid, 0, order, &argument.0, allowed);
        done.unwrap_or_else(|why| panic!("grid {grid:?}, order {order}: {why}"));
    }
}

/// The addresses of 16 ranks' memory, zeros behind those there are.
fn addresses(parts: &[Param]) -> Bytes {
    (0..16).fold(Bytes::default(), |bytes, rank| match parts.get(rank) {
        Some(Param::U64(address)) => bytes.u64(*address),
        None => bytes.u64(0),
    })
}

impl Collects for Emulator {
    fn sum(&self, case: &Case) -> Placed {
        let mut target = case.sum_target();
        let out = pointer_mut(target.bytes_mut());
        let mut parts: Vec<Param> = case.parts.iter().map(|part| pointer(part.bytes())).collect();
        if let Some(over) = case.over {
            parts[over] = out;
        }
        let len = target.len();
        let mut memories: Vec<Allowed> = parts.iter().map(|part| allowed(*part, len, false)).collect();
        memories.push(allowed(out, len, true));
        let Param::U64(to) = out;
        let argument = addresses(&parts).u64(to).u64(len as u64 / 4).u64(parts.len() as u64);
        self.collect("ranks_sum", (len / 4).div_ceil(4 * 256), 1, argument, &memories);
        target
    }

    fn gather(&self, case: &Case) -> Placed {
        let mut target = case.gather_target();
        let begins = case.begins();
        let out = pointer_mut(target.bytes_mut());
        let Param::U64(to) = out;
        let mut parts: Vec<Param> = case.parts.iter().map(|part| pointer(part.bytes())).collect();
        if let Some(over) = case.over {
            parts[over] = Param::U64(to + 4 * begins[over] as u64);
        }
        let mut memories: Vec<Allowed> =
            (parts.iter().zip(&case.parts)).map(|(at, part)| allowed(*at, part.len(), false)).collect();
        memories.push(allowed(out, target.len(), true));
        let longest = case.parts.iter().map(|part| part.len() / 4).max().unwrap();
        let argument = addresses(&parts);
        let argument = (0..17).fold(argument, |bytes, i| bytes.u64(*begins.get(i).unwrap_or(&0) as u64));
        let argument = argument.u64(to).u64(parts.len() as u64);
        self.collect(
            "ranks_gather",
            longest.div_ceil(4 * 256),
            self.grid(parts.len(), 9),
            argument,
            &memories,
        );
        target
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn sums_are_in_the_order_of_the_ranks(seed: u64) {
        ranks::sums_are_in_the_order_of_the_ranks(&Emulator::plain(seed), seed);
    }

    #[test]
    fn parts_are_put_together(seed: u64) {
        ranks::parts_are_put_together(&Emulator::plain(seed), seed);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    #[test]
    fn every_access_is_inside_and_in_order(seed: u64) {
        ranks::sums_are_in_the_order_of_the_ranks(&Emulator::checked(seed), seed);
        ranks::parts_are_put_together(&Emulator::checked(seed), seed);
    }
}
