//! Every number: the same properties as in the emulator.

mod products;
mod prompts;

use proptest::prelude::*;

use super::Cuda;
use crate::{activate, exhaustive, properties, ranks, rope, sample};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn quantize_equals_the_reference(cases in prop::collection::vec(properties::case(257), 4)) {
        let cuda = Cuda::new();
        cases.iter().for_each(|case| properties::quantize_equals_the_reference(&cuda, case));
    }

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn dequantize_equals_the_reference(cases in prop::collection::vec(properties::case(257), 4)) {
        let cuda = Cuda::new();
        cases.iter().for_each(|case| properties::dequantize_equals_the_reference(&cuda, case));
    }

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn relayout_moves_every_byte(cases in prop::collection::vec(properties::case(257), 4)) {
        let cuda = Cuda::new();
        cases.iter().for_each(|case| properties::relayout_moves_every_byte(&cuda, case));
    }

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn fill_repeats_the_pattern(cases in prop::collection::vec(properties::bytes(), 4)) {
        let cuda = Cuda::new();
        cases.iter().for_each(|&case| properties::fill_repeats_the_pattern(&cuda, case));
    }

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn compare_counts_what_differs(cases in prop::collection::vec(properties::bytes(), 4)) {
        let cuda = Cuda::new();
        cases.iter().for_each(|&case| properties::compare_counts_what_differs(&cuda, case));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn activations_from_every_source_in_every_form(seed: u64) {
        activate::sources(seed, 5000).iter().for_each(|case| case.check(&Cuda::new()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20))]

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn heads_are_rotated(seed: u64) {
        rope::Case::draw(seed).check(&Cuda::new());
    }

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn ranks_are_added_up_and_put_together(seed: u64) {
        let cuda = Cuda::new();
        ranks::sums_are_in_the_order_of_the_ranks(&cuda, seed);
        ranks::parts_are_put_together(&cuda, seed);
    }

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn rows_are_drawn_by_the_rule(seed: u64) {
        let (cuda, case) = (Cuda::new(), sample::Case::any(seed));
        case.check(&cuda);
        case.check_penalty(&cuda, seed);
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn rows_of_activations_that_shared_memory_has_no_room_for() {
    let cuda = Cuda::new();
    activate::Case::norm(2, 24576 + 64, None, 1, false).check(&cuda);
    activate::Case::swiglu(1, 24576, 2, false).check(&cuda);
}

/// What the emulator's twins cannot prove: that a GPU's own conversions give the same bits.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn every_block_there_is_dequantizes_to_the_reference() {
    // A prime: over the seeds of a simulated run it is always these scales; a GPU does all of them.
    let step = if granule_sim::Sim::find().is_some() { 251 } else { 1 };
    exhaustive::every_scale_and_quant_dequantizes(&Cuda::new(), step);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn every_scale_rounds_as_the_reference() {
    let step = if granule_sim::Sim::find().is_some() { 251 } else { 1 };
    exhaustive::every_scale_rounds(&Cuda::new(), step);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn every_half_is_read_as_the_reference() {
    let step = if granule_sim::Sim::find().is_some() { 251 } else { 1 };
    exhaustive::every_half_is_read(&Cuda::new(), step);
}
