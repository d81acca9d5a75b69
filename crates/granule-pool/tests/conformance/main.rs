//! What a pool promises, on every kind of device.
//!
//! Each test is a function of a device. `host::` runs everywhere; `cuda::` needs a CUDA driver, which `cargo xtask test` provides or
//! finds. On the simulated one every operation has a vector clock, and two that touch the same bytes with nothing between them are
//! reported in every schedule: that is the oracle of reuse across streams. On the host the work itself looks whether its bytes are
//! still its own.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod captures;
mod faults;
mod leases;
mod model;
mod pressure;
mod reentrance;
mod statistics;
mod streams;
mod support;
mod threads;

granule_sim::conformance! {
    leases:
        sizes_alignments_and_waste,
        nothing_is_a_lease_too,
        values_are_written_and_read,
        regions_of_leases,
        leases_outlive_their_heap_and_pool,
        leases_are_dropped_on_other_threads,
        the_same_stream_has_the_same_heap,
        a_heap_is_opened_again,
        checkers_see_leases,
        pinned_memory_comes_from_a_pool_too,
        wrong_asks_are_refused;
    streams:
        one_stream_uses_its_memory_again_at_once,
        another_stream_waits_first,
        three_streams_in_a_row,
        one_event_covers_what_was_freed_before_it,
        a_lease_used_by_two_streams,
        a_lease_used_by_a_stream_of_another_pool,
        random_schedules,
        a_stream_that_is_gone,
        a_stream_that_is_going,
        a_lease_of_a_stream_that_is_going,
        a_region_of_a_lease_used_by_two_streams,
        a_marked_lease_of_a_heap_that_is_opened_again;
    pressure:
        fails_only_when_nothing_fits,
        every_granule_left_has_a_live_byte,
        memory_of_one_heap_serves_another,
        another_owner_gets_idle_memory,
        the_owner_is_asked_in_the_end,
        never_and_not_now_are_told_apart,
        what_never_fits_asks_nobody,
        a_class_is_not_what_makes_it_too_large,
        what_work_still_uses_is_given_back_after_it,
        a_trim_waits_for_no_work,
        cached_blocks_stay_below_their_limit;
    captures:
        nothing_is_taken_from_a_private_heap,
        a_graphs_memory_is_its_own,
        leases_that_outlive_a_capture,
        a_lease_marked_with_captured_streams,
        a_graph_keeps_allocations_too,
        captures_from_many_threads,
        wrong_captures_are_refused;
    faults:
        every_failing_call_leaves_nothing,
        every_lasting_failure_leaves_nothing,
        a_failed_request_changes_nothing;
    model:
        random_operations_like_a_model,
        the_same_operations_give_the_same_blocks,
        a_dry_heap_holds_as_much;
    reentrance:
        a_watch_uses_the_pool,
        a_region_ends_while_the_pool_is_trimmed,
        the_owner_allocates_when_it_is_asked,
        a_reclaimer_allocates;
    statistics:
        sums_outlive_their_heaps,
        the_peak_is_of_heaps_that_were_there_together,
        every_free_byte_is_counted,
        what_is_certain_is_served;
    threads:
        eight_threads_on_one_heap,
        eight_threads_on_eight_heaps,
        threads_steal_with_work_in_flight,
        heaps_come_and_go;
}

#[cfg(feature = "cuda")]
mod graphs;
