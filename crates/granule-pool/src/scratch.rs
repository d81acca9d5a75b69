//! `ScratchArena`: temporaries that are given back in the order opposite to that in which they were taken.

use std::fmt;
use std::marker::PhantomData;
use std::mem::{self, ManuallyDrop};
use std::sync::Arc;

use granule_bank::{Bank, Growable, Owner};
use granule_device::{
    Buffer, Bytes, Device, DevicePtr, DeviceSlice, DeviceSliceMut, Event, Home, LeaseMode, Stream,
    Suballocation,
};

use crate::Error;
use crate::policy::UNIT;
use crate::shell::lock;
use crate::sync::Mutex;

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
///     product.slice_mut()?.as_host_mut().ok_or("on the host")?.fill(1);
///     sums.slice_mut()?.as_host_mut().ok_or("on the host")?.fill(2); // stays through all of them
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
    work: Option<Arc<Work>>,
}

/// The stream whose work uses an arena.
#[derive(Debug)]
struct Work {
    stream: Arc<Stream>,
    /// Temporaries that were allocations of their own, with the event behind their use; none where none could be recorded.
    apart: Mutex<Vec<(Option<Event>, Buffer)>>,
}

impl Work {
    /// Waits for all that the stream was given.
    fn finish(&self) -> Result<(), Error> {
        self.stream.record()?.synchronize();
        Ok(())
    }

    /// Keeps an allocation until what the stream was given so far has run.
    fn keep(&self, buffer: Buffer) {
        let event = self.stream.record().ok();
        let done: Vec<(Option<Event>, Buffer)> = {
            let mut apart = lock(&self.apart);
            apart.push((event, buffer));
            apart.extract_if(.., |(event, _)| event.as_ref().is_some_and(Event::is_done)).collect()
        };
        drop(done);
    }
}

impl ScratchArena {
    /// One that this process's own threads use, or work that has ended when the frame it is for is dropped. It has no memory
    /// yet; `reserve` is how much it can come to have, in addresses.
    ///
    /// # Errors
    /// [`Error::Bank`] where the device has no virtual memory, or no addresses left.
    pub fn new(bank: &Bank, owner: &Owner, reserve: Bytes) -> Result<ScratchArena, Error> {
        let memory = ManuallyDrop::new(bank.growable(owner, reserve)?);
        Ok(ScratchArena { memory, top: 0, peak: 0, work: None })
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
        arena.work = Some(Arc::new(Work { stream: Arc::clone(stream), apart: Mutex::default() }));
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
        if let Some(work) = &self.work {
            work.finish()?;
            let done = mem::take(&mut *lock(&work.apart));
            drop(done);
        }
        Ok(self.memory.shrink_to(Bytes::ZERO)?)
    }

    /// `size` bytes at a multiple of `align`, the first behind the top.
    fn push<'a>(&mut self, size: Bytes, align: Bytes) -> Result<Scratch<'a>, Error> {
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
        let mut at = base.add(Bytes::new(start));
        let device = self.device();
        let (mut announced, mut apart) = (None, None);
        match device.lease_mode() {
            _ if size.is_zero() => {}
            LeaseMode::Quiet => {}
            LeaseMode::Announced => announced = Some(device.announce(at, size)?),
            LeaseMode::Apart => {
                let buffer = device.alloc(size.saturating_add(align))?;
                let skip = buffer.ptr().addr().next_multiple_of(align.get()) - buffer.ptr().addr();
                at = buffer.ptr().add(Bytes::new(skip));
                apart = Some(buffer);
            }
        }
        let scratch = Scratch {
            at,
            len,
            home: Home::on(device),
            _announced: announced,
            apart,
            work: self.work.clone(),
            idle: PhantomData,
        };
        self.top = end.get();
        self.peak = self.peak.max(self.top);
        Ok(scratch)
    }
}

