//! `Lease`: memory of a pool, until it is dropped.

use std::fmt;
use std::mem;
use std::ptr;
use std::sync::Arc;

use granule_bank::trace::Event as Traced;
use granule_device::{Bytes, Device, DevicePtr, DeviceSlice, DeviceSliceMut, Event, Memory};

use crate::capture::{Account, Kept, Private};
use crate::extra::Extra;
use crate::heap::{Heap, HeapCore, HeapStream};
use crate::policy::{Class, Stamp};
use crate::shell::{Block, Counts, Entry, Spot};
use crate::{Error, Pool};

/// Memory on loan from a pool. It goes back when this is dropped: on any thread, also after the pool and its heaps.
///
/// A lease of a stream's heap may be dropped as soon as the work that uses it was given to that stream; dropping it calls no
/// driver. What further streams use it for is made known with [`Lease::used_by`]. In between, [`Lease::slice`] and
/// [`Lease::slice_mut`] wait for that work, and [`Region<Lease>`](granule_device::Region) keeps the lease until work given
/// through it has run.
#[must_use = "dropping it gives the memory back"]
pub struct Lease {
    /// Where a small one lies. A large one has none.
    spot: Option<Spot>,
    /// Where there is a spot, [`Small`] as a number; else the lease's own box.
    rest: *mut Large,
}

// SAFETY: a number, or a box of what can be sent and shared.
unsafe impl Send for Lease {}
// SAFETY: as above.
unsafe impl Sync for Lease {}

const _: () = assert!(usize::BITS == 64, "a lease keeps 64 bits in a pointer");

/// A lease that comes and goes by the fast path:
///
/// ```text
///  63    56 55   48 47        32 31                        0
///  | zero  | class | waste      | number of the block      |
/// ```
///
/// The waste is the bytes that nobody asked for: the classes of the last doubling are 64 KiB apart. It is one word and not four
/// fields because a processor that has just stored four small fields waits when they are loaded as one.
#[derive(Clone, Copy)]
pub(crate) struct Small(u64);

impl Small {
    #[inline]
    pub(crate) fn new(class: Class, waste: u16, number: u32) -> Small {
        Small(((class.index() as u64) << 48) | (u64::from(waste) << 32) | u64::from(number))
    }

    #[inline]
    fn class(self) -> Class {
        let Some(class) = Class::at((self.0 >> 48) as usize) else {
            unreachable!("it was made from a class")
        };
        class
    }

    #[inline]
    fn waste(self) -> u64 {
        (self.0 >> 32) & 0xFFFF
    }

    #[inline]
    fn number(self) -> u32 {
        self.0 as u32
    }

    #[inline]
    fn given(self) -> u64 {
        self.class().size()
    }

    #[inline]
    fn size(self) -> Bytes {
        Bytes::new(self.given() - self.waste())
    }
}

/// A lease, looked at.
enum Kind<'a> {
    Small(Spot, Small),
    Large(&'a Large),
}

/// A lease that stands for itself.
#[derive(Debug)]
struct Large {
    core: Arc<HeapCore>,
    block: Block,
    size: Bytes,
    extra: Extra,
}

impl Lease {
    #[inline]
    pub(crate) fn small(spot: Spot, small: Small) -> Lease {
        Lease { spot: Some(spot), rest: ptr::without_provenance_mut(small.0 as usize) }
    }

    /// A small lease as two numbers; the first is not 0.
    #[inline]
    pub(crate) fn words(spot: Spot, small: Small) -> (u64, u64) {
        (spot.to_bits(), small.0)
    }

    /// The lease that is these two numbers.
    #[inline]
    pub(crate) fn of_words((spot, small): (u64, u64)) -> Option<Lease> {
        Spot::from_bits(spot).map(|spot| Lease::small(spot, Small(small)))
    }

    pub(crate) fn large(core: Arc<HeapCore>, block: Block, size: Bytes, extra: Extra) -> Lease {
        Lease::of(Box::new(Large { core, block, size, extra }))
    }

    fn of(large: Box<Large>) -> Lease {
        Lease { spot: None, rest: Box::into_raw(large) }
    }

