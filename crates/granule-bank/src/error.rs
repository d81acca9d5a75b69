//! Everything that can go wrong at a bank, said to the person who must act.

use granule_device::Bytes;

use crate::Owner;

/// Why a bank did not do what it was asked. A call that returns one has changed nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Full now: the request fits once somebody gives something back.
    #[error("{device} is out of memory: {requested} requested for {owner}, {held} of {budget} held, {free} free{}",
        largest(.largest_owner))]
    OutOfMemory {
        /// The device's name.
        device: String,
        /// Whom it was for.
        owner: Owner,
        /// What was asked for, in whole granules.
        requested: Bytes,
        /// What all owners hold together.
        held: Bytes,
        /// What is left for the asking.
        free: Bytes,
        /// What the bank may hold in all.
        budget: Bytes,
        /// Who holds most, and how much.
        largest_owner: Option<(Owner, Bytes)>,
    },
    /// Larger than the whole budget: waiting does not help.
    #[error(
        "{device} is out of memory for good: {requested} requested for {owner} never fits, the limit is {budget} ({held} held, {free} free)"
    )]
    TooLarge {
        /// The device's name.
        device: String,
        /// Whom it was for.
        owner: Owner,
        /// What was asked for, in whole granules.
        requested: Bytes,
        /// What all owners hold together.
        held: Bytes,
        /// What is left for the asking.
        free: Bytes,
        /// What the bank may hold in all.
        budget: Bytes,
    },
    /// More than the range has addresses for.
    #[error("{requested} is more than the {reserved} that were reserved")]
    Reserved {
        /// The length asked for.
        requested: Bytes,
        /// The length of the range.
        reserved: Bytes,
    },
    /// Things of two banks in one call.
    #[error("{what} belongs to another bank")]
    OtherBank {
        /// What is of another bank.
        what: &'static str,
    },
    /// A stock that does not have as many granules as there are places to fill.
    #[error("{needed} granules are needed and the stock has {stocked}")]
    StockTooSmall {
        /// How many places have no memory.
        needed: usize,
        /// How many granules there are.
        stocked: usize,
    },
    /// The device said no.
    #[error(transparent)]
    Device(#[from] granule_device::Error),
}

fn largest(owner: &Option<(Owner, Bytes)>) -> String {
    owner.as_ref().map(|(owner, held)| format!(" (most is held by {owner}: {held})")).unwrap_or_default()
}
