//! What a captured graph uses is nobody else's: the memory's part, for work that somebody else captures. Graphs themselves are in
//! `graphs.rs`.

use granule_device::{Bytes, Device, LeaseMode};
use granule_pool::{Error, Heap, Lease};

use crate::support::{Worker, bank, granules, pool, stream};

fn spans(leases: &[Lease]) -> Vec<std::ops::Range<u64>> {
    leases.iter().map(|lease| lease.ptr().addr()..lease.ptr().addr() + lease.given().get()).collect()
}

fn meet(a: &[std::ops::Range<u64>], b: &[std::ops::Range<u64>]) -> bool {
    a.iter().any(|a| b.iter().any(|b| a.start < b.end && b.start < a.end))
}

pub(crate) fn nothing_is_taken_from_a_private_heap(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 4);
    let pool = pool(&bank);
    let mut a = Worker::new(&device);
    let (of_a, other) = (pool.heap(&a.stream).unwrap(), pool.heap(&stream(&device)).unwrap());
    // Warm: all of the bank's memory is this heap's, and free.
    let mut all: Vec<Lease> = (0..4).map(|_| of_a.alloc(device.granularity()).unwrap()).collect();
    all.iter_mut().for_each(|lease| a.use_lease(lease, 1));
    drop(all);
    of_a.begin_private().unwrap();
    assert!(matches!(other.alloc(Bytes::new(1)), Err(Error::OutOfMemory { .. })));
    assert_eq!(pool.trim().unwrap(), Bytes::ZERO);
    let lease = of_a.alloc(granules(&device, 2)).unwrap();
    drop(of_a.end_private().unwrap());
    let _rest = other.alloc(granules(&device, 2)).unwrap();
    assert!(other.alloc(Bytes::new(1)).is_err());
    drop(lease);
    drop(other.alloc(granules(&device, 2)).unwrap());
    a.finish();
}

pub(crate) fn a_graphs_memory_is_its_own(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 8);
    let pool = pool(&bank);
    let mut a = Worker::new(&device);
    let heap = pool.heap(&a.stream).unwrap();
    let sizes = [300, 5000, 5000, 70_000].map(Bytes::new);
    let warm: Vec<Lease> = sizes.iter().chain(&sizes).map(|&size| heap.alloc(size).unwrap()).collect();
    let before = heap.alloc(Bytes::new(5000)).unwrap();
    drop(warm);
    heap.begin_private().unwrap();
    let inside: Vec<Lease> = sizes.iter().map(|&size| heap.alloc(size).unwrap()).collect();
    let mut used = spans(&inside);
    used.extend(spans(std::slice::from_ref(&before)));
    drop(inside);
    // What was freed in the capture serves it again; what was leased before it does not.
    let again: Vec<Lease> = sizes.iter().map(|&size| heap.alloc(size).unwrap()).collect();
    let mut places = (spans(&again), used[..4].to_vec());
    places.0.sort_by_key(|span| span.start);
    places.1.sort_by_key(|span| span.start);
    assert_eq!(places.0, places.1);
    drop((before, again));
    assert!(!meet(&spans(&[heap.alloc(Bytes::new(5000)).unwrap()]), &used[4..]));
    let memory = heap.end_private().unwrap();
    assert!(memory.size() >= Bytes::new(300 + 5000 + 5000 + 70_000 + 5000));
    // Whatever is asked for from here on, and whoever asks, the graph's memory is not in it.
    let local = pool.local().unwrap();
    for heap in [&heap, &local] {
        let mut others = Vec::new();
        for size in sizes.into_iter().cycle() {
            match heap.alloc(size) {
                Ok(lease) => others.push(lease),
                Err(_) => break,
            }
        }
        assert!(others.len() > 10 && !meet(&spans(&others), &used));
    }
    pool.trim().unwrap();
    assert!(bank.stats().held > Bytes::ZERO);
    let mut last = heap.alloc(Bytes::new(100)).unwrap();
    a.use_lease(&mut last, 3);
    drop(last);
    memory.release_after(&[a.stream.record().unwrap()]);
    pool.trim().unwrap();
    bank.drain();
    assert_eq!(bank.stats().held, Bytes::ZERO);
    a.finish();
}

pub(crate) fn leases_that_outlive_a_capture(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 4);
    let pool = pool(&bank);
    let stream = stream(&device);
    let heap = pool.heap(&stream).unwrap();
    drop((0..3).map(|_| heap.alloc(Bytes::new(5000)).unwrap()).collect::<Vec<_>>());
    heap.begin_private().unwrap();
    let (early, late) = (heap.alloc(Bytes::new(5000)).unwrap(), heap.alloc(Bytes::new(5000)).unwrap());
    let used = spans(&[heap.alloc(Bytes::new(5000)).unwrap()]);
    let memory = heap.end_private().unwrap();
    let before = memory.size();
    let places = spans(std::slice::from_ref(&early));
    drop(early);
    assert!(memory.size() > before, "it goes to the graph's memory");
    let others: Vec<Lease> = std::iter::from_fn(|| heap.alloc(Bytes::new(5000)).ok()).collect();
    assert!(!meet(&spans(&others), &places) && !meet(&spans(&others), &used));
    drop((others, memory, heap));
    drop(late);
    assert_eq!(pool.stats().live, 0);
    pool.trim().unwrap();
    bank.drain();
    assert_eq!(bank.stats().held, Bytes::ZERO, "after the graph it goes back as any other");
}

