//! What every test needs: a bank of so many granules, bytes in and out of its device, and work that takes its time.

use std::ops::Range as Span;
use std::sync::mpsc;
use std::time::Duration;

use granule_bank::{Bank, BankOptions};
use granule_device::{Buffer, Bytes, Device, DeviceSlice, DeviceSliceMut, Event, Region, Stream};

pub(crate) use crate::devices::*;

/// The size of a granule.
pub(crate) fn granule(device: &Device) -> usize {
    device.granularity().to_usize().unwrap()
}

/// The size of so many.
pub(crate) fn granules(device: &Device, count: usize) -> Bytes {
    device.granularity().saturating_mul(count as u64)
}

/// The bytes of a place.
pub(crate) fn place(device: &Device, index: usize) -> Span<usize> {
    index * granule(device)..(index + 1) * granule(device)
}

/// Options with a budget of so many granules, which does not wait long for what does not come.
pub(crate) fn options(device: &Device, budget: usize) -> BankOptions {
    BankOptions::new().budget(granules(device, budget)).patience(Duration::from_millis(50))
}

/// A bank of so many granules over a new device with as many.
pub(crate) fn bank(open: Open<'_>, count: usize) -> Bank {
    let device = open(count);
    let options = options(&device, count);
    Bank::new(device, options).unwrap()
}

/// Fills device memory with a byte.
pub(crate) fn fill(device: &Device, target: DeviceSliceMut<'_>, byte: u8) {
    let bytes = vec![byte; target.len()];
    device.copy(DeviceSlice::from(&bytes[..]), target).unwrap();
}

/// Puts bytes into device memory.
pub(crate) fn write(device: &Device, bytes: &[u8], target: DeviceSliceMut<'_>) {
    device.copy(DeviceSlice::from(bytes), target).unwrap();
}

/// The bytes of device memory.
pub(crate) fn read(device: &Device, slice: DeviceSlice<'_>) -> Vec<u8> {
    let mut bytes = vec![0xEE; slice.len()];
    device.copy(slice, DeviceSliceMut::from(&mut bytes[..])).unwrap();
    bytes
}

/// Whether device memory is this byte throughout.
pub(crate) fn is_all(device: &Device, slice: DeviceSlice<'_>, byte: u8) -> bool {
    read(device, slice).iter().all(|&found| found == byte)
}

/// Work on a stream: on the host it ends when told to, on a GPU when it likes.
pub(crate) struct Work {
    pub(crate) event: Event,
    end: Option<mpsc::Sender<()>>,
    _busy: Option<Region<Buffer>>,
}

impl Work {
    pub(crate) fn begin(stream: &Stream) -> Work {
        if is_host(stream.device()) {
            let (end, told) = mpsc::channel();
            let wait = move || {
                let _ = told.recv();
            };
            stream.call(wait).unwrap();
            return Work { event: stream.record().unwrap(), end: Some(end), _busy: None };
        }
        let mut busy = Region::new(stream.device().alloc(Bytes::kib(64)).unwrap()).unwrap();
        for value in 0..4 {
            stream.fill(&mut busy, .., value).unwrap();
        }
        Work { event: stream.record().unwrap(), end: None, _busy: Some(busy) }
    }

    /// Has it end, sooner or later.
    pub(crate) fn end(mut self) -> Event {
        drop(self.end.take());
        self.event.clone()
    }

    /// Has it end after a while, while this thread waits.
    pub(crate) fn end_soon(mut self) {
        let end = self.end.take();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            drop(end);
        });
    }
}

/// A stream that has run something: what it takes to start one has been taken.
pub(crate) fn stream(device: &Device) -> Stream {
    let stream = device.stream().unwrap();
    stream.call(|| ()).unwrap();
    stream.synchronize().unwrap();
    stream
}
