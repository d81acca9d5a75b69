//! The `Device` handle: which device it is stays hidden behind it.

use std::fmt;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::backend::{Backend, GranulePlace, RawStream};
use crate::buffer::{Buffer, Managed, Pinned};
use crate::fault::{FaultGuard, FaultPlan, Faults};
use crate::live::{THINGS, Thing};
use crate::suballocation::Suballocation;
use crate::{
    Bytes, DevicePtr, DeviceSlice, DeviceSliceMut, Error, Granule, Lease, LeaseMode, LiveCounts, Reservation,
    Stream,
};

/// The kinds of device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceKind {
    /// This process's own memory.
    Host,
    /// An NVIDIA GPU, through its driver.
    Cuda,
}

/// What a device can do beyond plain memory and streams. Asked for or tried out once, never assumed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Features {
    /// Reservations and granules.
    pub virtual_memory: bool,
    /// Whether the system itself keeps places mapped [`Access::ReadOnly`] from being written. Where it does not, only the
    /// types of this crate do, and a kernel can write there.
    pub read_only: bool,
    /// [`Device::create_granule_on_host`].
    pub host_granules: bool,
    /// [`Device::alloc_managed`]: memory that host and device may use at the same time.
    pub managed: bool,
    /// [`Stream::alloc`].
    pub stream_ordered: bool,
    /// Whether read-only host memory, such as a mapped file's, can be [registered](Device::register) as such.
    pub register_read_only: bool,
    /// Capturing a stream's work into a graph.
    pub capture: bool,
}

/// What may be done with memory through one mapping of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Read through any number of places. A write faults.
    ReadOnly,
    /// Read and write, through this one place alone.
    ReadWrite,
}

/// How much memory a device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryInfo {
    /// All that may be used: on the host, the capacity.
    pub total: Bytes,
    /// What is left of it.
    pub free: Bytes,
}

/// How a host device is set up; the default asks the system.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct HostOptions {
    /// How much memory the device may use; by default the smaller of the control group's limit and the memory that is
    /// available now.
    pub capacity: Option<Bytes>,
    /// The size of a granule: a power of two and a multiple of the system's page; by default 2 MiB.
    pub granule: Option<Bytes>,
    /// Which one it is of several in a process: "host:0", "host:1", … in messages and reports. By default it is "host".
    pub number: Option<usize>,
}

impl HostOptions {
    /// The system's own figures.
    pub fn new() -> HostOptions {
        HostOptions::default()
    }

    /// With this much memory.
    pub fn capacity(self, capacity: Bytes) -> HostOptions {
        HostOptions { capacity: Some(capacity), ..self }
    }

    /// With granules of this size.
    pub fn granule(self, granule: Bytes) -> HostOptions {
        HostOptions { granule: Some(granule), ..self }
    }

    /// As one of several, which messages and reports tell apart.
    pub fn number(self, number: usize) -> HostOptions {
        HostOptions { number: Some(number), ..self }
    }
}

/// One device. Cheap to clone; every clone is the same device. Whatever is made on it keeps it alive.
///
/// ```
/// use granule_device::{Access, Bytes, Device, HostOptions};
///
/// let device = Device::host_with(HostOptions::new().capacity(Bytes::mib(64)).granule(Bytes::kib(64)))?;
/// let mut range = device.reserve(Bytes::mib(1))?;      // 16 places, nothing behind them
/// let granule = device.create_granule()?;               // 64 KiB of memory
/// range.map(3, &[granule], Access::ReadWrite)?;
/// let mut bytes = range.slice_mut(3 * 65536..4 * 65536)?;
/// bytes.as_host_mut().ok_or("on the host")?.fill(7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Device {
    inner: Arc<Inner>,
}

struct Inner {
    backend: Box<dyn Backend>,
    faults: Arc<Faults>,
    live: [AtomicUsize; THINGS],
    /// For waiting on all of them; the streams belong to their handles.
    streams: Mutex<Vec<Weak<dyn RawStream>>>,
    lease_mode: AtomicU8,
}

