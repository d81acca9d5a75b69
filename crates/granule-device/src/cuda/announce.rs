//! Telling memory checkers about pieces of larger allocations: the simulated driver through functions of its own, NVIDIA's
//! tools through NVTX.

use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::sys::CUpointer_attribute_enum as Attribute;

use super::context::{Context, lock};
use super::nvtx;
use crate::backend::Ending;
use crate::{Bytes, DevicePtr, Error};

/// The simulator's `granule_sim_lease`: 0 where it took the piece.
type Lease = unsafe extern "C" fn(u64, u64) -> u32;
/// The simulator's `granule_sim_unlease`: 0 where there was such a piece.
type Unlease = unsafe extern "C" fn(u64) -> u32;

pub(super) fn announce(context: &Arc<Context>, at: DevicePtr, len: Bytes) -> Result<Option<Ending>, Error> {
    let library = context.library;
    let simulator = library
        .extension::<Lease>("granule_sim_lease")
        .zip(library.extension::<Unlease>("granule_sim_unlease"));
    let Some((lease, unlease)) = simulator else { return announce_by_nvtx(context, at, len) };
    // SAFETY: the function takes any numbers.
    match unsafe { lease(at.addr(), len.get()) } {
        0 => Ok(Some(Box::new(move || {
            // SAFETY: as above. The piece was taken and is given up once; where its allocation went first, it went with it.
            let _ = unsafe { unlease(at.addr()) };
        }))),
        code => {
            let reason = format!("it answered {code}");
            Err(Error::Announcement { checker: "the simulated driver", at: at.addr(), len, reason })
        }
    }
}

fn announce_by_nvtx(context: &Arc<Context>, at: DevicePtr, len: Bytes) -> Result<Option<Ending>, Error> {
    let Some(tool) = nvtx::tool() else { return Ok(None) };
    let allocation = context.allocation_of(at)?;
    let end = at.addr().checked_add(len.get());
    let (Some(size), true) = (len.to_usize(), end.is_some_and(|end| end <= allocation.end)) else {
        let reason = "it is larger than the allocation it lies in".to_owned();
        return Err(Error::Announcement { checker: "NVTX", at: at.addr(), len, reason });
    };
    tool.register(&allocation, at.addr(), size);
    Ok(Some(Box::new(move || tool.unregister(allocation.start, at.addr()))))
}

impl Context {
    /// The reservation, or the allocation of the driver's, that an address lies in.
    fn allocation_of(&self, at: DevicePtr) -> Result<Range<u64>, Error> {
        if let Some(range) = lock(&self.ranges).around(at, self.virtual_memory.granule) {
            return Ok(range);
        }
        let (mut start, mut len) = (0_u64, 0_usize);
        let _bound = self.bind()?;
        // SAFETY: the attributes are an address and a size, written into locals of those types.
        unsafe {
            let start_of = Attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR;
            self.driver.cuPointerGetAttribute((&raw mut start).cast(), start_of, at.addr())?;
            let size_of = Attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE;
            self.driver.cuPointerGetAttribute((&raw mut len).cast(), size_of, at.addr())?;
        }
        Ok(start..start + len as u64)
    }
}
