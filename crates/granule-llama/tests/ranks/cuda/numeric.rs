//! A spread of the calls of each rank's driver fails. With few seeds: it takes long.

use granule_device::Device;

use super::{gpus, nothing_is_left};
use crate::faults::{go_on, leave_nothing};
use crate::host;

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_failing_call_of_two_gpus_leaves_nothing() {
    leave_nothing(&gpus(2), 131);
    nothing_is_left();
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_failing_call_of_four_gpus_leaves_nothing() {
    leave_nothing(&gpus(4), 401);
    nothing_is_left();
}

/// A rank on the host and one on a GPU.
#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_failing_call_of_a_host_and_a_gpu_leaves_nothing() {
    leave_nothing(&mixed(), 131);
    nothing_is_left();
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_context_of_two_gpus_goes_on_after_a_failing_call() {
    go_on(&gpus(2), 41);
    nothing_is_left();
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_context_of_four_gpus_goes_on_after_a_failing_call() {
    go_on(&gpus(4), 151);
    nothing_is_left();
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_context_of_a_host_and_a_gpu_goes_on_after_a_failing_call() {
    go_on(&mixed(), 31);
    nothing_is_left();
}

fn mixed() -> Vec<Device> {
    vec![host(), gpus(1).remove(0)]
}
