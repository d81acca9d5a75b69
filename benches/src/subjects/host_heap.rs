//! The host's own allocators: what `malloc` costs where blocks are never touched.
//!
//! They are asked for blocks aligned to 16 bytes, their fastest way, not to the 256 of device memory. They write into the
//! memory that they manage, which device memory does not allow; they are here as a measure of speed alone.

use std::alloc::{GlobalAlloc, Layout, System};

use mimalloc::MiMalloc;

use crate::subject::Last;
use crate::{Footprint, Handle, Subject};

/// An allocator of the host.
#[derive(Debug)]
pub struct HostHeap<A> {
    heap: A,
    name: &'static str,
}

/// The system's malloc.
pub fn system_malloc() -> HostHeap<System> {
    HostHeap { heap: System, name: "system malloc" }
}

/// mimalloc.
pub fn mimalloc() -> HostHeap<MiMalloc> {
    HostHeap { heap: MiMalloc, name: "mimalloc" }
}

/// An address and the layout that it was asked for with.
#[derive(Debug)]
pub struct HostBlock {
    address: usize,
    layout: Layout,
}

impl<A: GlobalAlloc + Sync> Subject for HostHeap<A> {
    type Block = HostBlock;
    type Handle<'a>
        = &'a HostHeap<A>
    where
        A: 'a;

    fn name(&self) -> &'static str {
        self.name
    }

    fn handle(&self, _stream: usize) -> &HostHeap<A> {
        self
    }

    fn footprint(&self) -> Footprint {
        Footprint::default()
    }
}

impl<A: GlobalAlloc> Handle for &HostHeap<A> {
    type Block = HostBlock;

    #[inline(always)]
    fn alloc(&mut self, size: u32) -> HostBlock {
        let layout = Layout::from_size_align(size as usize, 16).expect("a size of at most 4 GiB");
        // SAFETY: a script's sizes are not 0.
        let at = unsafe { self.heap.alloc(layout) };
        assert!(!at.is_null(), "the host is out of memory");
        HostBlock { address: at.expose_provenance(), layout }
    }

    #[inline(always)]
    fn free(&mut self, block: Last<'_, HostBlock>) {
        let block = block.take();
        // SAFETY: it came from `alloc` with this layout, and a block is no copy.
        unsafe { self.heap.dealloc(std::ptr::with_exposed_provenance_mut(block.address), block.layout) };
    }

    #[inline]
    fn address(block: &HostBlock) -> u64 {
        block.address as u64
    }
}
