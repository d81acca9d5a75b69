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
use crate::policy::{BlockId, Class, Stamp};
use crate::pool::PoolInner;
use crate::shell::Entry;
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
    at: DevicePtr,
    block: BlockId,
    arena: u32,
    /// Where the block goes when it is given back; none: to its arena.
    class: Option<Class>,
    size: Bytes,
    /// The size of the block.
    given: u64,
    extra: Option<Box<Extra>>,
}

/// What few leases have.
#[derive(Debug, Default)]
pub(crate) struct Extra {
    /// Heaps of further streams that use it.
    users: Vec<Arc<HeapCore>>,
    /// While a memory checker knows of it.
    announced: Option<Suballocation>,
    /// The memory itself, in [`LeaseMode::Apart`], and where the block lies, idle.
    apart: Option<(Buffer, DevicePtr)>,
    /// Whose the memory is, where it was allocated in a capture.
    account: Option<Arc<Account>>,
    /// From when on other streams may use it.
    ready: Option<Event>,
}

impl Extra {
    /// What a new lease needs beside its block.
    pub(crate) fn of(pool: &PoolInner, found: &Found, size: Bytes) -> Result<Option<Box<Extra>>, Error> {
        let mut extra = Extra { account: found.account.clone(), ..Extra::default() };
        match pool.device().lease_mode() {
            LeaseMode::Quiet => {}
            _ if size.is_zero() => {}
            LeaseMode::Announced => extra.announced = Some(pool.device().announce(found.at, size)?),
            // Pinned memory is the host's, which knows allocations of its own only.
            LeaseMode::Apart if pool.is_pinned() => {}
            LeaseMode::Apart => {
                pool.collect_apart();
                extra.apart = Some((pool.device().alloc(size)?, found.at));
            }
        }
        let empty = extra.account.is_none() && extra.announced.is_none() && extra.apart.is_none();
        Ok(if empty { None } else { Some(Box::new(extra)) })
    }
}

impl Lease {
    #[inline]
    pub(crate) fn new(
        core: Arc<HeapCore>,
        at: DevicePtr,
        block: BlockId,
        arena: u32,
        size: Bytes,
        given: u64,
        class: Option<Class>,
    ) -> Lease {
        Lease { core: ManuallyDrop::new(core), at, block, arena, class, size, given, extra: None }
    }

    pub(crate) fn set_extra(&mut self, extra: Option<Box<Extra>>) {
        if let Some((apart, _)) = extra.as_ref().and_then(|extra| extra.apart.as_ref()) {
            self.at = apart.ptr();
        }
        self.extra = extra;
    }

    pub(crate) fn heap(&self) -> &HeapCore {
        &self.core
    }

    /// Where it starts: a number for other libraries' calls. It is the lease's until that is dropped; see [`Lease::stream_slice`] for
    /// what holds in between.
    #[inline]
    pub fn ptr(&self) -> DevicePtr {
        self.at
    }

    /// How many bytes were asked for.
    #[inline]
    pub fn len(&self) -> Bytes {
        self.size
    }

    /// True where none were.
    pub fn is_empty(&self) -> bool {
        self.size.is_zero()
    }

    /// How many bytes the block has that it lies in: at most 255 more than the length, or an eighth of it.
    pub fn given(&self) -> Bytes {
        Bytes::new(self.given)
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
        let (at, stream) = (self.at.addr(), other.clock.trace());
        let extra = self.extra.get_or_insert_default();
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
        let len = self.size.to_usize().unwrap_or(0);
        // SAFETY: the block is mapped and nobody else's while it is leased, and its former users come before the heap's
        // stream's next work; the caller promises the rest.
        unsafe { DeviceSlice::from_raw(self.at, len, self.core.pool.home()) }
    }

    /// The bytes, for work that is given to the heap's own stream: to write too.
    ///
    /// # Safety
    /// - As of [`Lease::stream_slice`], for what reads and what writes them.
    pub unsafe fn stream_slice_mut(&mut self) -> DeviceSliceMut<'_> {
        let len = self.size.to_usize().unwrap_or(0);
        // SAFETY: as above.
        unsafe { DeviceSliceMut::from_raw(self.at, len, self.core.pool.home()) }
    }

    fn wait(&self) -> Result<(), Error> {
        let users = self.extra.iter().flat_map(|extra| &extra.users);
        let cores = std::iter::once(&*self.core).chain(users);
        for own in cores.filter_map(|core| core.stream.as_ref()) {
            own.stream.record()?.synchronize();
        }
        Ok(())
    }

    /// Takes the lease apart for its heap.
    #[cold]
    #[inline(never)]
    fn end(core: Arc<HeapCore>, lease: Returned, extra: Option<Box<Extra>>) {
        let Returned { at, block, arena, class, size, given } = lease;
        let extra = extra.map_or_else(Extra::default, |extra| *extra);
        let Extra { users, announced, apart, account, ready: _ } = extra;
        core.pool.tracer().emit(|| Traced::Free { at: at.addr() });
        drop(announced);
        let mut stamp = core.stamp(core.now());
        users.iter().for_each(|user| stamp.merge(&user.stamp(user.now())));
        let shared = !users.is_empty();
        let at = match apart {
            Some((buffer, at)) => {
                core.pool.keep_apart(buffer, stamp.clone());
                at
            }
            None => at,
        };
        let mut state = core.shell.lock();
        state.counts.give(size.get(), given);
        let kept = Kept { at, block, arena, size: given, class, stamp };
        // A lease from before the capture may be used by captured work, and so by the graph's launches.
        let captured = state.private.as_ref().filter(|_| account.is_none()).map(Private::account);
        if let Some(account) = account.as_ref().or(captured.as_ref()) {
            drop(state);
            let again = captured.is_none() && !shared;
            if let Some(kept) = account.take_back(kept, again) {
                core.pool.give(vec![(kept.arena, kept.block, kept.stamp)]);
            }
        } else if let (Some(class), true) = (class, state.cached) {
            let entry = Entry { at, block, tick: core.now(), arena };
            if shared {
                state.waiting.push((class, entry, kept.stamp));
            } else {
                state.cache.push(class, entry);
            }
        } else {
            drop(state);
            core.pool.give(vec![(arena, block, kept.stamp)]);
        }
    }
}

/// What of a lease goes back.
struct Returned {
    at: DevicePtr,
    block: BlockId,
    arena: u32,
    class: Option<Class>,
    size: Bytes,
    given: u64,
}

impl Drop for Lease {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: it is taken once, here, and nothing uses it afterwards.
        let core = unsafe { ManuallyDrop::take(&mut self.core) };
        let Lease { at, block, arena, class, size, given, .. } = *self;
        if let (Some(class), None) = (class, &self.extra)
            && !core.pool.tracer().is_on()
        {
            let entry = Entry { at, block, tick: core.now(), arena };
            let mut state = core.shell.lock();
            if state.cached {
                state.counts.give(size.get(), given);
                state.cache.push(class, entry);
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
        let returned = Returned { at, block, arena, class, size, given };
        Lease::end(core, returned, self.extra.take());
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
            self.extra.get_or_insert_default().ready = Some(ready);
        }
        // SAFETY: who asks waits for `ready`.
        Ok(unsafe { self.stream_slice_mut() })
    }

    fn ready(&self) -> Option<&Event> {
        self.extra.as_ref()?.ready.as_ref()
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
        write!(f, "Lease({:#x}, {})", self.at.addr(), self.size)
    }
}
