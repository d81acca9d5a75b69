//! Streams and events: work that runs in order, beside the thread that gave it.

use std::any::Any;
use std::fmt;
use std::ops::RangeBounds;
use std::sync::Arc;

use crate::backend::{Moment, Op, RawStream};
use crate::live::{Counted, Thing};
use crate::slice::checked_range;
use crate::{Bytes, Device, Error, Memory, Region, StreamBuffer};

/// What the host device calls the threads that run its streams.
pub(crate) const STREAM_THREAD: &str = "granule-stream";

/// A queue of work on a device. What is given to one stream runs in the order in which it was given; streams run beside
/// each other, and [`Stream::wait`] is what orders them.
///
/// Dropping a stream waits until all that was given to it has run.
pub struct Stream {
    raw: Arc<dyn RawStream>,
    owner: Counted,
}

/// A point in a stream's work: it is done when everything that was given to the stream before it has run.
///
/// An event is made by recording it and means that one point for ever: there is none that was never recorded, and none that
/// comes to mean a later one. Cheap to clone.
#[derive(Clone)]
pub struct Event {
    moment: Arc<dyn Moment>,
    device: Device,
}

impl Stream {
    pub(crate) fn new(device: &Device) -> Result<Stream, Error> {
        Ok(Stream::of(device, device.backend().stream()?))
    }

    pub(crate) fn of(device: &Device, raw: Arc<dyn RawStream>) -> Stream {
        device.remember(&raw);
        Stream { raw, owner: Counted::new(device, Thing::Stream) }
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn raw(&self) -> &Arc<dyn RawStream> {
        &self.raw
    }

    /// True on a thread of the host device that runs streams' work, where nothing may wait for a stream: what is dropped after
    /// work, such as a region's memory, is dropped here.
    pub fn works_here() -> bool {
        std::thread::current().name() == Some(STREAM_THREAD)
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        self.owner.device()
    }

    /// Copies bytes of one region onto as many of another.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::LengthMismatch`], [`Error::ReadOnly`], [`Error::OtherDevice`]; [`Error::Os`] where the
    /// stream cannot run.
    pub fn copy<A: Memory, B: Memory>(
        &self,
        from: &Region<A>,
        from_range: impl RangeBounds<usize>,
        to: &mut Region<B>,
        to_range: impl RangeBounds<usize>,
    ) -> Result<(), Error> {
        self.check_device(to.device(), "a region")?;
        self.copy_across(from, from_range, to, to_range, None)
    }

    /// Copies bytes of a region of this device onto as many of a region of another, which [`Device::can_access_peer`]
    /// need not be true of.
    ///
    /// # Errors
    /// As [`Stream::copy`]; [`Error::OtherDevice`] where the two are not CUDA devices.
    pub fn copy_to_peer<A: Memory, B: Memory>(
        &self,
        from: &Region<A>,
        from_range: impl RangeBounds<usize>,
        to: &mut Region<B>,
        to_range: impl RangeBounds<usize>,
    ) -> Result<(), Error> {
        let peer = to.device().clone();
        if peer.is_same(self.device()) {
            return self.copy(from, from_range, to, to_range);
        }
        self.device().check_peer(&peer, "a region")?;
        self.copy_across(from, from_range, to, to_range, Some(peer))
    }

    fn copy_across<A: Memory, B: Memory>(
        &self,
        from: &Region<A>,
        from_range: impl RangeBounds<usize>,
        to: &mut Region<B>,
        to_range: impl RangeBounds<usize>,
        across: Option<Device>,
    ) -> Result<(), Error> {
        self.check_device(from.device(), "a region")?;
        let source = checked_range(from_range, from.len())?;
        let target = to.checked_write(to_range)?;
        if source.len() != target.len() {
            return Err(Error::LengthMismatch { source_len: source.len(), target_len: target.len() });
        }
        self.wait_until_ready(from)?;
        match to.ready() {
            Some(ready) if across.is_some() => self.wait_for_peer(ready)?,
            Some(ready) => self.wait(ready)?,
            None => (),
        }
        let (from_ptr, to_ptr) = (from.ptr_at(source.start), to.ptr_at(target.start));
        let keep = [from.ticket(false), to.ticket(true)];
        self.raw.push(Op::Copy { from: from_ptr, to: to_ptr, len: source.len(), across, keep })
    }

    /// Lets the stream wait for memory that another stream is making.
    pub(crate) fn wait_until_ready<M: Memory>(&self, region: &Region<M>) -> Result<(), Error> {
        region.ready().map_or(Ok(()), |ready| self.wait(ready))
    }

    /// Sets bytes of a region to `value`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::ReadOnly`], [`Error::OtherDevice`]; [`Error::Os`] where the stream cannot run.
    pub fn fill<M: Memory>(
        &self,
        region: &mut Region<M>,
        range: impl RangeBounds<usize>,
        value: u8,
    ) -> Result<(), Error> {
        self.check_device(region.device(), "a region")?;
        let range = region.checked_write(range)?;
        self.wait_until_ready(region)?;
        let keep = region.ticket(true);
        self.raw.push(Op::Fill { at: region.ptr_at(range.start), len: range.len(), value, keep })
    }

    /// Runs a function of this process when its turn comes. It should be short, and must not wait for work that is behind it.
    ///
    /// On a CUDA device it runs on a thread of the driver's, which may run such functions one after the other: it must not
    /// wait for any work, and what it asks of the device is refused with [`Error::InHostFunction`]. What it drops is given
    /// back later.
    ///
    /// # Errors
    /// [`Error::Os`] where the stream cannot run. A panic in the function comes out of [`Stream::synchronize`].
    pub fn call(&self, function: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        self.raw.push(Op::Call(Box::new(function)))
    }

    /// Device memory that is there for the work that is given from now on, made and freed in the order of the stream's work
    /// (`cuMemAllocAsync`): an alternative source where neither granules nor whole allocations fit. It comes from the
    /// driver's pool for the device, which no bank accounts for. On the host it is plain memory.
    ///
    /// Work on other streams, and looking at it from here, waits until it is there.
    ///
    /// # Errors
    /// As [`Device::alloc`]; [`Error::Unsupported`] where the device has no memory pools; [`Error::Capturing`].
    pub fn alloc(&self, len: Bytes) -> Result<Region<StreamBuffer>, Error> {
        Region::new(StreamBuffer::new(self.device(), &self.raw, len)?)
    }

    /// The point after all that was given so far.
    ///
    /// # Errors
    /// [`Error::Os`] where the stream cannot run.
    pub fn record(&self) -> Result<Event, Error> {
        Ok(Event::new(self.raw.record()?, self.device()))
    }

    /// The point at which the stream is gone and all that it was given has run: what is to be waited for by who has only a weak
    /// handle of the stream and finds it gone, for a stream goes before it has waited. The event does not keep the stream.
    ///
    /// It is for threads. A stream of a CUDA device cannot wait for it: that is [`Error::OtherDevice`].
    pub fn end(&self) -> Event {
        Event::new(self.raw.end(), self.device())
    }

    /// Lets nothing that is given from now on run before the event is done.
    ///
    /// # Errors
    /// [`Error::OtherDevice`]; [`Error::Os`] where the stream cannot run.
    pub fn wait(&self, event: &Event) -> Result<(), Error> {
        self.check_device(&event.device, "an event")?;
        self.raw.push(Op::Wait(Arc::clone(&event.moment)))
    }

    /// As [`Stream::wait`], for an event of any CUDA device on a stream of any CUDA device.
    ///
    /// # Errors
    /// [`Error::OtherDevice`] where one of the two is not CUDA's; [`Error::Driver`].
    pub fn wait_for_peer(&self, event: &Event) -> Result<(), Error> {
        self.device().check_peer(&event.device, "an event")?;
        self.raw.push(Op::Wait(Arc::clone(&event.moment)))
    }

    /// Waits here until all that was given has run.
    ///
    /// # Errors
    /// [`Error::HostFunction`], once, where a function panicked since the last time.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.raw.synchronize()
    }

