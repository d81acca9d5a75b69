//! Everything that can go wrong at a pool, said to the person who must act.

use granule_bank::Owner;
use granule_device::Bytes;

/// Why a pool did not do what it was asked. A call that returns one has changed nothing that anybody holds.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing fits now: it does once somebody gives something back. Everything else was tried before.
    #[error(
        "{device} has no room for {requested} in the pool of {owner}, which holds {reserved} with {live} of it leased and \
         {largest_free} free in one piece: {source}"
    )]
    OutOfMemory {
        /// The device's name.
        device: String,
        /// Whom the pool takes memory for.
        owner: Owner,
        /// What was asked for.
        requested: Bytes,
        /// What is leased, blocks as they were cut.
        live: Bytes,
        /// What the pool holds of the bank's memory.
        reserved: Bytes,
        /// The largest free piece of that.
        largest_free: Bytes,
        /// Why the bank gave no more.
        source: Box<granule_bank::Error>,
    },
    /// Larger than the whole budget, or than what can be addressed: waiting does not help.
    #[error("{requested} never fit in the pool of {owner} on {device}, whose bank may hold {budget}")]
    TooLarge {
        /// The device's name.
        device: String,
        /// Whom the pool takes memory for.
        owner: Owner,
        /// What was asked for.
        requested: Bytes,
        /// What the bank may hold in all.
        budget: Bytes,
    },
    /// An alignment that is no power of two, or larger than the pool's memory is aligned.
    #[error("an alignment of {requested} is not possible: it has to be a power of two up to {limit}")]
    Alignment {
        /// What was asked for.
        requested: Bytes,
        /// The largest that is possible: a granule.
        limit: Bytes,
    },
    /// More than an adaptor's limit leaves: it fits once some of what it lent is back.
    #[error("{requested} over the limit of {limit}, of which {lent} is lent")]
    Limit {
        /// What was asked for.
        requested: Bytes,
        /// What is lent.
        lent: Bytes,
        /// The most that is lent at the same time.
        limit: Bytes,
    },
    /// Not while the heap's stream is captured.
    #[error("{what} is not possible while the heap's stream is captured")]
    Capturing {
        /// What was asked for.
        what: &'static str,
    },
    /// What would be ended was not begun.
    #[error("the heap's stream is not being captured")]
    NotCapturing,
    /// A local heap has no stream.
    #[error("{what} needs a heap with a stream, and this one is local")]
    NoStream {
        /// What was asked for.
        what: &'static str,
    },
    /// The process has as many heaps as there can be: close some.
    #[error("there are {most} heaps in this process already, and no more are possible")]
    TooManyHeaps {
        /// How many there can be.
        most: usize,
    },
    /// Things of two devices in one call.
    #[error("{what} belongs to another device")]
    OtherDevice {
        /// What is of another device.
        what: &'static str,
    },
    /// A bank of another kind of memory than the pool is to be of.
    #[error("a pool of {wanted} needs a bank of it: see {how}")]
    WrongBank {
        /// What the pool would be of.
        wanted: &'static str,
        /// What makes such a bank.
        how: &'static str,
    },
    /// The memory is the device's own.
    #[error("this process cannot address memory of {device}: copy it")]
    NotAddressable {
        /// The device's name.
        device: String,
    },
    /// The bank said no.
    #[error(transparent)]
    Bank(#[from] granule_bank::Error),
    /// The device said no.
    #[error(transparent)]
    Device(#[from] granule_device::Error),
}

impl Error {
    /// True where it is memory that is missing, which somebody else may have to give; else something failed.
    pub(crate) fn is_shortage(&self) -> bool {
        match self {
            Error::OutOfMemory { .. } | Error::TooLarge { .. } => true,
            Error::Bank(error) => match error {
                granule_bank::Error::OutOfMemory { .. } | granule_bank::Error::TooLarge { .. } => true,
                granule_bank::Error::Device(error) => is_device_shortage(error),
                _ => false,
            },
            Error::Device(error) => is_device_shortage(error),
            _ => false,
        }
    }
}

fn is_device_shortage(error: &granule_device::Error) -> bool {
    use granule_device::Error::{LockLimit, OutOfMemory, TooLarge};
    matches!(error, OutOfMemory { .. } | TooLarge { .. } | LockLimit { .. })
}
