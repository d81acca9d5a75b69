//! Comparing on the host.

use granule_device::DeviceSlice;

use crate::Error;
use crate::compare::{self, Difference};

/// Compares `a` and `b`, at any addresses, byte by byte.
///
/// # Errors
/// [`Error::Shape`] where they are not of one length, [`Error::NotOnHost`].
pub fn cpu(a: DeviceSlice<'_>, b: DeviceSlice<'_>) -> Result<Difference, Error> {
    compare::check(a.len(), b.len())?;
    let differs = |(_, (a, b)): &(usize, (&u8, &u8))| a != b;
    let mut differing = host(a)?.iter().zip(host(b)?).enumerate().filter(differs);
    let first = differing.next().map(|(i, _)| i as u64);
    Ok(Difference { count: u64::from(first.is_some()) + differing.count() as u64, first })
}

fn host(slice: DeviceSlice<'_>) -> Result<&[u8], Error> {
    slice.as_host().ok_or(Error::NotOnHost { what: "the memory to compare" })
}