impl Device {
    /// This process's memory as a device, with the system's own figures.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the system lacks what it takes, [`Error::Os`] where a call fails.
    pub fn host() -> Result<Device, Error> {
        Device::host_with(HostOptions::default())
    }

    /// This process's memory as a device.
    ///
    /// # Errors
    /// [`Error::GranuleSize`] for a granule that cannot be mapped; else as [`Device::host`].
    pub fn host_with(options: HostOptions) -> Result<Device, Error> {
        let faults = Arc::new(Faults::default());
        let backend = crate::host::open(options, Arc::clone(&faults))?;
        Ok(Device::of(backend, faults))
    }

    pub(crate) fn of(backend: Box<dyn Backend>, faults: Arc<Faults>) -> Device {
        let (streams, lease_mode) = (Mutex::default(), AtomicU8::new(LeaseMode::Quiet as u8));
        let inner = Inner { backend, faults, live: Default::default(), streams, lease_mode };
        Device { inner: Arc::new(inner) }
    }

    /// What to call it in messages: "host", "host:1", "cuda:0".
    pub fn name(&self) -> &str {
        self.inner.backend.name()
    }

    /// The kind of device it is.
    pub fn kind(&self) -> DeviceKind {
        self.inner.backend.kind()
    }

    /// The size of a granule.
    pub fn granularity(&self) -> Bytes {
        self.inner.backend.granularity()
    }

    /// How much memory there is and how much of it is left. On the host: the capacity, and the capacity less what was
    /// made on this device.
    ///
    /// # Errors
    /// [`Error::Driver`] where the driver does not say; never on the host.
    pub fn memory(&self) -> Result<MemoryInfo, Error> {
        self.inner.backend.memory()
    }

    /// What it can do. A granule of host memory is tried out when this is first asked, and one to be read only where the
    /// device was full when it was opened.
    ///
    /// # Errors
    /// [`Error::Driver`], [`Error::OutOfMemory`] where that cannot be tried; [`Error::Capturing`]; never on the host.
    pub fn features(&self) -> Result<Features, Error> {
        self.inner.backend.features()
    }

    /// One granule of memory, backed at once, so that using it later cannot run out. A new one reads as zeros on the host
    /// and as anything elsewhere.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::TooLarge`], [`Error::Os`].
    pub fn create_granule(&self) -> Result<Granule, Error> {
        Granule::create(self, GranulePlace::Device)
    }

    /// One granule of the host's memory, which this device reaches where it is mapped: for what has to stay addressable and
    /// is seldom read. On the host device every granule is one.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the driver does not map host memory so; else as [`Device::create_granule`].
    pub fn create_granule_on_host(&self) -> Result<Granule, Error> {
        Granule::create(self, GranulePlace::Host)
    }

    /// A range of addresses with nothing behind it, `len` rounded up to whole granules, its base aligned to one.
    ///
    /// # Errors
    /// [`Error::ZeroSize`]; [`Error::TooLarge`] beyond what can be addressed; [`Error::Unsupported`] on a device without
    /// virtual memory; [`Error::Os`].
    pub fn reserve(&self, len: Bytes) -> Result<Reservation, Error> {
        Reservation::new(self, len, &[])
    }

    /// As [`Device::reserve`], with what is mapped there reachable by other CUDA devices too: a granule of this device, read
    /// by all of them at one address.
    ///
    /// # Errors
    /// [`Error::NoPeerAccess`] where a device cannot reach this one's memory; [`Error::Unsupported`] on the host; else as
    /// [`Device::reserve`].
    pub fn reserve_for(&self, len: Bytes, peers: &[&Device]) -> Result<Reservation, Error> {
        Reservation::new(self, len, peers)
    }

    /// Plain memory in one piece, huge pages advised. Reads as zeros on the host.
    ///
    /// # Errors
    /// [`Error::ZeroSize`], [`Error::OutOfMemory`], [`Error::TooLarge`], [`Error::Os`].
    pub fn alloc(&self, len: Bytes) -> Result<Buffer, Error> {
        Buffer::new(self, len)
    }

