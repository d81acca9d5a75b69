//! The other floor: the `slab` crate behind a mutex. It is blind to sizes: what keeping a number for each block costs.

use std::sync::{Mutex, PoisonError};

use slab::Slab;

use crate::subject::Last;
use crate::{Footprint, Handle, Subject};

/// A slab of sizes behind a mutex.
#[derive(Debug, Default)]
pub struct SlabFloor {
    sizes: Mutex<Slab<u32>>,
}

impl Subject for SlabFloor {
    type Block = usize;
    type Handle<'a> = &'a SlabFloor;

    fn name(&self) -> &'static str {
        "floor: slab, mutex"
    }

    fn handle(&self, _stream: usize) -> &SlabFloor {
        self
    }

    fn footprint(&self) -> Footprint {
        Footprint::default()
    }
}

impl Handle for &SlabFloor {
    type Block = usize;

    #[inline(always)]
    fn alloc(&mut self, size: u32) -> usize {
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner).insert(size)
    }

    #[inline(always)]
    fn free(&mut self, block: Last<'_, usize>) {
        let block = block.take();
        self.sizes.lock().unwrap_or_else(PoisonError::into_inner).remove(block);
    }

    #[inline]
    fn address(block: &usize) -> u64 {
        *block as u64
    }
}
