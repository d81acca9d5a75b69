//! A context that is lost: nothing waits for work that will never run on.

use granule_device::Bytes;
use granule_sim::Sim;

use crate::support::{assert_nothing_left, device, fill_kernel, fill_launch, region};

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn events_of_a_lost_context_are_done_and_memory_comes_back() {
    let sim = Sim::find().unwrap();
    let device = device();
    let (stream, function) = (device.stream().unwrap(), fill_kernel(&device));
    let mut data = region(&device, 512);
    let spare = device.alloc(Bytes::mib(1)).unwrap();
    let launch =
        fill_launch(&function).write_region(&mut data, ..).value(1_u64 << 40).value(1_u64).value(2_u64);
    // SAFETY: none: the kernel leaves its memory, which the simulated driver answers as a real one does.
    unsafe { stream.launch(launch).unwrap() };
    let event = stream.record().unwrap();
    assert!(stream.synchronize().is_err());
    assert!(!sim.take_reports().is_empty());
    assert!(stream.synchronize().is_err(), "it stays lost");
    assert!(event.is_done());
    event.synchronize();
    // The region's work is over, though not done.
    assert_eq!(data.slice(..).unwrap().len(), 512);
    drop((data, spare, function, stream, event));
    assert_nothing_left(&device);
    drop(device);
    assert_eq!(sim.take_reports(), []);
}
