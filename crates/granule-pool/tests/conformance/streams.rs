//! Reuse across streams: every access to a block's former life comes before its new life.

use std::sync::Arc;

use granule_device::{Bytes, Device, Region};
use granule_pool::{Heap, Lease};

use crate::support::{Random, Worker, bank, granules, pool, read, write};

pub(crate) fn one_stream_uses_its_memory_again_at_once(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 4);
    let pool = pool(&bank);
    let mut a = Worker::new(&device);
    let heap = pool.heap(&a.stream).unwrap();
    let mut places = Vec::new();
    for value in 0..20 {
        let mut lease = heap.alloc(Bytes::kib(20)).unwrap();
        places.push(lease.ptr());
        a.use_lease(&mut lease, value);
    }
    assert!(places.iter().all(|place| *place == places[0]), "the block that was freed last is the next one");
    let stats = pool.stats();
    assert_eq!((stats.events, stats.waits, stats.steals, stats.hits), (0, 0, 0, 19));
    a.finish();
}

/// All the granules of the bank in one lease.
fn everything(heap: &Heap, granules_of_bank: u64) -> Lease {
    heap.alloc(granules(heap.device(), granules_of_bank)).unwrap()
}

pub(crate) fn another_stream_waits_first(open: &dyn Fn() -> Device) {
    let device = open();
    for size in [Bytes::kib(10), granules(&device, 2)] {
        let bank = bank(&device, 2);
        let pool = pool(&bank);
        let (mut a, mut b) = (Worker::new(&device), Worker::new(&device));
        let (of_a, of_b) = (pool.heap(&a.stream).unwrap(), pool.heap(&b.stream).unwrap());
        let mut held = Vec::new();
        while let Ok(mut lease) = of_a.alloc(size) {
            a.use_lease(&mut lease, 1);
            held.push(lease);
        }
        drop(held);
        let mut lease = of_b.alloc(size).unwrap();
        b.use_lease(&mut lease, 2);
        drop(lease);
        a.finish();
        b.finish();
    }
}

pub(crate) fn three_streams_in_a_row(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 1);
    let pool = pool(&bank);
    let mut workers = [Worker::new(&device), Worker::new(&device), Worker::new(&device)];
    let heaps = workers.each_ref().map(|worker| pool.heap(&worker.stream).unwrap());
    // A frees, B takes it after A and frees, C takes it from B: C is after B, and so after A.
    for round in 0..4 {
        for (worker, heap) in workers.iter_mut().zip(&heaps) {
            let mut lease = everything(heap, 1);
            worker.use_lease(&mut lease, round);
        }
    }
    let stats = pool.stats();
    assert_eq!(stats.steals, 8, "each takes it from the one before; to the first it is its own again");
    assert!(stats.waits <= 11 && stats.events <= 11, "{stats:?}");
    workers.iter().for_each(Worker::finish);
}

pub(crate) fn one_event_covers_what_was_freed_before_it(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 4);
    let pool = pool(&bank);
    let (mut a, mut b) = (Worker::new(&device), Worker::new(&device));
    let (of_a, of_b) = (pool.heap(&a.stream).unwrap(), pool.heap(&b.stream).unwrap());
    let mut leases: Vec<Lease> =
        (0..8).map(|_| of_a.alloc(Bytes::new(device.granularity().get() / 2)).unwrap()).collect();
    leases.iter_mut().for_each(|lease| a.use_lease(lease, 1));
    drop(leases);
    let mut taken: Vec<Lease> =
        (0..8).map(|_| of_b.alloc(Bytes::new(device.granularity().get() / 2)).unwrap()).collect();
    taken.iter_mut().for_each(|lease| b.use_lease(lease, 2));
    let stats = pool.stats();
    assert_eq!(stats.steals, 8);
    assert!(stats.events <= 1 && stats.waits <= 1, "eight blocks were taken with one event: {stats:?}");
    drop(taken);
    a.finish();
    b.finish();
}

pub(crate) fn a_lease_used_by_two_streams(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 1);
    let pool = pool(&bank);
    let (mut a, mut b) = (Worker::new(&device), Worker::new(&device));
    let (of_a, of_b) = (pool.heap(&a.stream).unwrap(), pool.heap(&b.stream).unwrap());
    for size in [Bytes::kib(10), device.granularity()] {
        for round in 0..4 {
            let mut lease = of_a.alloc(size).unwrap();
            a.write(&mut lease, round);
            lease.used_by(&of_b).unwrap();
            b.check(&lease, round);
            drop(lease);
            // The next life, on the first stream: after the second one's reading.
            let mut rest = everything(&of_a, 1);
            a.use_lease(&mut rest, 100 + round);
        }
    }
    a.finish();
    b.finish();
}

