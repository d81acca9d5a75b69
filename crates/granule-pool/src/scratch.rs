//! `ScratchArena`: temporaries that are given back in the order opposite to that in which they were taken.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use granule_bank::{Bank, Growable, Owner};
use granule_device::{Bytes, Device, DeviceSliceMut, Home, Lease, Stream};

use crate::Error;
use crate::policy::UNIT;

/// Memory for temporaries whose lives nest, over one [`Growable`]: taking some is an addition, and a [`Frame`] gives back all
/// that was taken from it at once. The arena grows by granules to the most that was ever in use together, at addresses that
/// never change, and keeps that until [`ScratchArena::trim`].
///
/// A pool serves lives that do not nest, several streams, and threads; this is for a function that knows when its temporaries
/// end, and costs less. It needs a device with virtual memory.
///
/// ```
/// use granule_bank::{Bank, BankOptions, Owner};
/// use granule_device::{Bytes, Device, HostOptions};
/// use granule_pool::ScratchArena;
/// # let device = Device::host_with(HostOptions::new().capacity(Bytes::mib(16)))?;
/// let bank = Bank::new(device, BankOptions::new())?;
/// let mut scratch = ScratchArena::new(&bank, &Owner::new("scratch"), Bytes::gib(1))?;
/// let mut frame = scratch.frame();
/// let mut sums = frame.alloc(Bytes::kib(4))?;
/// for _layer in 0..3 {
///     let mut inner = frame.frame();
///     let mut product = inner.alloc(Bytes::kib(64))?; // the same addresses for each layer
///     product.slice_mut().as_host_mut().ok_or("on the host")?.fill(1);
///     sums.slice_mut().as_host_mut().ok_or("on the host")?.fill(2); // stays through all of them
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ScratchArena {
    memory: ManuallyDrop<Growable>,
    /// Where the next temporary starts; a multiple of the unit.
    top: u64,
    /// The most that this ever was.
    peak: u64,
    stream: Option<Arc<Stream>>,
}

impl ScratchArena {
    /// One that this process's own threads use, or work that has ended when the frame it is for is dropped. It has no memory
    /// yet; `reserve` is how much it can come to have, in addresses.
    ///
    /// # Errors
    /// [`Error::Bank`] where the device has no virtual memory, or no addresses left.
    pub fn new(bank: &Bank, owner: &Owner, reserve: Bytes) -> Result<ScratchArena, Error> {
        let memory = ManuallyDrop::new(bank.growable(owner, reserve)?);
        Ok(ScratchArena { memory, top: 0, peak: 0, stream: None })
    }

    /// One for work of one stream, which may still be running when the frame that it is for is dropped: the next frame's comes
    /// behind it. The arena's memory goes back to the bank behind that work too; where that cannot be seen to, as while the
    /// stream is captured, it does not go back at all. What captured work uses is kept as long as its graph.
    ///
    /// # Errors
    /// As [`ScratchArena::new`]; [`Error::OtherDevice`].
    pub fn on_stream(
        bank: &Bank,
        owner: &Owner,
        reserve: Bytes,
        stream: &Arc<Stream>,
    ) -> Result<ScratchArena, Error> {
        if !stream.device().is_same(bank.device()) {
            return Err(Error::OtherDevice { what: "a stream" });
        }
        let mut arena = ScratchArena::new(bank, owner, reserve)?;
        arena.stream = Some(Arc::clone(stream));
        Ok(arena)
    }

    /// The device whose memory it is.
    pub fn device(&self) -> &Device {
        self.memory.bank().device()
    }

    /// What it holds of the bank's memory.
    pub fn mapped(&self) -> Bytes {
        self.memory.mapped()
    }

    /// How much it can come to have.
    pub fn reserved(&self) -> Bytes {
        self.memory.reserved()
    }

    /// The most that was ever in use together.
    pub fn peak(&self) -> Bytes {
        Bytes::new(self.peak)
    }

