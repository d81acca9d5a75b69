//! Choosing a module: the best one that a device and its driver take.

use std::error::Error;
use std::fmt;

use crate::{MODULES, Module};

/// Why there is no module for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotFound {
    /// No operation has this name.
    Operation,
    /// The device is older than anything that the kernels are compiled for.
    ComputeCapability {
        /// What the device has.
        has: (u32, u32),
        /// The least that would do.
        needs: (u32, u32),
    },
    /// The driver is older than the PTX; a newer driver is all that is missing.
    Driver {
        /// What `cuDriverGetVersion` says.
        has: u32,
        /// The least that would do, counted alike: 12040 is CUDA 12.4.
        needs: u32,
    },
}

impl fmt::Display for NotFound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotFound::Operation => f.write_str("no kernels for an operation of that name"),
            NotFound::ComputeCapability { has, needs } => write!(
                f,
                "the kernels need compute capability {}.{} or later, the device has {}.{}",
                needs.0, needs.1, has.0, has.1
            ),
            NotFound::Driver { has, needs } => write!(
                f,
                "the kernels need a driver for CUDA {}.{} or later, this one is for {}.{}",
                needs / 1000,
                needs % 1000 / 10,
                has / 1000,
                has % 1000 / 10
            ),
        }
    }
}

impl Error for NotFound {}

/// The best module of operation `op` for a device of `compute_capability` (major, minor) under a driver of
/// `driver_version` (as `cuDriverGetVersion` counts: 12040 is CUDA 12.4).
///
/// ```
/// let module = granule_kernels::find("quantize", (9, 0), 12040)?;
/// assert!(module.entries.contains(&"quantize_q8_0_f32"));
/// let too_old = granule_kernels::find("quantize", (9, 0), 12020).unwrap_err();
/// assert_eq!(too_old.to_string(), "the kernels need a driver for CUDA 12.4 or later, this one is for 12.2");
/// # Ok::<(), granule_kernels::NotFound>(())
/// ```
///
/// # Errors
/// [`NotFound`], which says what is missing.
pub fn find(
    op: &str,
    compute_capability: (u32, u32),
    driver_version: u32,
) -> Result<&'static Module, NotFound> {
    choose(MODULES, op, compute_capability, driver_version)
}

/// [`find`] in any table whose modules of one operation stand with the most demanding target first.
fn choose<'a>(
    modules: &'a [Module],
    op: &str,
    compute_capability: (u32, u32),
    driver_version: u32,
) -> Result<&'a Module, NotFound> {
    let mut missing = NotFound::Operation;
    for module in modules.iter().filter(|module| module.op == op) {
        let needs = module.target.compute_capability;
        let fits =
            if module.target.exact { compute_capability == needs } else { compute_capability >= needs };
        if !fits {
            missing = NotFound::ComputeCapability { has: compute_capability, needs };
        } else if driver_version < module.min_driver() {
            missing = NotFound::Driver { has: driver_version, needs: module.min_driver() };
        } else {
            return Ok(module);
        }
    }
    Err(missing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Target;

    const fn module(compute_capability: (u32, u32), exact: bool, ptx_version: (u32, u32)) -> Module {
        let target = Target { compute_capability, exact };
        Module { op: "rope", image: "", target, ptx_version, entries: &[] }
    }

    /// An operation with a variant for 9.0 alone that needs a driver for CUDA 13.0.
    const TWO: &[Module] = &[module((9, 0), true, (9, 0)), module((8, 0), false, (8, 4))];

    #[test]
    fn the_variant_goes_to_its_own_device_and_a_new_driver_only() {
        assert_eq!(choose(TWO, "rope", (9, 0), 13000), Ok(&TWO[0]));
        for (capability, driver) in [((9, 0), 12090), ((10, 0), 13000), ((8, 9), 13020), ((8, 0), 12040)] {
            assert_eq!(choose(TWO, "rope", capability, driver), Ok(&TWO[1]), "{capability:?} {driver}");
        }
    }

    #[test]
    fn what_is_missing_is_said() {
        assert_eq!(choose(TWO, "norm", (9, 0), 13000), Err(NotFound::Operation));
        let needs = NotFound::ComputeCapability { has: (7, 5), needs: (8, 0) };
        assert_eq!(choose(TWO, "rope", (7, 5), 13000), Err(needs));
        let needs = NotFound::Driver { has: 12030, needs: 12040 };
        assert_eq!(choose(TWO, "rope", (9, 0), 12030), Err(needs));
    }

    #[test]
    fn every_operation_has_a_baseline() {
        for Module { op, .. } in MODULES {
            assert!(find(op, (8, 0), 12040).is_ok(), "{op}");
            assert!(find(op, (12, 1), 13020).is_ok(), "{op}");
        }
    }
}
