//! Memory that is given back after work, seen by the simulator.

use std::time::Duration;

use granule_bank::{Bank, Owner};
use granule_device::{Launch, LaunchShape, Module};

use crate::support::{Open, fill, granules, is_all, options, place};

/// A kernel writes where memory is given back after it, to whoever is short of memory meanwhile. The simulator sees it where
/// the bank lets go too early.
pub(crate) fn memory_under_a_kernel_is_nobody_elses(open: Open<'_>) {
    const PTX: &str = include_str!("../../../../kernels/ptx/fill.ptx");
    let device = open(8);
    let options = options(&device, 2).patience(Duration::from_secs(20));
    let bank = Bank::new(device.clone(), options).unwrap();
    let function = Module::load(&device, PTX).unwrap().function("fill_bytes").unwrap();
    let stream = device.stream().unwrap();
    let owner = Owner::new("x");
    for round in 0..6u8 {
        let mut range = bank.range(&owner, granules(&device, 4)).unwrap();
        range.fill(0..2).unwrap();
        let target = range.slice_mut(place(&device, 0)).unwrap();
        let len = target.len() as u64;
        let launch = Launch::new(&function, LaunchShape::row(1, 256)).write(target);
        let launch = launch.value(len).value(u64::from(round)).value(0u64);
        // SAFETY: the kernel writes `len` bytes of its first argument; the place stays mapped until the event, and nobody
        // reads it before.
        unsafe { stream.launch(launch) }.unwrap();
        let event = stream.record().unwrap();
        range.clear_after(0..1, &event).unwrap();
        let mut other = bank.range(&owner, granules(&device, 1)).unwrap();
        other.fill(0..1).unwrap();
        fill(&device, other.slice_mut(..).unwrap(), 0xEE);
        assert!(is_all(&device, other.slice(..).unwrap(), 0xEE));
    }
    stream.synchronize().unwrap();
    bank.drain();
}
