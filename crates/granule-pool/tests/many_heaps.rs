//! As many heaps as a process can have: alone in its process, for the others in it could have none.

use std::sync::Arc;

use granule_bank::{Bank, BankOptions};
use granule_device::{Bytes, Device, HostOptions};
use granule_pool::{Error, Heap, Pool, PoolOptions};

/// A stream that gets no heap is not heard of again: what waits for all streams records no event on it.
#[test]
fn too_many_heaps_leave_nothing() {
    let device = Device::host_with(HostOptions::new().capacity(Bytes::mib(16))).unwrap();
    let bank = Bank::new(device.clone(), BankOptions::new()).unwrap();
    let pool = Pool::new(&bank, PoolOptions::new()).unwrap();
    let stream = Arc::new(device.stream().unwrap());
    let heaps: Vec<Heap> = std::iter::from_fn(|| pool.local().ok()).collect();
    for refused in [pool.local(), pool.heap(&stream)] {
        assert!(matches!(refused, Err(Error::TooManyHeaps { most }) if most == heaps.len()));
    }
    assert_eq!(Arc::strong_count(&stream), 1);
    drop(heaps);
    pool.drain().unwrap();
    assert_eq!(pool.stats().events, 0);
    let heap = pool.heap(&stream).unwrap();
    drop(heap.alloc(Bytes::new(1)).unwrap());
}