pub(crate) fn a_lease_used_by_a_stream_of_another_pool(open: &dyn Fn() -> Device) {
    let device = open();
    let (bank, banks_other) = (bank(&device, 1), bank(&device, 1));
    let (pool_a, pool_b) = (pool(&bank), pool(&banks_other));
    let (mut a, mut b) = (Worker::new(&device), Worker::new(&device));
    let (of_a, of_b) = (pool_a.heap(&a.stream).unwrap(), pool_b.heap(&b.stream).unwrap());
    for round in 0..4 {
        let mut lease = everything(&of_a, 1);
        a.write(&mut lease, round);
        lease.used_by(&of_b).unwrap();
        b.check(&lease, round);
        drop(lease);
        a.use_lease(&mut everything(&of_a, 1), 50);
    }
    a.finish();
    b.finish();
}

/// Streams allocate, write, share, free, trim and wait in random order, in memory that is too little for all.
pub(crate) fn random_schedules(open: &dyn Fn() -> Device) {
    let device = open();
    for seed in 1..=6 {
        let bank = bank(&device, 5);
        let pool = pool(&bank);
        let mut random = Random(seed * 0x9E37_79B9);
        let mut workers: Vec<Worker> = (0..3).map(|_| Worker::new(&device)).collect();
        let heaps: Vec<Heap> = workers.iter().map(|worker| pool.heap(&worker.stream).unwrap()).collect();
        let mut live: Vec<(usize, Lease, u8)> = Vec::new();
        for step in 0..400_u32 {
            let value = (step % 251) as u8;
            match random.below(10) {
                0..=4 => {
                    let who = random.below(3) as usize;
                    if let Ok(mut lease) = heaps[who].alloc(random.size(device.granularity().get())) {
                        workers[who].write(&mut lease, value);
                        live.push((who, lease, value));
                    }
                }
                5..=7 if !live.is_empty() => {
                    let (who, lease, value) = live.swap_remove(random.below(live.len() as u64) as usize);
                    workers[who].check(&lease, value);
                }
                8 if !live.is_empty() => {
                    let which = random.below(live.len() as u64) as usize;
                    let (_, lease, value) = &mut live[which];
                    let reader = random.below(3) as usize;
                    lease.used_by(&heaps[reader]).unwrap();
                    workers[reader].check(lease, *value);
                }
                9 => match random.below(6) {
                    0 => drop(pool.trim().unwrap()),
                    1 => workers[random.below(3) as usize].finish(),
                    2 => pool.drain().unwrap(),
                    _ => live.clear(),
                },
                _ => {}
            }
        }
        assert!(pool.stats().steals > 0, "seed {seed}: {:?}", pool.stats());
        drop(live);
        workers.iter().for_each(Worker::finish);
        pool.trim().unwrap();
        bank.drain();
        assert_eq!(bank.stats().held, Bytes::ZERO);
    }
}

pub(crate) fn a_stream_that_is_gone(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 2);
    let pool = pool(&bank);
    for round in 0..4 {
        let mut a = Worker::new(&device);
        let heap = pool.heap(&a.stream).unwrap();
        let mut lease = everything(&heap, 2);
        a.write(&mut lease, round);
        drop(heap);
        // The heap is closed, its stream and this lease go on.
        a.check(&lease, round);
        drop(lease);
        let mut b = Worker::new(&device);
        let heap = pool.heap(&b.stream).unwrap();
        let mut lease = everything(&heap, 2);
        b.use_lease(&mut lease, 200);
        drop((lease, heap));
        a.finish();
        drop(a);
        let bytes = read(&device, everything(&pool.local().unwrap(), 2).slice().unwrap());
        assert!(
            bytes.len() as u64 == 2 * device.granularity().get() && bytes.iter().all(|&byte| byte == 200)
        );
        b.finish();
    }
}

/// Drops the last handles of a stream, whose work still runs, on another thread; answers when nobody can have the stream any more.
fn drop_elsewhere(worker: Worker, heap: Heap) -> std::thread::JoinHandle<()> {
    let stream = Arc::downgrade(&worker.stream);
    let dropper = std::thread::spawn(move || drop((heap, worker)));
    while stream.strong_count() > 0 {
        std::thread::yield_now();
    }
    dropper
}