    /// Host memory that the system does not page out. Reads as zeros.
    ///
    /// # Errors
    /// [`Error::LockLimit`] where the process may not lock so much; else as [`Device::alloc`].
    pub fn alloc_pinned(&self, len: Bytes) -> Result<Pinned, Error> {
        Pinned::new(self, len)
    }

    /// Memory that this process and the device address alike and use at the same time. Reads as zeros.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the device cannot share memory with a running host; else as [`Device::alloc`].
    pub fn alloc_managed(&self, len: Bytes) -> Result<Managed, Error> {
        Managed::new(self, len)
    }

    /// A new stream, with nothing to do.
    ///
    /// # Errors
    /// [`Error::Os`].
    pub fn stream(&self) -> Result<Stream, Error> {
        Stream::new(self)
    }

    /// Waits until all that was given to any stream has run.
    ///
    /// # Errors
    /// [`Error::HostFunction`] where a function given to one of them panicked.
    pub fn synchronize(&self) -> Result<(), Error> {
        let streams: Vec<_> = self.streams().iter().filter_map(Weak::upgrade).collect();
        let mut done = Ok(());
        for stream in streams {
            done = done.and(stream.synchronize());
        }
        done
    }

    /// Copies memory of this device or of this process, and returns when that is done.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] where the two are not of one length.
    pub fn copy(&self, from: DeviceSlice<'_>, to: DeviceSliceMut<'_>) -> Result<(), Error> {
        if from.len() != to.len() {
            return Err(Error::LengthMismatch { source_len: from.len(), target_len: to.len() });
        }
        if from.is_empty() {
            return Ok(());
        }
        self.backend().copy(from, to)
    }

    /// Copies memory of this device onto memory of another CUDA device, and returns when that is done. It needs no peer
    /// access, and is faster with it.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`]; [`Error::OtherDevice`] where one of the two is not CUDA's; [`Error::Driver`].
    pub fn copy_to_peer(
        &self,
        from: DeviceSlice<'_>,
        peer: &Device,
        to: DeviceSliceMut<'_>,
    ) -> Result<(), Error> {
        if from.len() != to.len() {
            return Err(Error::LengthMismatch { source_len: from.len(), target_len: to.len() });
        }
        self.check_peer(peer, "a slice")?;
        self.backend().copy_to_peer(from, peer, to)
    }

    /// Whether kernels and copies of this device can reach the other's memory directly.
    ///
    /// # Errors
    /// [`Error::Driver`] where the driver does not say.
    pub fn can_access_peer(&self, peer: &Device) -> Result<bool, Error> {
        self.backend().can_access_peer(peer)
    }

    /// Lets kernels and copies of this device reach the other's memory directly: its plain memory, and all that is and will be mapped
    /// in its reservations; [`Device::reserve_for`] is for those that only some devices are to reach. Memory that streams
    /// [make](Stream::alloc) is not in it. Doing it twice is no error.
    ///
    /// # Errors
    /// [`Error::NoPeerAccess`] where the two cannot; [`Error::Unsupported`] on the host; [`Error::Driver`].
    pub fn enable_peer_access(&self, peer: &Device) -> Result<(), Error> {
        self.backend().enable_peer_access(peer)
    }

    /// Tells memory checkers that `len` bytes at `at` are an allocation of their own, cut from a larger one, until the
    /// answer is dropped. Bytes of the larger one that are in no announced piece may then not be touched.
    ///
    /// A GPU's checkers hear it through NVTX, the simulated driver directly. Where nobody listens, nothing is done.
    ///
    /// # Errors
    /// [`Error::Announcement`] where the checker does not take it.
    pub fn announce(&self, at: DevicePtr, len: Bytes) -> Result<Suballocation, Error> {
        Suballocation::new(self, at, len)
    }

