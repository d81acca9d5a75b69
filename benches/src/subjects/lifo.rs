//! The floor: one LIFO of numbers per size class behind one `std::sync::Mutex`, and nothing else.
//!
//! No addresses, no stamps, no statistics, no coalescing, no way to give memory back, nothing that runs out: what is left is
//! the lock, the class of the size and a push or a pop. The lock is of the type that the pool uses; the classes are the pool's
//! (256-byte steps to 2 KiB, then 8 to a doubling), carried on to 4 GiB so that every script can be played. A block is 8 bytes:
//! its class, so that freeing need not compute it again, and its number.

use std::sync::{Mutex, PoisonError};

use crate::subject::Last;
use crate::{Footprint, Handle, Subject};

/// 8 linear classes and 8 for each doubling from 2 KiB to 4 GiB.
const CLASSES: usize = 8 + 8 * 21;

/// One LIFO per class behind a mutex.
#[derive(Debug)]
pub struct ClassLifo {
    lists: Mutex<Lists>,
}

#[derive(Debug)]
struct Lists {
    free: [Vec<u32>; CLASSES],
    made: u32,
    bytes: u64,
}

/// A class and a number.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    class: u8,
    id: u32,
}

/// The class of a size that is not 0. No branch: random sizes would make it the dearest part of the floor.
#[inline]
fn class(size: u32) -> u8 {
    let last = size - 1;
    let step = (last | 2048).ilog2() - 3;
    ((last >> step) + 8 * (step - 8)) as u8
}

/// Bytes of the blocks of a class.
fn class_size(class: u8) -> u64 {
    let class = u64::from(class);
    if class < 8 { (class + 1) << 8 } else { (9 + class % 8) << (8 + (class - 8) / 8) }
}

impl Default for ClassLifo {
    fn default() -> ClassLifo {
        let free = std::array::from_fn(|_| Vec::new());
        ClassLifo { lists: Mutex::new(Lists { free, made: 0, bytes: 0 }) }
    }
}

impl Subject for ClassLifo {
    type Block = Slot;
    type Handle<'a> = &'a ClassLifo;

    fn name(&self) -> &'static str {
        "floor: class LIFO, mutex"
    }

    fn handle(&self, _stream: usize) -> &ClassLifo {
        self
    }

    fn footprint(&self) -> Footprint {
        let lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        Footprint { reserved: Some(lists.bytes), calls: None }
    }
}

impl Handle for &ClassLifo {
    type Block = Slot;

    #[inline(always)]
    fn alloc(&mut self, size: u32) -> Slot {
        let class = class(size);
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        match lists.free[usize::from(class)].pop() {
            Some(id) => Slot { class, id },
            None => lists.make(class),
        }
    }

    #[inline(always)]
    fn free(&mut self, block: Last<'_, Slot>) {
        let block = block.take();
        let mut lists = self.lists.lock().unwrap_or_else(PoisonError::into_inner);
        lists.free[usize::from(block.class)].push(block.id);
    }

    #[inline]
    fn address(block: &Slot) -> u64 {
        u64::from(block.id)
    }
}

impl Lists {
    #[cold]
    fn make(&mut self, class: u8) -> Slot {
        self.made += 1;
        self.bytes += class_size(class);
        Slot { class, id: self.made }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a search through all classes.
    #[test]
    fn the_class_of_a_size_is_the_smallest_that_holds_it() {
        let naive = |size: u32| (0..CLASSES as u8).find(|&c| class_size(c) >= u64::from(size)).unwrap();
        let near = (0..32).flat_map(|bit| (-300..300).map(move |off| (1i64 << bit) + off));
        for size in near.filter_map(|size| u32::try_from(size).ok()).filter(|size| *size > 0).chain(1..70_000)
        {
            assert_eq!(class(size), naive(size), "{size}");
        }
        assert_eq!(usize::from(class(u32::MAX)), CLASSES - 1);
    }
}