    /// Waits here until all that was given has run, or never will, as where this is dropped: past injected faults, and past what a
    /// function panicked with. It is for who has to give up memory that work of the stream may be using.
    ///
    /// # Errors
    /// [`Error::Capturing`] where somebody else captures the stream; [`Error::Driver`] where the driver does not know: the work may be
    /// running still.
    pub fn wait_out(&self) -> Result<(), Error> {
        self.raw.wait_out()
    }

    pub(crate) fn check_device(&self, other: &Device, what: &'static str) -> Result<(), Error> {
        self.device().check_same(other, what)
    }
}

impl Event {
    pub(crate) fn new(moment: Arc<dyn Moment>, device: &Device) -> Event {
        Event { moment, device: device.clone() }
    }

    /// Whether it is done, without waiting. In a function that runs on a CUDA stream: whether that was known before.
    ///
    /// True also where the driver has lost the context: the work will never run on. [`Stream::synchronize`] tells the two
    /// apart.
    pub fn is_done(&self) -> bool {
        self.moment.is_done()
    }

    /// Waits here until it is done. Where the driver has lost the context, and with it all work, it returns too: the next
    /// call that can fail says so.
    pub fn synchronize(&self) {
        self.moment.wait();
    }
}

/// What a function that ran on a stream panicked with.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Stream({})", self.device().name())
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_done() { "Event(done)" } else { "Event(pending)" })
    }
}
