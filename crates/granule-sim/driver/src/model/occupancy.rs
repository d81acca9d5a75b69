//! How many blocks fit: by threads and by shared memory. Registers are the compiler's, and the simulator has none.

use super::{Caller, Result, Simulation};
use crate::code::Code;

impl Simulation {
    const SHARED_A_MULTIPROCESSOR: u64 = 167_936;
    const SHARED_RESERVED_A_BLOCK: u64 = 1024;
    const BLOCKS_A_MULTIPROCESSOR: u32 = 32;

    /// Blocks of a kernel that one multiprocessor holds.
    pub(crate) fn occupancy(
        &mut self,
        caller: &Caller,
        function: u64,
        block: i32,
        dynamic: u64,
    ) -> Result<i32> {
        let f = self.function(caller, function)?;
        let block =
            u32::try_from(block).ok().filter(|b| (1..=1024).contains(b)).ok_or(Code::INVALID_VALUE)?;
        if block > f.entry.most_threads.unwrap_or(1024) {
            return Ok(0);
        }
        let by_threads = Self::THREADS_A_MULTIPROCESSOR / block.next_multiple_of(32);
        let shared = u64::from(f.entry.shared) + dynamic + Self::SHARED_RESERVED_A_BLOCK;
        let by_shared = Self::SHARED_A_MULTIPROCESSOR / shared;
        Ok(u64::from(by_threads.min(Self::BLOCKS_A_MULTIPROCESSOR)).min(by_shared) as i32)
    }

    /// The block size, a multiple of the warp of at most `most` threads (0: any), that keeps most threads resident, the
    /// largest where several do; and the blocks that fill the device. `dynamic` says the shared memory for a size.
    pub(crate) fn best_block(
        &mut self,
        caller: &Caller,
        function: u64,
        most: i32,
        dynamic: impl Fn(i32) -> u64,
    ) -> Result<(i32, i32)> {
        let own = self.function(caller, function)?.entry.most_threads.unwrap_or(1024) as i32;
        let most = if most == 0 { own } else { most.min(own) };
        let mut best = (0, 0, 0);
        for block in (32..=most.max(32)).rev().filter(|b| b % 32 == 0) {
            let blocks = self.occupancy(caller, function, block, dynamic(block))?;
            if blocks * block > best.0 {
                best = (blocks * block, block, blocks * Self::MULTIPROCESSORS as i32);
            }
        }
        if best.0 == 0 { Err(Code::INVALID_VALUE) } else { Ok((best.2, best.1)) }
    }

    /// Dynamic shared memory that is left to each of `blocks` blocks of one multiprocessor.
    pub(crate) fn shared_left(
        &mut self,
        caller: &Caller,
        function: u64,
        blocks: i32,
        block: i32,
    ) -> Result<u64> {
        let own = u64::from(self.function(caller, function)?.entry.shared);
        let blocks = u64::try_from(blocks).ok().filter(|&b| b > 0 && block > 0).ok_or(Code::INVALID_VALUE)?;
        let each =
            (Self::SHARED_A_MULTIPROCESSOR / blocks).saturating_sub(Self::SHARED_RESERVED_A_BLOCK + own);
        Ok(each.min(Self::SHARED_MEMORY_OPT_IN.into()))
    }
}
