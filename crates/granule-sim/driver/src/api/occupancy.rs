//! Occupancy: how many blocks of a kernel fit.

use super::enter::{driver, put};

/// Shared memory that a block of so many threads wants.
type SizeOfBlock = Option<unsafe extern "C" fn(i32) -> usize>;

driver! {
    cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: *mut i32, function: u64, block: i32, dynamic: usize) = Initialized,
    |state, caller| {
        let found = state.sim.occupancy(caller, function, block, dynamic as u64)?;
        // SAFETY: the caller's pointer.
        unsafe { put(blocks, found) }
    };

    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: *mut i32, function: u64, block: i32, dynamic: usize, _flags: u32
    ) = Initialized, |state, caller| {
        let found = state.sim.occupancy(caller, function, block, dynamic as u64)?;
        // SAFETY: the caller's pointer.
        unsafe { put(blocks, found) }
    };

    cuOccupancyMaxPotentialBlockSize(
        grid: *mut i32, block: *mut i32, function: u64, size: SizeOfBlock, dynamic: usize, most: i32
    ) = Initialized, |state, caller| {
        // SAFETY: the caller's function, called as the driver calls it.
        let shared = |threads| size.map_or(dynamic, |size| unsafe { size(threads) }) as u64;
        let (blocks, threads) = state.sim.best_block(caller, function, most, shared)?;
        // SAFETY: the caller's pointers.
        unsafe { put(grid, blocks).and_then(|()| put(block, threads)) }
    };

    cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: *mut i32, block: *mut i32, function: u64, size: SizeOfBlock, dynamic: usize, most: i32, _flags: u32
    ) = Initialized, |state, caller| {
        // SAFETY: the caller's function, called as the driver calls it.
        let shared = |threads| size.map_or(dynamic, |size| unsafe { size(threads) }) as u64;
        let (blocks, threads) = state.sim.best_block(caller, function, most, shared)?;
        // SAFETY: the caller's pointers.
        unsafe { put(grid, blocks).and_then(|()| put(block, threads)) }
    };

    cuOccupancyAvailableDynamicSMemPerBlock(left: *mut usize, function: u64, blocks: i32, block: i32) = Initialized,
    |state, caller| {
        let found = state.sim.shared_left(caller, function, blocks, block)?;
        // SAFETY: the caller's pointer.
        unsafe { put(left, found as usize) }
    };
}
