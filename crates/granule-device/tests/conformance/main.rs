//! One conformance suite for `Device`, run on every kind of device: what is promised to the crates above.
//!
//! Each test is a function of a device. `host::` runs everywhere; `cuda::` needs a CUDA driver, the simulated one or a real
//! one, which `cargo xtask test` provides or finds. Nothing in here looks at device memory from the host: bytes go through
//! `Device::copy`, as they have to on a GPU.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod faults;
mod lent;
mod memory;
mod model;
mod streams;
mod support;
mod virtual_memory;

granule_sim::conformance! {
    memory:
        copies_go_every_way,
        odd_offsets_and_lengths,
        zero_bytes_are_a_copy_too,
        lengths_and_ranges_are_checked,
        full_and_never_fits_are_kept_apart,
        what_is_given_back_can_be_had_again,
        pinned_memory_is_the_hosts_too,
        leases_are_pieces_of_their_own;
    virtual_memory:
        a_place_holds_what_was_written,
        the_base_stays_while_memory_comes_and_goes,
        one_writes_or_many_read,
        the_same_granule_twice_in_one_call,
        a_copy_takes_the_place_of_a_shared_granule,
        wrong_places_and_sizes_are_refused,
        retired_places_stay_mapped_until_finished,
        a_granule_outlives_its_handle_while_mapped,
        a_run_of_many_places_is_one_piece;
    lent:
        lent_places_are_mapped_elsewhere,
        a_loan_that_is_dropped_leaves_empty_places,
        a_loan_outlives_its_reservation,
        a_failing_map_leaves_the_places_empty,
        a_loan_goes_back_where_it_came_from,
        places_are_lent_with_their_memory;
    streams:
        one_stream_keeps_its_order,
        looking_waits_for_what_is_in_the_way,
        a_wait_orders_two_streams,
        an_event_means_one_point,
        memory_outlives_its_handle_until_the_work_has_run,
        dropping_a_stream_runs_what_is_left,
        a_panic_comes_out_once_and_the_stream_goes_on,
        wrong_asks_are_refused,
        a_ring_of_pinned_buffers,
        memory_is_unmapped_after_its_last_reader;
    faults:
        every_failing_call_leaves_nothing,
        every_lasting_failure_leaves_nothing,
        a_refused_release_is_settled_later;
    model:
        mappings_are_like_a_model,
        chained_streams_are_like_one;
}
