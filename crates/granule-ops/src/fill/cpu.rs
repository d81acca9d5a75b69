//! Filling on the host.

use granule_device::DeviceSliceMut;

use crate::Error;
use crate::fill::Pattern;

/// Fills `to`, at any address, with `pattern`, beginning with the pattern's first byte.
///
/// # Errors
/// [`Error::Dimension`] where `to` ends within a pattern, [`Error::NotOnHost`]. Nothing is written.
pub fn cpu(mut to: DeviceSliceMut<'_>, pattern: Pattern) -> Result<(), Error> {
    pattern.check(to.len())?;
    let bytes = to.as_host_mut().ok_or(Error::NotOnHost { what: "the memory to fill" })?;
    for piece in bytes.chunks_mut(pattern.bytes.len()) {
        piece.copy_from_slice(&pattern.bytes[..piece.len()]);
    }
    Ok(())
}
