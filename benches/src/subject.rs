//! `Subject`: an allocator under test, and `Handle`: what one thread holds of it.

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
    fn free(&mut self, block: Self::Block);
    /// The block's address, or the number that stands for it.
    fn address(block: &Self::Block) -> u64;
}

/// What a subject holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes taken from the device or system, in use or not; `None` where the subject does not tell.
    pub reserved: Option<u64>,
    /// Calls into the driver or system since the subject was made; `None` where it has no driver.
    pub calls: Option<u64>,
}
