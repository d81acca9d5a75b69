//! `Subject`: an allocator under test, and `Handle`: what one thread holds of it.

use std::mem::MaybeUninit;

/// An allocator under test, shared by the threads that use it.
pub trait Subject: Sync {
    /// What an allocation answers.
    type Block: Send;
    /// What one thread holds to allocate on one stream.
    type Handle<'a>: Handle<Block = Self::Block>
    where
        Self: 'a;

    /// What it is called in tables.
    fn name(&self) -> &'static str;
    /// For stream `stream`, one at a time.
    fn handle(&self, stream: usize) -> Self::Handle<'_>;
    /// What it holds now.
    fn footprint(&self) -> Footprint;
    /// Gives back what nobody needs, where it can.
    fn trim(&self) {}
}

/// Allocates and frees for one thread.
pub trait Handle {
    /// What an allocation answers.
    type Block;
    /// At least `size` bytes; `size` is not 0.
    fn alloc(&mut self, size: u32) -> Self::Block;
    /// Takes a block back, whichever handle of the subject it came from.
    fn free(&mut self, block: Last<'_, Self::Block>);
    /// As [`Handle::free`], of a block that was moved here.
    #[inline]
    fn free_moved(&mut self, block: Self::Block) {
        let mut place = MaybeUninit::new(block);
        // SAFETY: it was initialized here and is not read again.
        self.free(unsafe { Last::of(&mut place) });
    }
    /// The block's address, or the number that stands for it.
    fn address(block: &Self::Block) -> u64;
}

/// A block that nobody will use again, where it lies. A subject whose block returns itself drops it there; others take it.
#[derive(Debug)]
pub struct Last<'a, B>(&'a mut MaybeUninit<B>);

impl<'a, B> Last<'a, B> {
    /// What is in `place`.
    ///
    /// # Safety
    /// - `place` is initialized.
    /// - It is not read again before it is written.
    #[inline]
    pub unsafe fn of(place: &'a mut MaybeUninit<B>) -> Last<'a, B> {
        Last(place)
    }

    /// Moves it out.
    #[inline(always)]
    pub fn take(self) -> B {
        // SAFETY: as `of` demands; it is taken or dropped once, by value of this.
        unsafe { self.0.assume_init_read() }
    }

    /// Drops it in its place.
    #[inline(always)]
    pub fn drop_in_place(self) {
        // SAFETY: as above.
        unsafe { self.0.assume_init_drop() }
    }
}

/// What a subject holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes taken from the device or system, in use or not; `None` where the subject does not tell.
    pub reserved: Option<u64>,
    /// Calls into the driver or system since the subject was made; `None` where it has no driver.
    pub calls: Option<u64>,
}
