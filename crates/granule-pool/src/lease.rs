//! `Lease`: memory of a pool, until it is dropped.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;

use granule_bank::trace::Event as Traced;
use granule_device::{
    Buffer, Bytes, Device, DevicePtr, DeviceSlice, DeviceSliceMut, Event, LeaseMode, Memory, Suballocation,
};

use crate::capture::{Account, Kept, Private};
use crate::heap::{Heap, HeapCore};
use crate::ladder::Found;
use crate::policy::Stamp;
use crate::pool::PoolInner;
use crate::shell::{Block, Entry};
use crate::{Error, Pool};

/// Memory on loan from a pool. It goes back when this is dropped: on any thread, also after the pool and its heaps.
///
/// A lease of a stream's heap may be dropped as soon as the work that uses it was given to that stream; dropping it calls no
/// driver. What further streams use it for is made known with [`Lease::used_by`]. In between, [`Lease::slice`] and
/// [`Lease::slice_mut`] wait for that work, and [`Region<Lease>`](granule_device::Region) keeps the lease until work given
/// through it has run.
#[must_use = "dropping it gives the memory back"]
pub struct Lease {
    core: ManuallyDrop<Arc<HeapCore>>,
    block: ManuallyDrop<Box<Block>>,
}

/// What few leases have.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    /// Heaps of further streams that use it.
    users: Vec<Arc<HeapCore>>,
    /// While a memory checker knows of it.
    announced: Option<Suballocation>,
    /// The memory itself, in [`LeaseMode::Apart`]; the block lies idle.
    apart: Option<Buffer>,
    /// Whose the memory is, where it was allocated in a capture.
    account: Option<Arc<Account>>,
    /// From when on other streams may use it.
    ready: Option<Event>,
}

impl Extra {
    /// What a new lease needs beside its block.
    pub(crate) fn of(pool: &PoolInner, found: &Found) -> Result<Option<Box<Extra>>, Error> {
        let (at, size) = (found.block.at, found.block.size);
        let mut extra = Extra { account: found.account.clone(), ..Extra::default() };
        match pool.device().lease_mode() {
            LeaseMode::Quiet => {}
            _ if size.is_zero() => {}
            LeaseMode::Announced => extra.announced = Some(pool.device().announce(at, size)?),
            // Pinned memory is the host's, which knows allocations of its own only.
            LeaseMode::Apart if pool.is_pinned() => {}
            LeaseMode::Apart => {
                pool.collect_apart();
                extra.apart = Some(pool.device().alloc(size)?);
            }
        }
        let empty = extra.account.is_none() && extra.announced.is_none() && extra.apart.is_none();
        Ok(if empty { None } else { Some(Box::new(extra)) })
    }
}

impl Block {
    /// Where the memory is: in the block, unless the lease is an allocation of its own.
    pub(crate) fn address(&self) -> DevicePtr {
        let apart = self.extra.as_ref().and_then(|extra| extra.apart.as_ref());
        apart.map_or(self.at, Buffer::ptr)
    }
}

impl Lease {
    #[inline]
    pub(crate) fn new(core: Arc<HeapCore>, block: Box<Block>) -> Lease {
        Lease { core: ManuallyDrop::new(core), block: ManuallyDrop::new(block) }
    }

    pub(crate) fn heap(&self) -> &HeapCore {
        &self.core
    }

    /// Where it starts: a number for other libraries' calls. It is the lease's until that is dropped; see [`Lease::stream_slice`] for
    /// what holds in between.
    #[inline]
    pub fn ptr(&self) -> DevicePtr {
        self.block.address()
    }

    /// How many bytes were asked for.
    #[inline]
    pub fn len(&self) -> Bytes {
        self.block.size
    }

    /// True where none were.
    pub fn is_empty(&self) -> bool {
        self.block.size.is_zero()
    }

    /// How many bytes the block has that it lies in: at most 255 more than the length, or an eighth of it.
    pub fn given(&self) -> Bytes {
        Bytes::new(self.block.given)
    }

