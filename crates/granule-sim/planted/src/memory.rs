//! Bugs of memory: past an end, after its time, before it was written, without a barrier, never given back.

use anyhow::Result;
use cudarc::driver::sys;
use granule_device::{Access, Bytes, Device, LeaseMode};

use crate::cuda::{Cuda, arg, check};

const N: u32 = 64;

/// A kernel writes one element past the end of its buffer.
pub(crate) fn write_past_allocation(cuda: &Cuda, fixed: bool) -> Result<()> {
    // A whole number of the driver's allocation units, so that the next byte is nobody's.
    let mut values = cuda.alloc(512)?;
    let mut count = if fixed { 128_u32 } else { 129 };
    cuda.launch("planted_write", 2, 128, &mut [arg(&mut values), arg(&mut count)])?;
    free_unless_broken(cuda, values, fixed)
}

/// A kernel writes past the lease that it was given, into the rest of the allocation that the lease was cut from.
pub(crate) fn write_past_lease(_: &Cuda, fixed: bool) -> Result<()> {
    past_lease(LeaseMode::Announced, fixed)
}

/// The same where each lease is an allocation of its own, for checkers that hear no announcements.
pub(crate) fn write_past_separate_lease(_: &Cuda, fixed: bool) -> Result<()> {
    past_lease(LeaseMode::Apart, fixed)
}

fn past_lease(mode: LeaseMode, fixed: bool) -> Result<()> {
    let device = Device::cuda(0)?;
    let cuda = Cuda::open()?;
    device.set_lease_mode(mode);
    let mut slab = device.alloc(Bytes::kib(4))?;
    let lease = device.lease(slab.slice_mut(..512)?)?;
    let mut values = lease.ptr().addr();
    let mut count = if fixed { 128_u32 } else { 129 };
    cuda.launch("planted_write", 2, 128, &mut [arg(&mut values), arg(&mut count)])
}

/// A kernel reads memory that was freed.
pub(crate) fn use_after_free(cuda: &Cuda, fixed: bool) -> Result<()> {
    let (mut from, mut to, mut n) = (cuda.alloc(4096)?, cuda.alloc(4096)?, N);
    // SAFETY: the buffer was allocated above.
    check("cuMemsetD8", unsafe { sys::cuMemsetD8_v2(from, 0, 4096) })?;
    let kept = from;
    if !fixed {
        cuda.free(from)?;
    }
    cuda.launch("planted_increment", 1, N, &mut [arg(&mut from), arg(&mut to), arg(&mut n)])?;
    if fixed {
        cuda.free(kept)?;
    }
    free_unless_broken(cuda, to, fixed)
}

/// A buffer that nobody frees.
pub(crate) fn leak(cuda: &Cuda, fixed: bool) -> Result<()> {
    let lost = cuda.alloc(1 << 20)?;
    if fixed { cuda.free(lost) } else { Ok(()) }
}

/// A kernel reads memory that nobody has written.
pub(crate) fn uninitialized_read(cuda: &Cuda, fixed: bool) -> Result<()> {
    let (mut from, mut to, mut n) = (cuda.alloc(4096)?, cuda.alloc(4096)?, N);
    if fixed {
        // SAFETY: the buffer was allocated above.
        check("cuMemsetD8", unsafe { sys::cuMemsetD8_v2(from, 0, 4096) })?;
    }
    cuda.launch("planted_increment", 1, N, &mut [arg(&mut from), arg(&mut to), arg(&mut n)])?;
    cuda.free(from)?;
    cuda.free(to)
}

/// Threads hand values to each other through shared memory with no barrier in between.
pub(crate) fn shared_race(cuda: &Cuda, fixed: bool) -> Result<()> {
    let mut to = cuda.alloc(4096)?;
    let mut barrier = u32::from(fixed);
    cuda.launch("planted_hand_over", 1, 256, &mut [arg(&mut to), arg(&mut barrier)])?;
    free_unless_broken(cuda, to, fixed)
}

/// Half of the threads of a warp wait at another barrier than the others.
pub(crate) fn divergent_barrier(cuda: &Cuda, fixed: bool) -> Result<()> {
    let mut to = cuda.alloc(4096)?;
    let mut divergent = u32::from(!fixed);
    cuda.launch("planted_barrier", 1, 256, &mut [arg(&mut to), arg(&mut divergent)])?;
    free_unless_broken(cuda, to, fixed)
}

/// A kernel writes through a mapping that may only be read.
pub(crate) fn write_through_read_only(_: &Cuda, fixed: bool) -> Result<()> {
    let device = Device::cuda(0)?;
    let cuda = Cuda::open()?;
    let mut range = device.reserve(device.granularity())?;
    let access = if fixed { Access::ReadWrite } else { Access::ReadOnly };
    range.map(0, &[device.create_granule()?], access)?;
    let mut values = range.base().addr();
    let mut count = N;
    cuda.launch("planted_write", 1, N, &mut [arg(&mut values), arg(&mut count)])?;
    Ok(())
}

/// After a bug that the device noticed, the context takes no more calls: its memory goes with it.
fn free_unless_broken(cuda: &Cuda, ptr: sys::CUdeviceptr, fixed: bool) -> Result<()> {
    match cuda.free(ptr) {
        Err(_) if !fixed => Ok(()),
        done => done,
    }
}
