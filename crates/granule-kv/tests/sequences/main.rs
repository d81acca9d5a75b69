//! One suite for sequences, run on every kind of device, each against a plain vector of tokens.
//!
//! Each test is a function of what opens a device with room for so many granules. `host::` runs everywhere; `cuda::` needs a
//! CUDA driver, the simulated one or a real one, which `cargo xtask test` provides or finds. Bytes go through `Device::copy`,
//! as they have to on a GPU.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

#[path = "../../../granule-bank/tests/conformance/devices.rs"]
mod devices;
mod edits;
mod exchange;
mod faults;
mod growth;
mod model;
mod parking;
mod remembered;
mod sharing;
mod states;
mod support;
mod threads;

granule_sim::conformance! {
    growth:
        growth_neither_moves_nor_copies,
        thirty_thousand_tokens_are_never_copied,
        steady_decode_makes_no_call,
        what_cannot_be_mapped_ahead_is_mapped_when_needed,
        what_is_mapped_ahead_goes_to_whoever_needs_it,
        after_a_trim_memory_is_mapped_ahead_again,
        too_little_memory_is_an_error_and_changes_nothing,
        wrong_asks_are_refused;
    sharing:
        a_fork_shares_until_one_writes,
        a_cut_fork_writes_over_what_it_shares,
        a_copy_has_its_tokens_alone,
        memory_is_given_back_after_work;
    edits:
        clear_keeps_memory_and_trim_gives_it_back,
        what_is_kept_goes_to_whoever_needs_it,
        the_middle_goes_back,
        a_window_slides_for_ever,
        shifted_tokens_stand_elsewhere,
        cut_up_rows_are_used_in_parts;
    exchange:
        ggml_rows_go_both_ways,
        a_transform_has_no_plain_form;
    parking:
        what_is_parked_is_used_again,
        what_is_parked_goes_to_whoever_needs_it,
        what_is_used_again_is_anybodys_until_it_is_used,
        no_more_is_parked_than_said;
    faults:
        every_failing_call_changes_nothing,
        nothing_is_lost_where_undoing_fails_too,
        a_trim_that_fails_leaves_no_row_ready_without_memory;
    remembered:
        a_prompt_is_found_again,
        a_fork_keeps_no_more_than_it_has,
        a_chat_is_remembered_once,
        prompts_make_room_ahead,
        forks_wait_for_work;
    states:
        what_was_saved_is_restored_in_any_layout,
        saving_waits_for_work,
        a_restore_waits_for_memory_and_leaves_nothing_where_it_fails;
    model:
        like_vectors,
        like_vectors_with_a_mapper;
    threads:
        forks_go_their_ways_on_threads,
        memory_is_taken_from_sequences_that_go_on;
}

#[test]
fn everything_goes_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<granule_kv::Sequence>();
    check::<granule_kv::KvCache>();
    check::<granule_bank::Range>();
    check::<granule_bank::Lent>();
    check::<granule_device::Lent>();
}
