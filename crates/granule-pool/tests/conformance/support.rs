//! What every test needs: a device with a known size, a pool on it, and work on streams that looks whether its bytes are its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use granule_bank::{Bank, BankOptions};
use granule_device::{
    Buffer, Bytes, Device, DeviceKind, DeviceSlice, DeviceSliceMut, HostOptions, LiveCounts, Stream,
};
use granule_pool::{Lease, Pool, PoolOptions};

/// A host device with granules as large as a GPU's are in proportion.
pub(crate) fn host() -> Device {
    Device::host_with(HostOptions::new().granule(Bytes::kib(64)).capacity(Bytes::mib(64))).unwrap()
}

/// The first CUDA device. Its absence is a failure: a test that needs it does not pass by skipping.
#[cfg(feature = "cuda")]
pub(crate) fn cuda() -> Device {
    Device::cuda(0).unwrap_or_else(|error| panic!("this test needs a CUDA device: {error}"))
}

/// Runs a test on a new device, and checks that it gave everything back.
pub(crate) fn with_device(open: fn() -> Device, test: fn(&dyn Fn() -> Device)) {
    let watched = std::cell::RefCell::new(Vec::new());
    test(&|| {
        let device = open();
        watched.borrow_mut().push(device.clone());
        device
    });
    watched.into_inner().iter().for_each(nothing_is_left);
}

/// Everything on the device is gone. A host stream that the last lease of its heap keeps is let go of by its own thread.
pub(crate) fn nothing_is_left(device: &Device) {
    for _ in 0..1000 {
        if device.live() == LiveCounts::default() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert_eq!(device.live(), LiveCounts::default(), "left behind on {}", device.name());
}

/// A bank that may hold so many granules and keeps none that nobody holds.
pub(crate) fn bank(device: &Device, granules: u64) -> Bank {
    let options = BankOptions::new().budget(device.granularity().saturating_mul(granules)).cache(Bytes::ZERO);
    Bank::new(device.clone(), options).unwrap()
}

pub(crate) fn pool(bank: &Bank) -> Pool {
    Pool::new(bank, PoolOptions::new().owner("test")).unwrap()
}

pub(crate) fn stream(device: &Device) -> Arc<Stream> {
    Arc::new(device.stream().unwrap())
}

/// Granules, in bytes.
pub(crate) fn granules(device: &Device, count: u64) -> Bytes {
    device.granularity().saturating_mul(count)
}

/// The bytes of device memory.
pub(crate) fn read(device: &Device, slice: DeviceSlice<'_>) -> Vec<u8> {
    let mut bytes = vec![0xEE; slice.len()];
    device.copy(slice, DeviceSliceMut::from(&mut bytes[..])).unwrap();
    bytes
}

/// Puts bytes into device memory.
pub(crate) fn write(device: &Device, bytes: &[u8], target: DeviceSliceMut<'_>) {
    device.copy(DeviceSlice::from(bytes), target).unwrap();
}

/// A stream, and what its work found wrong.
pub(crate) struct Worker {
    pub(crate) stream: Arc<Stream>,
    wrong: Arc<AtomicUsize>,
    /// Where work on a GPU copies what it reads.
    sink: Option<Buffer>,
}

impl Worker {
    pub(crate) fn new(device: &Device) -> Worker {
        let sink = (device.kind() == DeviceKind::Cuda).then(|| device.alloc(granules(device, 4)).unwrap());
        Worker { stream: stream(device), wrong: Arc::default(), sink }
    }

    /// Gives the stream work that writes the lease and later looks whether that is still there; the lease may be dropped at once.
    pub(crate) fn use_lease(&mut self, lease: &mut Lease, value: u8) {
        self.write(lease, value);
        self.check(lease, value);
    }

    /// Gives the stream work that takes its time: whoever should wait for what comes after it and does not is early.
    pub(crate) fn be_slow(&self) {
        self.stream.call(|| std::thread::sleep(std::time::Duration::from_millis(20))).unwrap();
    }

    /// Gives the stream work that writes the lease.
    pub(crate) fn write(&self, lease: &mut Lease, value: u8) {
        #[cfg(feature = "cuda")]
        if self.sink.is_some() {
            // SAFETY: the stream is the lease's heap's, or the lease is marked with it.
            return unsafe { self.stream.fill_slice(lease.stream_slice_mut(), value).unwrap() };
        }
        let (at, len) = (lease.ptr().addr() as usize, lease.len().to_usize().unwrap());
        self.stream
            .call(move || {
                // SAFETY: as above: the memory is this work's until the stream has gone on.
                unsafe { std::ptr::with_exposed_provenance_mut::<u8>(at).write_bytes(value, len) };
            })
            .unwrap();
    }

    /// Gives the stream work that reads the lease, where every byte has to be `value`.
    pub(crate) fn check(&mut self, lease: &Lease, value: u8) {
        #[cfg(feature = "cuda")]
        if let Some(sink) = &mut self.sink {
            let len = lease.len().to_usize().unwrap();
            // SAFETY: as above; the sink is this stream's alone.
            return unsafe {
                self.stream.copy_slice(lease.stream_slice(), sink.slice_mut(..len).unwrap()).unwrap();
            };
        }
        let (at, len) = (lease.ptr().addr() as usize, lease.len().to_usize().unwrap());
        let wrong = Arc::clone(&self.wrong);
        self.stream
            .call(move || {
                // Whoever should have waited gets time to be early.
                std::thread::yield_now();
                // SAFETY: as above.
                let bytes =
                    unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(at), len) };
                if bytes.iter().any(|&byte| byte != value) {
                    wrong.fetch_add(1, Ordering::Relaxed);
                }
            })
            .unwrap();
    }

    /// Waits for the stream; nothing it read was wrong.
    pub(crate) fn finish(&self) {
        self.stream.synchronize().unwrap();
        assert_eq!(self.wrong.load(Ordering::Relaxed), 0, "memory was used by two streams at a time");
    }
}

/// A source of numbers that is the same each time.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % end
    }

    /// Sizes from nothing to some granules, small ones more often.
    pub(crate) fn size(&mut self, granule: u64) -> Bytes {
        let most = match self.below(8) {
            0 => 3 * granule,
            1 => granule / 2,
            2 => granule / 4,
            _ => 5000,
        };
        Bytes::new(self.below(most))
    }
}
