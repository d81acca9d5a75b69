//! Two devices that reach each other.

use granule_device::{Access, Bytes, Device, Error, cuda_devices};

use crate::support::{assert_nothing_left, bytes, device, read, region, write};

fn two() -> (Device, Device) {
    (device(), Device::cuda(1).unwrap())
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn bytes_go_from_device_to_device() {
    let (a, b) = two();
    assert!(cuda_devices().unwrap()[0].peers[1] && a.can_access_peer(&b).unwrap());
    a.enable_peer_access(&b).unwrap();
    a.enable_peer_access(&b).unwrap();
    let (mut from, mut to) = (a.alloc(Bytes::new(100)).unwrap(), b.alloc(Bytes::new(100)).unwrap());
    write(&a, &[4; 100], from.slice_mut(..).unwrap());
    a.copy_to_peer(from.slice(..).unwrap(), &b, to.slice_mut(..).unwrap()).unwrap();
    assert_eq!(read(&b, to.slice(..).unwrap()), [4; 100]);
    let host = Device::host().unwrap();
    assert!(!a.can_access_peer(&host).unwrap());
    assert!(matches!(a.enable_peer_access(&host), Err(Error::Unsupported { .. })));
    let refused = a.copy_to_peer(from.slice(..).unwrap(), &host, to.slice_mut(..).unwrap());
    assert!(matches!(refused, Err(Error::OtherDevice { .. })), "{refused:?}");
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn streams_of_two_devices_are_ordered() {
    let (a, b) = two();
    let (first, second) = (a.stream().unwrap(), b.stream().unwrap());
    let (mut from, mut to) = (region(&a, 1000), region(&b, 1000));
    let mut copy = region(&b, 1000);
    first.fill(&mut from, .., 5).unwrap();
    first.copy_to_peer(&from, .., &mut to, ..).unwrap();
    let there = first.record().unwrap();
    assert!(matches!(second.wait(&there), Err(Error::OtherDevice { .. })));
    second.wait_for_peer(&there).unwrap();
    second.copy(&to, .., &mut copy, ..).unwrap();
    drop((from, to));
    assert_eq!(bytes(&copy), [5; 1000]);
    drop((copy, first, second, there));
    assert_nothing_left(&a);
    assert_nothing_left(&b);
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn a_granule_is_read_by_both_at_one_address() {
    let (a, b) = two();
    let mut range = a.reserve_for(a.granularity(), &[&b]).unwrap();
    range.map(0, &[a.create_granule().unwrap()], Access::ReadWrite).unwrap();
    write(&a, &[6; 100], range.slice_mut(..100).unwrap());
    range.set_access(0..1, Access::ReadOnly).unwrap();
    let mut to = b.alloc(Bytes::new(100)).unwrap();
    // A copy of the other device's, straight from the address.
    b.copy(range.slice(..100).unwrap(), to.slice_mut(..).unwrap()).unwrap();
    assert_eq!(read(&b, to.slice(..).unwrap()), [6; 100]);
    drop((range, to));
    assert_nothing_left(&a);
    let host = Device::host().unwrap();
    assert!(matches!(a.reserve_for(Bytes::kib(4), &[&host]), Err(Error::Unsupported { .. })));
    assert!(matches!(host.reserve_for(Bytes::kib(4), &[&a]), Err(Error::Unsupported { .. })));
}

#[test]
#[ignore = "needs the simulated CUDA driver; cargo xtask test provides it"]
fn a_copy_waits_for_memory_that_the_peer_is_making() {
    let (a, b) = two();
    let sim = granule_sim::Sim::find().unwrap();
    for seed in 1..=8 {
        sim.set_seed(seed);
        let (here, there) = (a.stream().unwrap(), b.stream().unwrap());
        let (mut from, mut busy) = (region(&a, 4096), region(&b, 1 << 20));
        here.fill(&mut from, .., 3).unwrap();
        there.fill(&mut busy, .., 3).unwrap();
        let mut to = there.alloc(Bytes::kib(4)).unwrap();
        here.copy_to_peer(&from, .., &mut to, ..).unwrap();
        assert_eq!(bytes(&to), [3; 4096], "seed {seed}");
    }
    assert_nothing_left(&a);
    assert_nothing_left(&b);
}
