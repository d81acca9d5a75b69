//! What a bank hands out that is no address yet: granules in hand, and charges.

use std::sync::Arc;

use granule_device::Bytes;

use crate::bank::{Inner, Tag};
use crate::piece::Piece;

/// Memory that is not granules, counted as an owner's until this is dropped.
#[derive(Debug)]
pub struct Charge {
    pub(crate) bank: Arc<Inner>,
    pub(crate) tag: Tag,
    pub(crate) size: Bytes,
}

impl Charge {
    /// How much is counted.
    pub fn size(&self) -> Bytes {
        self.size
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.bank.discharge(self.tag, self.size);
    }
}

/// Granules taken and not yet put behind a range. Dropping it gives them back.
#[derive(Debug, Default)]
pub struct Stock {
    pub(crate) pieces: Vec<Piece>,
}

impl Stock {
    /// One without any, for [`Range::clear_into`](crate::Range::clear_into).
    pub const fn new() -> Stock {
        Stock { pieces: Vec::new() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    /// True where there are none.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}
