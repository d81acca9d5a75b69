//! The best-fit list of ggml's CUDA backend (its "legacy" pool, used where there is no virtual memory), written anew from what
//! it does.
//!
//! 256 entries, each empty or a buffer and its size. An allocation looks through all entries for the buffer that is larger than
//! asked for by the least, and stops early only at one of exactly that size; it gets the whole buffer, however large. Where
//! there is none, the device is asked for 1.05 times the size, rounded up to 256 bytes. A free puts the buffer into the first
//! empty entry, and gives it to the device where none is empty. Whoever frees says how large the buffer is. When the device has
//! no room, everything in the list goes back to it and it is asked once more.
//!
//! It was compared with the original on this module's scripts: the same number of calls to the device for each, and 291 ns for a
//! pair at 1,000 live where the original took 286 (g++ 12 -O3 -march=native; 345 with -O2).
//!
//! Two things are in its favour here. It takes no lock, as in ggml, where one thread computes for a context; the pool beside it
//! does. And its device costs nothing: an allocation there is an addition, where `cudaMalloc` and `cudaFree` take microseconds
//! and wait for the device. The calls are counted and printed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::subject::Last;
use crate::{Footprint, Handle, Subject};

const ENTRIES: usize = 256;

/// One list for each stream.
pub struct GgmlList {
    lists: Vec<Mutex<List>>,
    device: FreeOfCharge,
}

/// Addresses that cost nothing and never run out.
#[derive(Debug, Default)]
struct FreeOfCharge {
    next: AtomicU64,
    held: AtomicU64,
    calls: AtomicU64,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    /// 0: empty.
    address: u64,
    size: u64,
}

struct List {
    entries: [Entry; ENTRIES],
}

/// A buffer, with the size that it really has.
#[derive(Debug)]
pub struct ListBlock {
    address: u64,
    size: u64,
}

/// A stream's list, held for as long as the handle is there.
pub struct ListHandle<'a> {
    list: MutexGuard<'a, List>,
    device: &'a FreeOfCharge,
}

impl GgmlList {
    /// For so many streams.
    pub fn new(streams: usize) -> GgmlList {
        let list = || Mutex::new(List { entries: [Entry::default(); ENTRIES] });
        GgmlList { lists: (0..streams).map(|_| list()).collect(), device: FreeOfCharge::default() }
    }
}

impl Subject for GgmlList {
    type Block = ListBlock;
    type Handle<'a> = ListHandle<'a>;

    fn name(&self) -> &'static str {
        "ggml's best-fit list, no lock"
    }

    fn handle(&self, stream: usize) -> ListHandle<'_> {
        let list = self.lists[stream].try_lock().expect("one handle of a stream at a time");
        ListHandle { list, device: &self.device }
    }

    fn footprint(&self) -> Footprint {
        Footprint {
            reserved: Some(self.device.held.load(Ordering::Relaxed)),
            calls: Some(self.device.calls.load(Ordering::Relaxed)),
        }
    }
}

impl Handle for ListHandle<'_> {
    type Block = ListBlock;

    #[inline(always)]
    fn alloc(&mut self, size: u32) -> ListBlock {
        let wanted = u64::from(size);
        let mut best = None;
        let mut least = u64::MAX;
        for (at, entry) in self.list.entries.iter().enumerate() {
            if entry.address == 0 || entry.size < wanted {
                continue;
            }
            let over = entry.size - wanted;
            if over < least {
                (best, least) = (Some(at), over);
                if over == 0 {
                    break;
                }
            }
        }
        match best {
            Some(at) => {
                let Entry { address, size } = std::mem::take(&mut self.list.entries[at]);
                ListBlock { address, size }
            }
            None => self.device.alloc(((1.05 * wanted as f64) as u64).next_multiple_of(256)),
        }
    }

    #[inline(always)]
    fn free(&mut self, block: Last<'_, ListBlock>) {
        let block = block.take();
        match self.list.entries.iter_mut().find(|entry| entry.address == 0) {
            Some(entry) => *entry = Entry { address: block.address, size: block.size },
            None => self.device.free(&block),
        }
    }

    #[inline]
    fn address(block: &ListBlock) -> u64 {
        block.address
    }
}

impl FreeOfCharge {
    #[cold]
    fn alloc(&self, size: u64) -> ListBlock {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.held.fetch_add(size, Ordering::Relaxed);
        ListBlock { address: (1 << 20) + self.next.fetch_add(size, Ordering::Relaxed), size }
    }

    #[cold]
    fn free(&self, block: &ListBlock) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.held.fetch_sub(block.size, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reserved(list: &GgmlList) -> u64 {
        list.footprint().reserved.unwrap()
    }

    #[test]
    fn takes_the_best_fit_whole_and_asks_for_a_twentieth_more() {
        let list = GgmlList::new(1);
        let mut handle = list.handle(0);
        let [small, large] = [10_000, 100_000].map(|size| handle.alloc(size));
        assert_eq!((small.size, large.size), (10_752, 105_216));
        assert_eq!(reserved(&list), 10_752 + 105_216);
        let (at_small, at_large) = (small.address, large.address);
        handle.free_moved(large);
        handle.free_moved(small);
        let taken = [handle.alloc(9_000), handle.alloc(300)];
        assert_eq!(taken.map(|block| (block.address, block.size)), [(at_small, 10_752), (at_large, 105_216)]);
        assert_eq!(list.footprint().calls, Some(2));
    }

    #[test]
    fn what_does_not_fit_into_the_list_goes_to_the_device() {
        let list = GgmlList::new(1);
        let mut handle = list.handle(0);
        let blocks: Vec<ListBlock> = (0..300).map(|_| handle.alloc(256)).collect();
        blocks.into_iter().for_each(|block| handle.free_moved(block));
        assert_eq!(list.footprint().calls, Some(300 + 44));
        assert_eq!(reserved(&list), 256 * 512);
    }
}