    /// Hands out a piece of a larger allocation as one of its own, shown to memory checkers as the
    /// [mode](Device::set_lease_mode) says.
    ///
    /// # Errors
    /// None in [`LeaseMode::Quiet`]; [`Error::Announcement`] in [`LeaseMode::Announced`]; as [`Device::alloc`] in
    /// [`LeaseMode::Apart`].
    pub fn lease<'a>(&self, piece: DeviceSliceMut<'a>) -> Result<Lease<'a>, Error> {
        Lease::new(self, piece)
    }

    /// How leases of this device are shown to memory checkers from now on. Those that are out stay as they are.
    pub fn set_lease_mode(&self, mode: LeaseMode) {
        self.inner.lease_mode.store(mode as u8, Ordering::Relaxed);
    }

    /// How leases of this device are shown to memory checkers. One relaxed load.
    #[inline]
    pub fn lease_mode(&self) -> LeaseMode {
        match self.inner.lease_mode.load(Ordering::Relaxed) {
            1 => LeaseMode::Announced,
            2 => LeaseMode::Apart,
            _ => LeaseMode::Quiet,
        }
    }

    /// Makes a call into the system or driver fail, while the guard lives. One plan at a time: a new one replaces the last.
    ///
    /// Calls are counted whether they come from a method or from a drop. A drop has nobody to tell: what could not be given
    /// back is tried again at the next [`Device::live`] and at the next request that needs room.
    #[must_use = "the plan ends when the guard is dropped"]
    pub fn inject_fault(&self, plan: FaultPlan) -> FaultGuard {
        FaultGuard::new(self.clone(), plan)
    }

    /// How many calls into the system or driver this device has made, failed ones included.
    pub fn calls_made(&self) -> u64 {
        self.inner.faults.calls()
    }

    /// What was made on this device and is still there.
    pub fn live(&self) -> LiveCounts {
        let unsettled = self.inner.backend.settle();
        let count = |thing: Thing| self.inner.live[thing as usize].load(Ordering::Acquire);
        LiveCounts {
            granules: count(Thing::Granule),
            reservations: count(Thing::Reservation),
            mappings: count(Thing::Mapping),
            buffers: count(Thing::Buffer),
            pinned: count(Thing::Pinned),
            registered: count(Thing::Registered),
            managed: count(Thing::Managed),
            streams: count(Thing::Stream),
            modules: count(Thing::Module),
            graphs: count(Thing::Graph),
            suballocations: count(Thing::Suballocation),
            blas: count(Thing::Blas),
            nccl: count(Thing::Nccl),
            unsettled,
        }
    }

    /// True where both handles are of the same device.
    pub fn is_same(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Refuses what is of another device than this one.
    pub(crate) fn check_same(&self, other: &Device, what: &'static str) -> Result<(), Error> {
        if other.is_same(self) { Ok(()) } else { Err(Error::OtherDevice { what }) }
    }

    /// Refuses work across devices other than CUDA's.
    pub(crate) fn check_peer(&self, peer: &Device, what: &'static str) -> Result<(), Error> {
        match (self.kind(), peer.kind()) {
            (DeviceKind::Cuda, DeviceKind::Cuda) => Ok(()),
            _ => Err(Error::OtherDevice { what }),
        }
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.inner.backend
    }

    pub(crate) fn remember(&self, stream: &Arc<dyn RawStream>) {
        let mut streams = self.streams();
        streams.retain(|stream| stream.strong_count() > 0);
        streams.push(Arc::downgrade(stream));
    }

    fn streams(&self) -> MutexGuard<'_, Vec<Weak<dyn RawStream>>> {
        self.inner.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn faults(&self) -> &Faults {
        &self.inner.faults
    }

    pub(crate) fn add_live(&self, thing: Thing, count: usize) {
        self.inner.live[thing as usize].fetch_add(count, Ordering::AcqRel);
    }

    pub(crate) fn sub_live(&self, thing: Thing, count: usize) {
        self.inner.live[thing as usize].fetch_sub(count, Ordering::AcqRel);
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({})", self.name())
    }
}
