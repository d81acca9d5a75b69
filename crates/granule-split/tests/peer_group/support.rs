//! GPUs, their memory, and a rank a thread.

use std::thread;

use granule_device::{
    Access, Buffer, Bytes, Device, DeviceSlice, DeviceSliceMut, LiveCounts, Reservation, Stream,
};
use granule_split::Communicator;

/// As many GPUs. Without them the test fails.
pub(crate) fn devices(count: usize) -> Vec<Device> {
    (0..count).map(|n| Device::cuda(n).unwrap()).collect()
}

pub(crate) fn assert_nothing_left(devices: &[Device]) {
    for device in devices {
        assert_eq!(device.live(), LiveCounts::default());
    }
}

/// Memory of a device: in one piece, or mapped into a reservation.
pub(crate) enum Room {
    Plain(Buffer),
    Mapped(Reservation),
}

impl Room {
    pub(crate) fn new(device: &Device, bytes: usize, mapped: bool) -> Room {
        if !mapped {
            return Room::Plain(device.alloc(Bytes::from_usize(bytes.max(1))).unwrap());
        }
        let mut range = device.reserve(Bytes::from_usize(bytes.max(1))).unwrap();
        let granules: Vec<_> = (0..range.places()).map(|_| device.create_granule().unwrap()).collect();
        range.map(0, &granules, Access::ReadWrite).unwrap();
        Room::Mapped(range)
    }

    pub(crate) fn of(device: &Device, numbers: &[f32], mapped: bool) -> Room {
        let mut room = Room::new(device, size_of_val(numbers), mapped);
        let bytes = bytemuck::cast_slice(numbers);
        device.copy(DeviceSlice::from(bytes), room.slice_mut(bytes.len())).unwrap();
        room
    }

    pub(crate) fn slice(&self, bytes: usize) -> DeviceSlice<'_> {
        match self {
            Room::Plain(buffer) => buffer.slice(..bytes).unwrap(),
            Room::Mapped(range) => range.slice(..bytes).unwrap(),
        }
    }

    pub(crate) fn slice_mut(&mut self, bytes: usize) -> DeviceSliceMut<'_> {
        match self {
            Room::Plain(buffer) => buffer.slice_mut(..bytes).unwrap(),
            Room::Mapped(range) => range.slice_mut(..bytes).unwrap(),
        }
    }

    pub(crate) fn bits(&self, device: &Device, elements: usize) -> Vec<u32> {
        let mut numbers = vec![0_u32; elements];
        let to = DeviceSliceMut::from(bytemuck::cast_slice_mut(&mut numbers));
        device.copy(self.slice(4 * elements), to).unwrap();
        numbers
    }
}

pub(crate) fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Runs a rank a thread with a stream of its device, which is waited for.
pub(crate) fn each<C: Communicator, R: Send>(
    group: &[C],
    devices: &[Device],
    run: impl Fn(&C, &Device, &Stream) -> R + Sync,
) -> Vec<R> {
    thread::scope(|scope| {
        let threads: Vec<_> = (group.iter().zip(devices))
            .map(|(rank, device)| {
                let run = &run;
                scope.spawn(move || {
                    let stream = device.stream().unwrap();
                    run(rank, device, &stream)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