    #[inline]
    fn kind(&self) -> Kind<'_> {
        match self.spot {
            Some(spot) => Kind::Small(spot, Small(self.rest.addr() as u64)),
            // SAFETY: without a spot it is a box, which is this lease's until it is dropped.
            None => Kind::Large(unsafe { &*self.rest }),
        }
    }

    pub(crate) fn heap(&self) -> &HeapCore {
        match self.kind() {
            // SAFETY: the block is the heap's, and leased by this as long as it is borrowed.
            Kind::Small(spot, _) => unsafe { spot.shell().heap() },
            Kind::Large(large) => &large.core,
        }
    }

    /// The lease as one that stands for itself.
    fn make_large(&mut self) -> &mut Large {
        if let Kind::Small(spot, small) = self.kind() {
            let large = Box::new(small.leave(spot));
            // A small one is two numbers: nothing is dropped.
            (self.spot, self.rest) = (None, Box::into_raw(large));
        }
        // SAFETY: it is large now, and borrowed exclusively.
        unsafe { &mut *self.rest }
    }

    fn extra(&self) -> Option<&Extra> {
        match self.kind() {
            Kind::Small(..) => None,
            Kind::Large(large) => Some(&large.extra),
        }
    }

    /// Where it starts: a number for other libraries' calls. It is the lease's until that is dropped; see
    /// [`Lease::stream_slice`] for what holds in between.
    #[inline]
    pub fn ptr(&self) -> DevicePtr {
        match self.kind() {
            Kind::Small(spot, _) => spot.at(),
            Kind::Large(large) => large.extra.address(&large.block),
        }
    }

    /// How many bytes were asked for.
    #[inline]
    pub fn len(&self) -> Bytes {
        match self.kind() {
            Kind::Small(_, small) => small.size(),
            Kind::Large(large) => large.size,
        }
    }

    /// True where none were.
    pub fn is_empty(&self) -> bool {
        self.len().is_zero()
    }

    /// How many bytes the block has that it lies in: at most 255 more than the length, or an eighth of it.
    pub fn given(&self) -> Bytes {
        Bytes::new(match self.kind() {
            Kind::Small(_, small) => small.given(),
            Kind::Large(large) => large.block.given,
        })
    }

    /// The device whose memory it is.
    pub fn device(&self) -> &Device {
        self.heap().pool.device()
    }

    /// Makes it known that work of another heap's stream uses the lease from here on, until it is dropped. That stream first
    /// waits for all that this lease's own stream was given so far, this lease's former life included. A local heap has no work
    /// to make known.
    ///
    /// # Errors
    /// [`Error::OtherDevice`]; [`Error::Device`] where the streams cannot be ordered: nothing has changed then.
    pub fn used_by(&mut self, heap: &Heap) -> Result<(), Error> {
        let (core, user) = (self.heap(), heap.core());
        if !user.pool.device().is_same(self.device()) {
            return Err(Error::OtherDevice { what: "a heap" });
        }
        let Some(stream) = heap.stream() else { return Ok(()) };
        if core.stream.as_ref().is_some_and(|own| own.is(stream)) {
            return Ok(());
        }
        // By the clocks of the pool that the lease goes back to.
        let user = if Arc::ptr_eq(&user.pool, &core.pool) {
            Arc::clone(user)
        } else {
            Arc::clone(Pool::of(Arc::clone(&core.pool)).heap(stream)?.core())
        };
        let Some(other) = &user.stream else { return Ok(()) };
        if let Some(own) = &core.stream {
            let given = Stamp::One(own.clock.id(), own.clock.now());
            core.pool.clocks().wait(&other.clock, stream, &given)?;
        }
        let (at, user_stream) = (self.ptr().addr(), other.clock.trace());
        core.pool.tracer().emit(|| Traced::Used { at, stream: user_stream });
        let users = &mut self.make_large().extra.users;
        if !users.iter().any(|known| Arc::ptr_eq(known, &user)) {
            users.push(user);
        }
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
        let len = self.len().to_usize().unwrap_or(0);
        // SAFETY: the block is mapped and nobody else's while it is leased, and its former users come before the heap's
        // stream's next work; the caller promises the rest.
        unsafe { DeviceSlice::from_raw(self.ptr(), len, self.heap().pool.home()) }
    }

    /// The bytes, for work that is given to the heap's own stream: to write too.
    ///
    /// # Safety
    /// - As of [`Lease::stream_slice`], for what reads and what writes them.
    pub unsafe fn stream_slice_mut(&mut self) -> DeviceSliceMut<'_> {
        let len = self.len().to_usize().unwrap_or(0);
        // SAFETY: as above.
        unsafe { DeviceSliceMut::from_raw(self.ptr(), len, self.heap().pool.home()) }
    }

    /// The heap's stream, where there is one and it is still there.
    #[cfg(feature = "cuda")]
    pub(crate) fn stream(&self, what: &'static str) -> Result<Arc<granule_device::Stream>, Error> {
        let stream = self.heap().stream.as_ref().and_then(|own| own.stream.upgrade());
        stream.ok_or(Error::NoStream { what })
    }

    fn wait(&self) -> Result<(), Error> {
        let users = self.extra().into_iter().flat_map(|extra| &extra.users).map(|user| &**user);
        let cores = std::iter::once(self.heap()).chain(users);
        cores.filter_map(|core| core.stream.as_ref()).try_for_each(HeapStream::finish)
    }

    /// An event behind all that the streams were given that use the lease; none where nothing has to be waited for. What no event can
    /// be put behind, because its stream is being dropped, is waited for here.
    fn event(&self) -> Result<Option<Event>, Error> {
        let core = self.heap();
        let users = self.extra().into_iter().flat_map(|extra| &extra.users).map(|user| &**user);
        let mut streams = std::iter::once(core).chain(users).filter_map(|core| core.stream.as_ref());
        let last = loop {
            let Some(own) = streams.next() else { return Ok(None) };
            match own.stream.upgrade() {
                Some(stream) => break (own, stream),
                None => own.end.synchronize(),
            }
        };
        let (own, stream) = last;
        // One stream waits for the others, and so its event is behind all of them.
        let others = Stamp::of(streams.map(|other| (other.clock.id(), other.clock.now())));
        core.pool.clocks().wait(&own.clock, &stream, &others)?;
        Ok(Some(stream.record()?))
    }
}

