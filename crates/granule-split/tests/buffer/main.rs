//! Split buffers on every kind of device: what is scattered lies where a naive twin says and comes back, memory is what the plan said,
//! and whatever fails leaves nothing behind on any device.
//!
//! Each test is a function of what opens the device of a rank. `host::` has one of the host for each; `cuda::` has GPUs in turn and, as
//! the third, the host, so that both kinds are in one buffer.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod bytes;
mod failures;
mod support;

granule_sim::conformance! {
    bytes:
        what_is_scattered_is_gathered,
        one_pair_of_lanes_serves_many_buffers,
        what_does_not_fit_is_refused;
    failures:
        every_failing_call_leaves_nothing,
        every_lasting_failure_leaves_nothing,
        a_full_device_leaves_nothing_on_the_others;
}
