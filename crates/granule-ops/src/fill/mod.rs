//! Filling memory with a pattern of 1, 2, 4, 8 or 16 bytes.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

pub use cpu::cpu;
#[cfg(feature = "cuda")]
pub use cuda::cuda;

use crate::Error;

/// Bytes to be repeated.
///
/// ```
/// use granule_device::DeviceSliceMut;
/// use granule_ops::fill::{self, Pattern};
///
/// let mut numbers = [0u8; 12];
/// fill::cpu(DeviceSliceMut::from(&mut numbers[..]), Pattern::new(&1.0f32.to_le_bytes())?)?;
/// assert_eq!(numbers, *b"\0\0\x80\x3f\0\0\x80\x3f\0\0\x80\x3f");
/// # Ok::<(), granule_ops::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pattern {
    width: usize,
    /// The pattern, over and over.
    bytes: [u8; 16],
}

impl Pattern {
    /// The pattern of these bytes.
    ///
    /// # Errors
    /// [`Error::Dimension`] where they are not 1, 2, 4, 8 or 16.
    pub fn new(bytes: &[u8]) -> Result<Pattern, Error> {
        let width = bytes.len();
        if width > 16 || !width.is_power_of_two() {
            return Err(Error::Dimension {
                what: "the bytes of a pattern",
                must: "1, 2, 4, 8 or 16",
                got: width,
            });
        }
        Ok(Pattern { width, bytes: std::array::from_fn(|i| bytes[i % width]) })
    }

    /// Memory of `len` bytes holds it a whole number of times.
    fn check(&self, len: usize) -> Result<(), Error> {
        if len.is_multiple_of(self.width) {
            return Ok(());
        }
        Err(Error::Dimension { what: "the bytes to fill", must: "a multiple of the pattern's", got: len })
    }
}
