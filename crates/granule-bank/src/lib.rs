//! The owner of a device's granules: budget, accounting, retire queue, ranges.
#![doc = include_str!("../README.md")]

mod bank;
mod budget;
mod error;
mod growable;
mod ledger;
mod lent;
mod options;
mod owner;
mod piece;
mod pinned;
mod places;
mod prepare;
mod range;
mod reclaim;
mod retire;
mod serve;
mod snapshot;
mod stats;
mod stock;
mod together;
pub mod trace;
mod watch;

pub use bank::Bank;
pub use budget::Budget;
pub use error::Error;
pub use growable::Growable;
pub use lent::Lent;
pub use options::BankOptions;
pub use owner::Owner;
pub use piece::{PieceId, Shared};
pub use pinned::PinnedBlock;
pub use range::Range;
pub use reclaim::{Offer, Reclaim, ReclaimGuard};
pub use snapshot::{Behind, RangeMap, Retiring, Snapshot};
pub use stats::{BankStats, BudgetStats, OwnerStats, ReclaimerStats};
pub use stock::{Charge, Stock};
pub use together::{Claim, Growth, claim_together, clear_together, grow_together, shrink_together};
pub use watch::{Level, Watch};
