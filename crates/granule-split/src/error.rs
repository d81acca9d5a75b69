//! What can go wrong between the parts of something that is split.

use std::time::Duration;

/// An error of a plan, a split buffer or a communicator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device refused.
    #[error(transparent)]
    Device(#[from] granule_device::Error),
    /// The bank refused.
    #[error(transparent)]
    Bank(#[from] granule_bank::Error),
    /// An operation refused.
    #[error(transparent)]
    Ops(#[from] granule_ops::Error),
    /// Another rank gave up, and said why.
    #[error("rank {rank} of {ranks} gave up: {why}")]
    Aborted {
        /// Who.
        rank: usize,
        /// Of how many.
        ranks: usize,
        /// What it said.
        why: String,
    },
    /// Some rank has not come in time: it is dead, or stalls.
    #[error("rank {rank} of {ranks} waited {waited:?} for {missing} in {call}")]
    TimedOut {
        /// Who waited.
        rank: usize,
        /// Of how many.
        ranks: usize,
        /// How long.
        waited: Duration,
        /// For whom, as far as is known: "rank 1", "ranks 1 and 3", "the others".
        missing: String,
        /// Which collective.
        call: &'static str,
    },
    /// Ranks called with sizes that do not go together.
    #[error("{what} of {found} elements, where {expected} are needed")]
    Size {
        /// Which memory.
        what: &'static str,
        /// How many it has.
        found: usize,
        /// How many it must have.
        expected: usize,
    },
    /// Ranks that are in different collectives.
    #[error("rank {rank} is in {own} while rank {other_rank} is in {other}")]
    Calls {
        /// Who found out.
        rank: usize,
        /// Where it is.
        own: &'static str,
        /// The other.
        other_rank: usize,
        /// Where that is.
        other: &'static str,
    },
    /// What this communicator, or this build, does not do.
    #[error("not supported: {what}")]
    Unsupported {
        /// What.
        what: String,
    },
}

/// A result with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