    /// A place to take temporaries from.
    pub fn frame(&mut self) -> Frame<'_> {
        // Nobody has anything of it, not even of a frame that was forgotten.
        self.top = 0;
        Frame { arena: self, start: 0 }
    }

    /// Gives its memory back to the bank, once the stream's work has run.
    ///
    /// # Errors
    /// [`Error::Device`], [`Error::Bank`]; it is as it was.
    pub fn trim(&mut self) -> Result<(), Error> {
        if let Some(stream) = &self.stream {
            stream.record()?.synchronize();
        }
        Ok(self.memory.shrink_to(Bytes::ZERO)?)
    }

    /// `size` bytes at a multiple of `align`, the first behind the top.
    fn push<'a>(&mut self, size: Bytes, align: Bytes) -> Result<Lease<'a>, Error> {
        let limit = self.memory.bank().granule();
        if !align.get().is_power_of_two() || align > limit {
            return Err(Error::Alignment { requested: align, limit });
        }
        let base = self.memory.base();
        let start = (base.addr() + self.top).next_multiple_of(align.get()) - base.addr();
        let end = Bytes::new(start)
            .saturating_add(size.checked_next_multiple_of(Bytes::new(UNIT)).unwrap_or(Bytes::MAX));
        if end > self.memory.len() {
            self.memory.grow_to(end)?;
        }
        let len = size.to_usize().unwrap_or(0);
        let at = base.add(Bytes::new(start));
        // SAFETY: the bytes are mapped and stay so while the arena is borrowed, as whoever calls has it for `'a`; they lie
        // above all that was taken before, and nothing takes them again before the frame is dropped, and then not before
        // `'a` is over.
        let piece = unsafe { DeviceSliceMut::from_raw(at, len, Home::on(self.device())) };
        let lease = self.device().lease(piece)?;
        self.top = end.get();
        self.peak = self.peak.max(self.top);
        Ok(lease)
    }
}

impl ScratchArena {
    /// Sees to it that no work of the stream is left when the memory is somebody else's.
    fn leave(&mut self) -> Result<(), granule_device::Error> {
        let Some(stream) = &self.stream else { return Ok(()) };
        match stream.record() {
            Ok(event) => {
                if self.memory.shrink_after(Bytes::ZERO, &event).is_err() {
                    event.synchronize();
                }
                Ok(())
            }
            Err(_) => match stream.synchronize() {
                // It has waited all the same.
                Err(granule_device::Error::HostFunction { .. }) => Ok(()),
                waited => waited,
            },
        }
    }
}

impl Drop for ScratchArena {
    fn drop(&mut self) {
        // Where nobody can say whether the work has ended, the memory is lost rather than given to somebody else.
        if self.leave().is_ok() {
            // SAFETY: it is dropped once, here, and nothing uses it afterwards.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

/// A part of a [`ScratchArena`]'s order: what is taken from a frame goes back together, with the frame. Frames nest, and while
/// an inner one lives nothing can be taken from the outer one.
///
/// Like all memory whose giving back waits for nothing, what a frame lends may be used by `unsafe` launches of one stream
/// only, the [arena's](ScratchArena::on_stream), unless they have ended when the frame is dropped; safe code cannot get that
/// wrong.
#[derive(Debug)]
pub struct Frame<'a> {
    arena: &'a mut ScratchArena,
    start: u64,
}

impl<'a> Frame<'a> {
    /// A temporary of `size` bytes at a multiple of 256, whose contents are whatever they were.
    ///
    /// # Errors
    /// [`Error::Bank`] where there is no more memory, or more than was reserved; nothing has changed then. [`Error::Device`] where
    /// a memory checker cannot be told.
    pub fn alloc(&mut self, size: Bytes) -> Result<Lease<'a>, Error> {
        self.arena.push(size, Bytes::new(UNIT))
    }

    /// As [`Frame::alloc`], at a multiple of `align`: a power of two, up to the size of a granule.
    ///
    /// # Errors
    /// As [`Frame::alloc`]; [`Error::Alignment`].
    pub fn alloc_aligned(&mut self, size: Bytes, align: Bytes) -> Result<Lease<'a>, Error> {
        self.arena.push(size, align.max(Bytes::new(UNIT)))
    }

    /// A frame within this one.
    pub fn frame(&mut self) -> Frame<'_> {
        let start = self.arena.top;
        Frame { arena: self.arena, start }
    }

    /// How much is taken from it and from the frames around it.
    pub fn used(&self) -> Bytes {
        Bytes::new(self.arena.top)
    }
}

impl Drop for Frame<'_> {
    fn drop(&mut self) {
        self.arena.top = self.start;
    }
}