impl ScratchArena {
    /// Sees to it that no work of the stream is left when the memory is somebody else's.
    fn leave(&mut self) -> Result<(), granule_device::Error> {
        let Some(work) = &self.work else { return Ok(()) };
        match work.stream.record() {
            Ok(event) => {
                let shrunk = self.memory.shrink_after(Bytes::ZERO, &event);
                if shrunk.is_err() || !lock(&work.apart).is_empty() {
                    event.synchronize();
                }
                Ok(())
            }
            Err(_) => match work.stream.synchronize() {
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
        } else if let Some(work) = &self.work {
            mem::forget(mem::take(&mut *lock(&work.apart)));
        }
    }
}

/// A temporary: memory of a [`Frame`], which has it back when the frame is dropped.
pub struct Scratch<'a> {
    at: DevicePtr,
    len: usize,
    home: Home,
    /// While a memory checker knows of it.
    _announced: Option<Suballocation>,
    /// The memory itself, in [`LeaseMode::Apart`]; its place in the arena lies idle.
    apart: Option<Buffer>,
    work: Option<Arc<Work>>,
    idle: PhantomData<DeviceSliceMut<'a>>,
}

impl Scratch<'_> {
    /// Where it starts.
    pub fn ptr(&self) -> DevicePtr {
        self.at
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True where it has none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes, to read; of an arena [on a stream](ScratchArena::on_stream) once all has run that the stream was given, which may
    /// be another frame's work on the same bytes.
    ///
    /// # Errors
    /// [`Error::Device`] where the stream cannot be waited for, as while it is captured.
    pub fn slice(&self) -> Result<DeviceSlice<'_>, Error> {
        self.work.as_ref().map_or(Ok(()), |work| work.finish())?;
        // SAFETY: what the stream was given has run, and who gives it more promises not to while this is borrowed.
        Ok(unsafe { self.stream_slice() })
    }

    /// The bytes, to write; otherwise as [`Scratch::slice`].
    ///
    /// # Errors
    /// As [`Scratch::slice`].
    pub fn slice_mut(&mut self) -> Result<DeviceSliceMut<'_>, Error> {
        self.work.as_ref().map_or(Ok(()), |work| work.finish())?;
        // SAFETY: as above, and it is borrowed exclusively.
        Ok(unsafe { self.stream_slice_mut() })
    }

    /// The bytes, for work that is given to the arena's stream: to read, and without waiting for anything.
    ///
    /// # Safety
    /// - What reads them is given to the [arena's stream](ScratchArena::on_stream), before the frame is dropped; or it comes behind
    ///   all that that stream was given, and has ended by then.
    /// - Nothing writes them meanwhile but work of the same stream, which is in order.
    pub unsafe fn stream_slice(&self) -> DeviceSlice<'_> {
        // SAFETY: the bytes are mapped and stay so while the arena is borrowed, as whoever made this has it for `'a`; they lie
        // above all that was taken before, and nothing takes them again before the frame is dropped, and then not before `'a` is
        // over. Or they are an allocation of this one's own. The caller promises the rest.
        unsafe { DeviceSlice::from_raw(self.at, self.len, self.home) }
    }

    /// The bytes, for work that is given to the arena's stream: to write too.
    ///
    /// # Safety
    /// - As of [`Scratch::stream_slice`], for what reads and what writes them.
    pub unsafe fn stream_slice_mut(&mut self) -> DeviceSliceMut<'_> {
        // SAFETY: as above, and it is borrowed exclusively.
        unsafe { DeviceSliceMut::from_raw(self.at, self.len, self.home) }
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        if let (Some(work), Some(buffer)) = (&self.work, self.apart.take()) {
            work.keep(buffer);
        }
    }
}

impl fmt::Debug for Scratch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Scratch({:#x}, {} bytes)", self.at.addr(), self.len)
    }
}

/// A part of a [`ScratchArena`]'s order: what is taken from a frame goes back together, with the frame. Frames nest, and while
/// an inner one lives nothing can be taken from the outer one.
///
/// Like all memory whose giving back waits for nothing, what a frame lends may be used by `unsafe` launches of one stream
/// only, the [arena's](ScratchArena::on_stream), unless they have ended when the frame is dropped. Safe code cannot get that
/// wrong: it waits for the stream.
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
    pub fn alloc(&mut self, size: Bytes) -> Result<Scratch<'a>, Error> {
        self.arena.push(size, Bytes::new(UNIT))
    }

    /// As [`Frame::alloc`], at a multiple of `align`: a power of two, up to the size of a granule.
    ///
    /// # Errors
    /// As [`Frame::alloc`]; [`Error::Alignment`].
    pub fn alloc_aligned(&mut self, size: Bytes, align: Bytes) -> Result<Scratch<'a>, Error> {
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