    /// The device whose memory it is.
    pub fn device(&self) -> &Device {
        self.core.pool.device()
    }

    /// Makes it known that work of another heap's stream uses the lease from here on, until it is dropped. That stream first waits for
    /// all that this lease's own stream was given so far, this lease's former life included. A local heap has no work to make known.
    ///
    /// # Errors
    /// [`Error::OtherDevice`]; [`Error::Device`] where the streams cannot be ordered: nothing has changed then.
    pub fn used_by(&mut self, heap: &Heap) -> Result<(), Error> {
        let user = heap.core();
        if !user.pool.device().is_same(self.device()) {
            return Err(Error::OtherDevice { what: "a heap" });
        }
        let Some(other) = &user.stream else { return Ok(()) };
        if let Some(own) = &self.core.stream {
            if Arc::ptr_eq(&own.stream, &other.stream) {
                return Ok(());
            }
        }
        // By the clocks of the pool that the lease goes back to.
        let user = if Arc::ptr_eq(&user.pool, &self.core.pool) {
            Arc::clone(user)
        } else {
            Arc::clone(Pool::of(Arc::clone(&self.core.pool)).heap(&other.stream)?.core())
        };
        let (Some(other), own) = (&user.stream, &self.core.stream) else { return Ok(()) };
        if let Some(own) = own {
            let given = Stamp::One(own.clock.id(), own.clock.now());
            self.core.pool.clocks().wait(&other.clock, &other.stream, &given)?;
        }
        let (at, stream) = (self.ptr().addr(), other.clock.trace());
        let extra = self.block.extra.get_or_insert_default();
        if !extra.users.iter().any(|known| Arc::ptr_eq(known, &user)) {
            extra.users.push(user);
        }
        self.core.pool.tracer().emit(|| Traced::Used { at, stream });
        Ok(())
    }

