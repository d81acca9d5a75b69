//! What can go wrong between the parts of something that is split.

use std::time::Duration;

use crate::comm::rendezvous::RendezvousError;

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
    /// A block format refused a shape.
    #[error(transparent)]
    Quant(#[from] granule_quant::Error),
    /// Fewer ranks than one, or more than a group may have.
    #[error("a split over {ranks} ranks: from 1 to {most} are possible")]
    Ranks {
        /// How many were asked for.
        ranks: usize,
        /// How many there may be.
        most: usize,
    },
    /// A rank that is to hold nothing.
    #[error("rank {rank} of {ranks} has a share of nothing: every rank holds a part")]
    NoShare {
        /// Which.
        rank: usize,
        /// Of how many.
        ranks: usize,
    },
    /// A rank that is not there.
    #[error("there is no rank {rank}: ranks are numbered from 0, and there are {ranks}")]
    NoRank {
        /// Which.
        rank: usize,
        /// How many there are.
        ranks: usize,
    },
    /// A dimension that cannot be divided among so many.
    #[error(
        "{dimension} cannot be split over {ranks} ranks: {size}, in pieces of {unit}; possible: {}",
        counts(legal)
    )]
    Indivisible {
        /// Which: "key-value heads", "query heads of a key-value head", "feed-forward elements", "the vocabulary".
        dimension: &'static str,
        /// How many elements (heads, rows) it has.
        size: usize,
        /// How many of them stay together.
        unit: usize,
        /// Over how many ranks it was to be split.
        ranks: usize,
        /// The numbers of ranks that it can be split over, ascending.
        legal: Vec<usize>,
    },
    /// A shape that no model or tensor has, or parts that do not make up one.
    #[error("{what}")]
    Shape {
        /// What is wrong with it.
        what: String,
    },
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
    /// The MPI library refused, or could not begin.
    #[error("{call} failed: {says}")]
    Mpi {
        /// Its function.
        call: &'static str,
        /// What it says.
        says: String,
    },
    /// Ranks of several processes that did not find each other.
    #[error("the ranks' meeting at {address}: {why}")]
    Rendezvous {
        /// Where they were to.
        address: String,
        /// Why not.
        #[source]
        why: RendezvousError,
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

/// Numbers of ranks as a person reads them: "1 to 4", "1, 2, 4".
fn counts(legal: &[usize]) -> String {
    match legal {
        [] => "none".to_owned(),
        [one] => one.to_string(),
        [first, .., last] if last - first + 1 == legal.len() => format!("{first} to {last}"),
        _ => legal.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
    }
}
