//! Every call of every rank's device fails once.

use crate::faults::{go_on, leave_nothing};
use crate::hosts;

#[test]
fn a_failing_call_of_any_rank_leaves_nothing() {
    for ranks in 2..=4 {
        leave_nothing(&hosts(ranks), 1);
    }
}

#[test]
fn a_context_goes_on_after_a_failing_call_of_any_rank() {
    for ranks in 2..=4 {
        go_on(&hosts(ranks), 1);
    }
}