impl Small {
    /// Gives the block back.
    #[inline(always)]
    fn end(self, spot: Spot) {
        let class = self.class();
        let mut state = spot.shell().lock();
        state.counts.give(Counts::share(class.size(), self.waste()));
        let tick = state.now();
        state.cache.push(class, Entry::new(spot, self.number(), tick));
        if !state.is_free_short() {
            HeapCore::after_free(state);
        }
    }

    /// Takes the block out of the fast path's books.
    fn leave(self, spot: Spot) -> Large {
        let (class, given, size) = (self.class(), self.given(), self.size());
        let mut state = spot.shell().lock();
        state.counts.give(Counts::share(given, self.waste()));
        state.counts.take_large(given, size.get());
        state.counts.owned -= 1;
        let Some(core) = state.core.clone() else { unreachable!("a heap with a lease is kept") };
        let gone = state.update();
        drop(state);
        let block = core.pool.blocks().take(self.number(), spot.at(), Some(class));
        drop(gone);
        Large { core, block, size, extra: Extra::default() }
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        let Large { core, block, size, extra } = self;
        let (core, block, size, extra) = (&*core, *block, *size, mem::take(extra));
        if extra.traced {
            core.pool.tracer().emit(|| Traced::Free { at: extra.address(&block).addr() });
        }
        let Extra { users, announced, apart, account, .. } = extra;
        drop(announced);
        let mut stamp = core.stamp(core.now());
        users.iter().for_each(|user| stamp.merge(&user.stamp(user.now())));
        let shared = !users.is_empty();
        let apart = apart.map(|apart| apart.buffer);
        // Work that is captured now may use it, and so may the graph's launches: on the heap's own stream and on those it is marked
        // with.
        let captures =
            users.iter().filter_map(|user| user.shell.lock().private.as_ref().map(Private::account));
        let mut others: Vec<Arc<Account>> = captures.collect();
        let mut state = core.shell.lock();
        state.counts.give_large(block.given, size.get());
        others.extend(state.private.as_ref().map(Private::account));
        others.retain(|other| account.as_ref().is_none_or(|own| !Arc::ptr_eq(own, other)));
        let again = account.is_some() && others.is_empty() && !shared;
        if let Some(first) = account.or_else(|| others.pop()) {
            drop(state);
            let kept = first.take_back(Kept { block, stamp, apart, others }, again);
            return core.pool.give_kept(kept.into_iter().collect());
        }
        match block.class {
            Some(class) if shared && state.is_cached() => {
                state.waiting.push((class, block, stamp.clone()));
                drop(state);
            }
            _ => {
                drop(state);
                if shared {
                    // Not by way of the cache, which may be there by now and has no place for other streams' ticks.
                    core.pool.give(vec![block.home(stamp.clone())]);
                } else {
                    core.welcome(vec![(block, stamp.clone())]);
                }
            }
        }
        if let Some(buffer) = apart {
            core.pool.keep_apart(buffer, stamp);
        }
    }
}

impl Drop for Lease {
    #[inline(always)]
    fn drop(&mut self) {
        match self.spot {
            Some(spot) => Small(self.rest.addr() as u64).end(spot),
            // SAFETY: without a spot it is the box that the lease was made with, and nothing uses it afterwards.
            None => drop(unsafe { Box::from_raw(self.rest) }),
        }
    }
}

// SAFETY: the bytes are the lease's own until it is dropped; they stay in place, and writing them takes `&mut`. Work of other
// streams waits for `ready`, which is behind whatever the streams that use the lease were given before.
unsafe impl Memory for Lease {
    fn device(&self) -> &Device {
        self.device()
    }

    fn readable(&self) -> Result<DeviceSlice<'_>, granule_device::Error> {
        self.slice().map_err(device_error)
    }

    fn writable(&mut self) -> Result<DeviceSliceMut<'_>, granule_device::Error> {
        let ready = self.event().map_err(device_error)?;
        if ready.is_some() {
            self.make_large().extra.ready = ready;
        }
        // SAFETY: who asks waits for `ready`.
        Ok(unsafe { self.stream_slice_mut() })
    }

    fn ready(&self) -> Option<&Event> {
        self.extra()?.ready.as_ref()
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
