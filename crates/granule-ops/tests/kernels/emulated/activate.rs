//! Activations in the emulator, with grids of all kinds, with rows held in shared memory and without.

use granule_ops::activate::Form;
use proptest::prelude::*;

use super::Emulator;
use super::library::Allowed;
use super::prefill::{Bytes, address};
use crate::activate::{Activates, Case, From, UNTOUCHED, sources};
use crate::random::Random;

impl Activates for Emulator {
    fn activate(&self, case: &Case, form: Form) -> (Vec<u8>, u32) {
        let layout = form.layout(case.rows, case.cols).unwrap();
        let aligned = |x: &[f32]| -> Vec<u128> {
            let bytes = bytemuck::cast_slice(x).chunks(16);
            bytes
                .map(|b| u128::from_le_bytes(std::array::from_fn(|i| b.get(i).copied().unwrap_or(0))))
                .collect()
        };
        let (a, b) = (aligned(&case.a), aligned(&case.b));
        let mut to = vec![u128::from_ne_bytes([UNTOUCHED; 16]); layout.bytes / 16];
        let start = to.as_mut_ptr().expose_provenance() as u64;
        let mut flag = [0u32];
        let flag_at = flag.as_mut_ptr().expose_provenance() as u64;
        let (source, eps, numbers) = match &case.from {
            From::Plain => (0, 0.0, None),
            From::Norm(eps, numbers) => (1, *eps, numbers.as_ref().map(|(numbers, _)| &numbers[..])),
            From::Swiglu => (2, 0.0, None),
        };
        let mut random = Random(self.seed ^ 3);
        let held = random.below(2);
        let mut bytes = Bytes::default().u64(address(&a)).u64(address(&b)).u64(numbers.map_or(0, address));
        bytes = layout.parts.iter().fold(bytes, |bytes, &part| bytes.u64(start + part as u64));
        bytes = bytes.u64(flag_at).u32(case.rows).u32(case.cols).u32(layout.stride).u32(source).u32(held);
        bytes.0.extend(eps.to_le_bytes());
        let grid = [self.grid(layout.stride.div_ceil(4096), 4) as u32, self.grid(case.rows, 5) as u32, 1];
        let allowed = [
            (address(&a), 4 * case.a.len(), false),
            (address(&b), 4 * case.b.len(), false),
            (numbers.map_or(0, address), numbers.map_or(0, |n| 4 * n.len()), false),
            (start, layout.bytes, true),
            (flag_at, 4, true),
        ];
        let allowed = allowed.map(|(start, len, write)| Allowed { start, len: len as u64, write });
        let name = format!("activate_{}", format!("{form:?}").to_lowercase());
        let shared = if held == 1 { 4 * layout.stride as u32 } else { 0 };
        let order = if random.below(4) == 0 { 0 } else { random.next() };
        let allowed = self.checked.then_some(&allowed[..]);
        let done = self.library.launch_struct(&name, grid, shared, order, &bytes.0, allowed);
        done.unwrap_or_else(|why| panic!("{name}, grid {grid:?}, order {order}: {why}"));
        (bytemuck::cast_slice(&to).to_vec(), flag[0])
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn every_source_in_every_form(seed: u64) {
        sources(seed, 5000).iter().for_each(|case| case.check(&Emulator::plain(seed)));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn every_access_is_inside_and_in_order(seed: u64) {
        sources(seed, 4200).iter().for_each(|case| case.check(&Emulator::checked(seed)));
    }
}

#[test]
fn long_rows() {
    for seed in 0..3 {
        let machine = Emulator::plain(seed);
        Case::norm(1, 14336, None, seed, false).check(&machine);
        Case::swiglu(2, 14336 + 17, seed, false).check(&machine);
    }
}
