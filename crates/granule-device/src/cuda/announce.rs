//! Telling memory checkers about pieces of larger allocations: the simulated driver through functions of its own.

use std::sync::Arc;

use super::context::Context;
use crate::backend::Ending;
use crate::{Bytes, DevicePtr, Error};

/// The simulator's `granule_sim_lease`: 0 where it took the piece.
type Lease = unsafe extern "C" fn(u64, u64) -> u32;
/// The simulator's `granule_sim_unlease`.
type Unlease = unsafe extern "C" fn(u64);

pub(super) fn announce(context: &Arc<Context>, at: DevicePtr, len: Bytes) -> Result<Option<Ending>, Error> {
    let lease = context.library.extension::<Lease>("granule_sim_lease");
    let unlease = context.library.extension::<Unlease>("granule_sim_unlease");
    let (Some(lease), Some(unlease)) = (lease, unlease) else { return Ok(None) };
    // SAFETY: the function takes any numbers.
    match unsafe { lease(at.addr(), len.get()) } {
        // SAFETY: the piece was taken, and is given up once.
        0 => Ok(Some(Box::new(move || unsafe { unlease(at.addr()) }))),
        code => {
            let reason = format!("it answered {code}");
            Err(Error::Announcement { checker: "the simulated driver", at: at.addr(), len, reason })
        }
    }
}