/// The last handle of a stream waits for its work. Until it has, what the work uses is neither handed out nor looked at.
pub(crate) fn a_stream_that_is_going(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 1);
    let pool = pool(&bank);
    let most = Bytes::new(device.granularity().get() - 4096);
    for round in 0..4 {
        let mut a = Worker::new(&device);
        let heap = pool.heap(&a.stream).unwrap();
        // A lease that is still out keeps the heap from being closed.
        let kept = heap.alloc(Bytes::new(1)).unwrap();
        let mut lease = heap.alloc(most).unwrap();
        a.be_slow();
        a.use_lease(&mut lease, round);
        drop(lease);
        let going = drop_elsewhere(a, heap);
        let mut b = Worker::new(&device);
        let next = if round % 2 == 0 { pool.local() } else { pool.heap(&b.stream) };
        let mut lease = next.unwrap().alloc(most).unwrap();
        write(&device, &vec![100; lease.len().to_usize().unwrap()], lease.slice_mut().unwrap());
        b.check(&lease, 100);
        b.finish();
        going.join().unwrap();
        assert!(
            read(&device, lease.slice().unwrap()).iter().all(|&byte| byte == 100),
            "written by its former life"
        );
        drop((lease, kept));
    }
}

pub(crate) fn a_lease_of_a_stream_that_is_going(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 2);
    let pool = pool(&bank);
    for round in 0..4 {
        let mut a = Worker::new(&device);
        let heap = pool.heap(&a.stream).unwrap();
        let mut lease = heap.alloc(Bytes::kib(20)).unwrap();
        a.be_slow();
        a.use_lease(&mut lease, round);
        let going = drop_elsewhere(a, heap);
        let bytes = match round % 2 {
            0 => read(&device, lease.slice().unwrap()),
            _ => read(&device, Region::new(lease).unwrap().slice(..).unwrap()),
        };
        assert!(bytes.iter().all(|&byte| byte == round), "read before it was written");
        going.join().unwrap();
    }
}

/// A region of a lease waits for every stream that the lease was marked with.
pub(crate) fn a_region_of_a_lease_used_by_two_streams(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 2);
    let pool = pool(&bank);
    let (a, b, c) = (Worker::new(&device), Worker::new(&device), Worker::new(&device));
    let users = [pool.heap(&a.stream).unwrap(), pool.heap(&b.stream).unwrap()];
    for heap in [pool.local().unwrap(), pool.heap(&c.stream).unwrap()] {
        for round in 0..4 {
            let mut lease = heap.alloc(Bytes::kib(20)).unwrap();
            lease.used_by(&users[0]).unwrap();
            a.be_slow();
            a.write(&mut lease, round);
            // After the first stream's write.
            b.stream.wait(&a.stream.record().unwrap()).unwrap();
            lease.used_by(&users[1]).unwrap();
            b.be_slow();
            b.write(&mut lease, 100 + round);
            let mut region = Region::new(lease).unwrap();
            if round % 2 == 0 {
                c.stream.fill(&mut region, ..1, 200).unwrap();
            }
            let bytes = read(&device, region.slice(..).unwrap());
            assert!(bytes[1..].iter().all(|&byte| byte == 100 + round), "read before it was written");
            assert_eq!(bytes[0], if round % 2 == 0 { 200 } else { 100 + round });
        }
    }
    [&a, &b, &c].into_iter().for_each(Worker::finish);
}

/// A marked lease is dropped while its closed heap is opened again: the marks are not forgotten.
pub(crate) fn a_marked_lease_of_a_heap_that_is_opened_again(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 2);
    let pool = pool(&bank);
    let (mut a, mut b) = (Worker::new(&device), Worker::new(&device));
    let of_b = pool.heap(&b.stream).unwrap();
    for round in 0..60 {
        let of_a = pool.heap(&a.stream).unwrap();
        let mut lease = of_a.alloc(Bytes::kib(5)).unwrap();
        lease.used_by(&of_b).unwrap();
        b.be_slow();
        b.use_lease(&mut lease, round);
        drop(of_a);
        let of_a = std::thread::scope(|scope| {
            scope.spawn(move || drop(lease));
            pool.heap(&a.stream).unwrap()
        });
        let mut leases: Vec<Lease> = (0..4).map(|_| of_a.alloc(Bytes::kib(5)).unwrap()).collect();
        leases.iter_mut().for_each(|lease| a.use_lease(lease, 100));
    }
    a.finish();
    b.finish();
}
