//! The `offset-allocator` crate (Aaltonen's two-level segregated fit with immediate coalescing) behind a mutex.
//!
//! It manages one span of fixed size, counted in units of 256 bytes here. What it "reserves" is the highest end of a block so
//! far: what a device's memory would have to be.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use offset_allocator::{Allocation, Allocator};

use crate::subject::Last;
use crate::{Footprint, Handle, Subject};

/// Bytes of a unit.
const UNIT: u32 = 256;

/// One span behind a mutex.
pub struct Offsets {
    span: Mutex<Allocator<u32>>,
    highest: AtomicU64,
}

impl Offsets {
    /// A span of so many bytes.
    pub fn new(bytes: u64) -> Offsets {
        let units = u32::try_from(bytes / u64::from(UNIT)).expect("a span of at most 1 TiB");
        Offsets { span: Mutex::new(Allocator::new(units)), highest: AtomicU64::new(0) }
    }
}

/// An allocation.
pub struct OffsetBlock(Allocation<u32>);

impl Subject for Offsets {
    type Block = OffsetBlock;
    type Handle<'a> = &'a Offsets;

    fn name(&self) -> &'static str {
        "offset-allocator, mutex"
    }

    fn handle(&self, _stream: usize) -> &Offsets {
        self
    }

    fn footprint(&self) -> Footprint {
        Footprint { reserved: Some(self.highest.load(Ordering::Relaxed)), calls: None }
    }
}

impl Handle for &Offsets {
    type Block = OffsetBlock;

    #[inline(always)]
    fn alloc(&mut self, size: u32) -> OffsetBlock {
        let units = size.div_ceil(UNIT);
        let mut span = self.span.lock().unwrap_or_else(PoisonError::into_inner);
        let block = span.allocate(units).expect("a span that is large enough");
        // Under the lock, so a load and rarely a store; there is nothing to race with.
        let end = u64::from(block.offset + units) * u64::from(UNIT);
        if end > self.highest.load(Ordering::Relaxed) {
            self.highest.store(end, Ordering::Relaxed);
        }
        OffsetBlock(block)
    }

    #[inline(always)]
    fn free(&mut self, block: Last<'_, OffsetBlock>) {
        let block = block.take();
        self.span.lock().unwrap_or_else(PoisonError::into_inner).free(block.0);
    }

    #[inline]
    fn address(block: &OffsetBlock) -> u64 {
        u64::from(block.0.offset) * u64::from(UNIT)
    }
}
