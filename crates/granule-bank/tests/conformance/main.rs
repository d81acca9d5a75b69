//! One suite for the bank, run on every kind of device.
//!
//! Each test is a function of what opens a device with room for so many granules. `host::` runs everywhere; `cuda::` needs a
//! CUDA driver, the simulated one or a real one, which `cargo xtask test` provides or finds. Bytes go through `Device::copy`,
//! as they have to on a GPU.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod devices;
mod faults;
mod kept;
#[cfg(feature = "cuda")]
mod kernel;
mod lent;
mod limits;
mod model;
mod pinned;
mod pressure;
mod ranges;
mod recordings;
mod support;
mod threads;
mod watches;

granule_sim::conformance! {
    ranges:
        sparse_places_come_and_go,
        a_shared_granule_counts_once_and_is_not_written,
        a_shared_granule_outlives_the_range_it_came_from,
        growing_keeps_base_and_bytes,
        an_alias_copies_only_where_it_is_written,
        what_is_cleared_into_a_stock_is_given_back_with_it,
        a_stock_fills_what_is_bare,
        a_snapshot_says_what_stands_where,
        only_what_waits_outlives_its_range;
    limits:
        out_of_memory_names_who_holds_most,
        the_device_may_be_full_before_the_budget_is,
        banks_share_a_budget,
        what_one_bank_keeps_makes_way_for_another,
        a_bank_that_goes_leaves_nothing_in_the_budget,
        a_reserve_is_left_to_others;
    kept:
        cached_granules_make_way,
        above_the_high_mark_it_goes_back_to_the_low_one,
        granules_are_made_ahead,
        what_cannot_be_made_ahead_is_counted,
        what_is_made_ahead_stands_in_nobodys_way,
        room_is_noticed_wherever_it_comes_from;
    pressure:
        the_cheapest_is_asked_first,
        nobody_is_asked_where_that_is_not_wanted,
        who_only_promises_is_asked_once_and_refused_for_it,
        a_reclaimer_may_use_the_bank,
        a_reclaimer_may_go_while_it_is_asked,
        charges_ask_too,
        retired_memory_is_waited_for,
        a_full_device_asks_too,
        a_full_device_has_what_its_banks_keep,
        banks_of_one_budget_ask_each_others_owners,
        what_is_given_back_after_work_is_waited_for;
    lent:
        lent_places_are_filled_elsewhere,
        a_loan_that_ends_gives_back,
        claims_and_clears_are_all_or_nothing,
        a_failing_loan_leaves_nothing,
        filled_places_are_given_back_by_whoever_has_them;
    watches:
        low_and_enough_in_turn,
        a_watch_of_what_is_low_already_hears_it,
        a_watch_may_use_the_bank_and_go,
        a_watch_may_take_the_locks_of_who_gives,
        other_banks_of_the_budget_count,
        a_callback_that_panics_ends_its_watch;
    pinned:
        blocks_are_counted_and_given_back,
        a_budget_covers_pinned_and_device_memory,
        pinned_memory_asks_too,
        a_region_is_made_of_a_block;
    recordings:
        a_recording_says_what_the_bank_says,
        nothing_is_recorded_before_and_after,
        a_recording_outlives_its_banks;
    faults:
        every_failing_call_changes_nothing,
        every_failing_call_leaves_the_stock_whole,
        every_failing_call_under_pressure_leaves_nothing,
        every_lasting_failure_leaves_nothing,
        one_call_for_each_granule_and_one_for_the_run;
    model:
        like_a_model,
        the_last_handle_waits_for_retired_memory;
    threads:
        the_budget_holds_whoever_asks,
        forks_part_on_different_threads,
        pressure_from_all_sides,
        a_preparer_a_watch_and_a_crowd;
}

/// What needs the simulator's own eyes.
#[cfg(feature = "cuda")]
mod sim {
    #[test]
    #[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
    fn memory_under_a_kernel_is_nobody_elses() {
        crate::support::with_device(
            crate::support::cuda,
            crate::kernel::memory_under_a_kernel_is_nobody_elses,
        );
    }
}