    /// The bytes, to read, once all has run that the streams were given that use the lease.
    ///
    /// # Errors
    /// [`Error::Device`] where a stream cannot be waited for, as while it is captured.
    pub fn slice(&self) -> Result<DeviceSlice<'_>, Error> {
        self.wait()?;
        // SAFETY: the memory is this lease's; what its streams were given has run, and who gives them more promises not to
        // while this is borrowed.
        Ok(unsafe { self.stream_slice() })
    }

    /// The bytes, to write, once all has run that the streams were given that use the lease.
    ///
    /// # Errors
    /// As [`Lease::slice`].
    pub fn slice_mut(&mut self) -> Result<DeviceSliceMut<'_>, Error> {
        self.wait()?;
        // SAFETY: as above, and the lease is borrowed exclusively.
        Ok(unsafe { self.stream_slice_mut() })
    }

    /// The bytes, for work that is given to the heap's own stream: to read, and without waiting for anything.
    ///
    /// # Safety
    /// - What reads them is given to the heap's stream before the lease is dropped; or to another stream that the lease is
    ///   [marked](Lease::used_by) with; or it has ended by then.
    /// - Nothing writes them meanwhile but work of the same stream, which is in order.
    pub unsafe fn stream_slice(&self) -> DeviceSlice<'_> {
        let len = self.block.size.to_usize().unwrap_or(0);
        // SAFETY: the block is mapped and nobody else's while it is leased, and its former users come before the heap's
        // stream's next work; the caller promises the rest.
        unsafe { DeviceSlice::from_raw(self.ptr(), len, self.core.pool.home()) }
    }

    /// The bytes, for work that is given to the heap's own stream: to write too.
    ///
    /// # Safety
    /// - As of [`Lease::stream_slice`], for what reads and what writes them.
    pub unsafe fn stream_slice_mut(&mut self) -> DeviceSliceMut<'_> {
        let len = self.block.size.to_usize().unwrap_or(0);
        // SAFETY: as above.
        unsafe { DeviceSliceMut::from_raw(self.ptr(), len, self.core.pool.home()) }
    }

    fn wait(&self) -> Result<(), Error> {
        let users = self.block.extra.iter().flat_map(|extra| &extra.users);
        let cores = std::iter::once(&*self.core).chain(users);
        for own in cores.filter_map(|core| core.stream.as_ref()) {
            own.stream.record()?.synchronize();
        }
        Ok(())
    }

    /// Gives the block back by the long way.
    #[cold]
    #[inline(never)]
    fn end(core: Arc<HeapCore>, mut block: Box<Block>) {
        core.pool.tracer().emit(|| Traced::Free { at: block.address().addr() });
        let extra = block.extra.take().map_or_else(Extra::default, |extra| *extra);
        let Extra { users, announced, apart, account, ready: _ } = extra;
        drop(announced);
        let mut stamp = core.stamp(core.now());
        users.iter().for_each(|user| stamp.merge(&user.stamp(user.now())));
        let shared = !users.is_empty();
        if let Some(buffer) = apart {
            core.pool.keep_apart(buffer, stamp.clone());
        }
        let mut state = core.shell.lock();
        state.counts.give(block.size.get(), block.given);
        // A lease from before the capture may be used by captured work, and so by the graph's launches.
        let captured = state.private.as_ref().filter(|_| account.is_none()).map(Private::account);
        if let Some(account) = account.as_ref().or(captured.as_ref()) {
            drop(state);
            let again = captured.is_none() && !shared;
            if let Some(Kept { block, stamp }) = account.take_back(Kept { block, stamp }, again) {
                core.pool.give(vec![block.home(stamp)]);
            }
        } else if let (Some(class), true) = (block.class, state.cached) {
            if shared {
                state.waiting.push((class, block, stamp));
            } else {
                let tick = core.now();
                state.cache.push(class, Entry { block, tick });
            }
        } else {
            drop(state);
            core.pool.give(vec![block.home(stamp)]);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // SAFETY: they are taken once, here, and nothing uses them afterwards.
        let (core, block) =
            unsafe { (ManuallyDrop::take(&mut self.core), ManuallyDrop::take(&mut self.block)) };
        if let (Some(class), None) = (block.class, &block.extra)
            && !core.pool.tracer().is_on()
        {
            let tick = core.now();
            let mut state = core.shell.lock();
            if state.cached {
                state.counts.give(block.size.get(), block.given);
                state.cache.push(class, Entry { block, tick });
                if state.cache.bytes() <= core.pool.cache_limit() {
                    // Under the lock: a heap that is being closed drops what is spare.
                    state.spare.push(core);
                } else {
                    drop(state);
                    core.shrink();
                }
                return;
            }
        }
        Lease::end(core, block);
    }
}

// SAFETY: the bytes are the lease's own until it is dropped; they stay in place, and writing them takes `&mut`. Work of other streams
// waits for `ready`, which is behind whatever the heap's stream was given before.
unsafe impl Memory for Lease {
    fn device(&self) -> &Device {
        self.device()
    }

    fn readable(&self) -> Result<DeviceSlice<'_>, granule_device::Error> {
        self.slice().map_err(device_error)
    }

    fn writable(&mut self) -> Result<DeviceSliceMut<'_>, granule_device::Error> {
        if let Some(own) = &self.core.stream {
            let ready = own.stream.record()?;
            self.block.extra.get_or_insert_default().ready = Some(ready);
        }
        // SAFETY: who asks waits for `ready`.
        Ok(unsafe { self.stream_slice_mut() })
    }

    fn ready(&self) -> Option<&Event> {
        self.block.extra.as_ref()?.ready.as_ref()
    }
}

/// Waiting fails for the device's reasons only.
fn device_error(error: Error) -> granule_device::Error {
    match error {
        Error::Device(error) => error,
        _ => granule_device::Error::Busy { by: "work that the lease's streams were given" },
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({:#x}, {})", self.ptr().addr(), self.len())
    }
}
