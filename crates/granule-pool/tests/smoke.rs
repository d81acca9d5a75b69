//! What a pool is for, in small.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, HostOptions};
use granule_pool::{Pool, PoolOptions};

#[test]
fn smoke() {
    let device =
        Device::host_with(HostOptions::new().granule(Bytes::kib(64)).capacity(Bytes::mib(64))).unwrap();
    let bank = Bank::new(device.clone(), BankOptions::new().budget(Bytes::mib(8))).unwrap();
    let pool = Pool::new(&bank, PoolOptions::new()).unwrap();
    let local = pool.local().unwrap();
    for round in 0..3 {
        let mut leases = Vec::new();
        for size in [0, 1, 255, 256, 257, 5000, 100_000, 2_000_000] {
            let mut lease = local.alloc(Bytes::new(size)).unwrap();
            lease.slice_mut().unwrap().into_host_mut().unwrap().fill(round);
            leases.push(lease);
        }
        println!("{:?}", pool.stats());
    }
    let stream = Arc::new(device.stream().unwrap());
    let heap = pool.heap(&stream).unwrap();
    let mut values = heap.alloc_slice::<f32>(1000).unwrap();
    values.as_mut_slice().unwrap().fill(1.0);
    drop(values);
    println!("{:?}", pool.stats());
    drop(heap);
    println!("trim {:?}", pool.trim().unwrap());
    pool.drain().unwrap();
    println!("{:?}", bank.stats());
    assert_eq!(bank.stats().held, Bytes::ZERO);
    drop((local, pool, bank, stream));
    assert_eq!(device.live(), Default::default());
}