pub(crate) fn wrong_captures_are_refused(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 4);
    let pool = pool(&bank);
    let heap = pool.heap(&stream(&device)).unwrap();
    assert!(matches!(heap.end_private(), Err(Error::NotCapturing)));
    heap.begin_private().unwrap();
    assert!(matches!(heap.begin_private(), Err(Error::Capturing { .. })));
    let lease = heap.alloc(Bytes::new(100));
    drop(heap);
    drop(lease);
    pool.drain().unwrap();
    pool.trim().unwrap();
    bank.drain();
    assert_eq!(bank.stats().held, Bytes::ZERO, "a capture that nobody can end is over");
}

/// Whatever is left of the bank, by blocks of a size.
fn all_that_is_left(heap: &Heap, size: Bytes) -> Vec<Lease> {
    std::iter::from_fn(|| heap.alloc(size).ok()).collect()
}

/// A lease that is marked with captured streams and dropped meanwhile is kept until the last of their graphs is gone.
pub(crate) fn a_lease_marked_with_captured_streams(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 8);
    let pool = pool(&bank);
    let streams = [stream(&device), stream(&device), stream(&device)];
    let [of_a, of_b, of_c] = streams.each_ref().map(|stream| pool.heap(stream).unwrap());
    let size = Bytes::kib(50);
    for own_too in [false, true] {
        let mut lease = of_a.alloc(size).unwrap();
        let captured = if own_too { vec![&of_b, &of_c, &of_a] } else { vec![&of_b, &of_c] };
        lease.used_by(&of_b).unwrap();
        lease.used_by(&of_c).unwrap();
        captured.iter().for_each(|heap| heap.begin_private().unwrap());
        let used = spans(std::slice::from_ref(&lease));
        drop(lease);
        let mut graphs: Vec<_> = captured.iter().map(|heap| heap.end_private().unwrap()).collect();
        assert!(graphs.iter().map(|graph| graph.size().get()).sum::<u64>() >= size.get());
        while let Some(graph) = graphs.pop() {
            pool.drain().unwrap();
            let others = all_that_is_left(&of_a, size);
            assert!(others.len() > 2 && !meet(&spans(&others), &used), "a graph's memory was handed out");
            drop(others);
            graph.release_after(&[]);
        }
        pool.drain().unwrap();
        assert!(meet(&spans(&all_that_is_left(&of_a, size)), &used), "nobody keeps it any more");
    }
}

/// Where leases are allocations of their own, so that a memory checker knows them, a graph keeps those.
pub(crate) fn a_graph_keeps_allocations_too(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 8);
    device.set_lease_mode(LeaseMode::Apart);
    let pool = pool(&bank);
    let heap = pool.heap(&stream(&device)).unwrap();
    let size = Bytes::kib(10);
    // Warm.
    drop((0..4).map(|_| heap.alloc(size).unwrap()).collect::<Vec<_>>());
    pool.drain().unwrap();
    let others = device.live().buffers;
    let before = heap.alloc(size).unwrap();
    heap.begin_private().unwrap();
    drop(before);
    for _ in 0..2 {
        drop(heap.alloc(size).unwrap());
    }
    let memory = heap.end_private().unwrap();
    pool.drain().unwrap();
    assert_eq!(device.live().buffers, others + 3);
    memory.release_after(&[]);
    pool.drain().unwrap();
    assert_eq!(device.live().buffers, others);
    device.set_lease_mode(LeaseMode::Quiet);
}

/// Threads that capture one heap's stream in turns: when all are through, the heap is as it was.
pub(crate) fn captures_from_many_threads(open: &dyn Fn() -> Device) {
    let device = open();
    let bank = bank(&device, 2);
    let pool = pool(&bank);
    let heap = pool.heap(&stream(&device)).unwrap();
    drop(heap.alloc(granules(&device, 2)).unwrap());
    let begun: usize = std::thread::scope(|scope| {
        let threads = [(); 4].map(|()| {
            scope.spawn(|| {
                let mut begun = 0;
                for _ in 0..100 {
                    match heap.begin_private() {
                        Ok(()) => begun += 1,
                        Err(error) => assert!(matches!(error, Error::Capturing { .. }), "{error}"),
                    }
                    match heap.end_private() {
                        Ok(memory) => memory.release_after(&[]),
                        Err(error) => assert!(matches!(error, Error::NotCapturing), "{error}"),
                    }
                }
                begun
            })
        });
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(begun > 0);
    if let Ok(memory) = heap.end_private() {
        memory.release_after(&[]);
    }
    heap.begin_private().unwrap();
    let other = pool.local().unwrap();
    assert!(other.alloc(Bytes::new(1)).is_err(), "nothing is taken from a private heap");
    heap.end_private().unwrap().release_after(&[]);
    drop(other.alloc(granules(&device, 2)).unwrap());
}
