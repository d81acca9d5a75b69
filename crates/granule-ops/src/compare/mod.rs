//! Comparing memory: how many bytes differ, and the first that does.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

pub use cpu::cpu;
#[cfg(feature = "cuda")]
pub use cuda::cuda;

use crate::Error;
use crate::error::expect_len;

/// What a comparison found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Bytes that differ.
    pub count: u64,
    /// Index of the first of them.
    pub first: Option<u64>,
}

impl Difference {
    /// Bytes of a result on a device: two little-endian words of 8, the count, and the first index or `u64::MAX`.
    pub const BYTES: usize = 16;

    /// Reads the result that `compare::cuda` has left, once the stream has passed it and it was copied here.
    #[must_use]
    pub fn from_bytes(bytes: [u8; Difference::BYTES]) -> Difference {
        let both = u128::from_le_bytes(bytes);
        let (count, first) = (both as u64, (both >> 64) as u64);
        Difference { count, first: (first != u64::MAX).then_some(first) }
    }
}

fn check(a: usize, b: usize) -> Result<(), Error> {
    expect_len("the bytes to compare with", b, a)
}
