//! A slice that several threads write at once, each its own part of it.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice that the threads of a region write in ranges that do not overlap.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `range`, whose contract makes every element reachable from one thread at a time.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Takes the slice for the time of a region.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), life: PhantomData }
    }

    /// The address of element `at`, which must not lie behind the end.
    pub(crate) fn at(&self, at: usize) -> *mut T {
        debug_assert!(at <= self.len);
        self.start.wrapping_add(at)
    }

    /// The elements of `range`, cut to the slice's length.
    ///
    /// # Safety
    /// - No other range that overlaps this one is alive.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn range(&self, range: Range<usize>) -> &mut [T] {
        let end = range.end.min(self.len);
        let start = range.start.min(end);
        // SAFETY: start <= end <= len, so the range lies in the slice that `new` borrowed exclusively; the caller
        // vouches that no overlapping range is alive.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), end - start) }
    }
}
