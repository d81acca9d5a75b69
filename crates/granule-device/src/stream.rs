//! Streams and events: work that runs in order, beside the thread that gave it.

use std::fmt;
use std::ops::RangeBounds;
use std::sync::Arc;

use crate::backend::{Moment, Op, RawStream};
use crate::device::{Counted, Thing};
use crate::slice::checked_range;
use crate::{Device, Error, Memory, Region};

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
        let raw = device.backend().stream()?;
        device.remember(&raw);
        Ok(Stream { raw, owner: Counted::new(device, Thing::Stream) })
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
        self.check_device(from.device(), "a region")?;
        self.check_device(to.device(), "a region")?;
        let source = checked_range(from_range, from.len())?;
        let target = to.checked_write(to_range)?;
        if source.len() != target.len() {
            return Err(Error::LengthMismatch { source_len: source.len(), target_len: target.len() });
        }
        let (from_ptr, to_ptr) = (from.ptr_at(source.start), to.ptr_at(target.start));
        let keep = [from.ticket(false), to.ticket(true)];
        self.raw.push(Op::Copy { from: from_ptr, to: to_ptr, len: source.len(), keep })
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
        let keep = region.ticket(true);
        self.raw.push(Op::Fill { at: region.ptr_at(range.start), len: range.len(), value, keep })
    }

    /// Runs a function of this process when its turn comes. It should be short, and must not wait for work that is behind it.
    ///
    /// # Errors
    /// [`Error::Os`] where the stream cannot run. A panic in the function comes out of [`Stream::synchronize`].
    pub fn call(&self, function: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        self.raw.push(Op::Call(Box::new(function)))
    }

    /// The point after all that was given so far.
    ///
    /// # Errors
    /// [`Error::Os`] where the stream cannot run.
    pub fn record(&self) -> Result<Event, Error> {
        Ok(Event { moment: self.raw.record()?, device: self.device().clone() })
    }

    /// Lets nothing that is given from now on run before the event is done.
    ///
    /// # Errors
    /// [`Error::OtherDevice`]; [`Error::Os`] where the stream cannot run.
    pub fn wait(&self, event: &Event) -> Result<(), Error> {
        self.check_device(&event.device, "an event")?;
        self.raw.push(Op::Wait(Arc::clone(&event.moment)))
    }

    /// Waits here until all that was given has run.
    ///
    /// # Errors
    /// [`Error::HostFunction`], once, where a function panicked since the last time.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.raw.synchronize()
    }

    fn check_device(&self, other: &Device, what: &'static str) -> Result<(), Error> {
        if other.is_same(self.device()) { Ok(()) } else { Err(Error::OtherDevice { what }) }
    }
}

impl Event {
    /// Whether it is done, without waiting.
    pub fn is_done(&self) -> bool {
        self.moment.is_done()
    }

    /// Waits here until it is done.
    pub fn synchronize(&self) {
        self.moment.wait();
    }
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
