//! No allocator at all: what the loop, the script and the table of live blocks cost.

use crate::subject::Last;
use crate::{Footprint, Handle, Subject};

/// Answers the size and forgets it.
#[derive(Debug, Default)]
pub struct Nothing;

impl Subject for Nothing {
    type Block = u32;
    type Handle<'a> = Nothing;

    fn name(&self) -> &'static str {
        "nothing (the harness)"
    }

    fn handle(&self, _stream: usize) -> Nothing {
        Nothing
    }

    fn footprint(&self) -> Footprint {
        Footprint::default()
    }
}

impl Handle for Nothing {
    type Block = u32;

    #[inline(always)]
    fn alloc(&mut self, size: u32) -> u32 {
        size
    }

    #[inline(always)]
    fn free(&mut self, block: Last<'_, u32>) {
        let block = block.take();
        std::hint::black_box(block);
    }

    #[inline]
    fn address(block: &u32) -> u64 {
        u64::from(*block)
    }
}
