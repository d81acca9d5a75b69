//! The owner of a device's granules: budget, accounting, retire queue, ranges.
#![doc = include_str!("../README.md")]

mod bank;
mod error;
mod growable;
mod ledger;
mod owner;
mod piece;
mod range;
mod reclaim;
mod retire;
mod together;
pub mod trace;

pub use bank::{Bank, BankOptions, Charge, Stock};
pub use error::Error;
pub use growable::Growable;
pub use ledger::{BankStats, OwnerStats};
pub use owner::Owner;
pub use piece::{PieceId, Shared};
pub use range::Range;
pub use reclaim::{Offer, Reclaim, ReclaimGuard};
pub use together::{Growth, grow_together, shrink_together};
