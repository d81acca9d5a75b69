//! Graphs captured with a heap's memory, on a CUDA device.

mod cuda {
    use granule_device::{Buffer, Bytes, Device, DeviceSliceMut};
    use granule_pool::{Error, Lease};

    use crate::support::{bank, pool, read, stream, with_device};

    fn run(test: fn(&dyn Fn() -> Device)) {
        with_device(crate::support::cuda, test);
    }

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn a_graph_runs_beside_other_work() {
        run(|open| {
            let device = open();
            let bank = bank(&device, 8);
            let pool = pool(&bank);
            let (a, b, c) = (stream(&device), stream(&device), stream(&device));
            let (of_a, of_b) = (pool.heap(&a).unwrap(), pool.heap(&b).unwrap());
            let size = Bytes::kib(300);
            let mut out: Buffer = device.alloc(size).unwrap();
            // Warm: in a capture no memory can be mapped.
            drop((0..2).map(|_| of_a.alloc(size).unwrap()).collect::<Vec<_>>());
            of_a.begin_capture().unwrap();
            let mut first = of_a.alloc(size).unwrap();
            // SAFETY: the memory is the graph's until `memory` goes, and the buffer outlives the graph.
            unsafe { a.fill_slice(first.stream_slice_mut(), 7).unwrap() };
            let mut second = of_a.alloc(size).unwrap();
            // SAFETY: as above.
            unsafe { a.copy_slice(first.stream_slice(), second.stream_slice_mut()).unwrap() };
            drop(first);
            // SAFETY: as above.
            unsafe {
                a.copy_slice(second.stream_slice(), out.slice_mut(..).unwrap()).unwrap();
            }
            drop(second);
            let (graph, memory) = of_a.end_capture().unwrap();
            let graph = graph.instantiate().unwrap();
            for round in 0..6 {
                // SAFETY: the graph's memory is kept beside it, and nobody looks at the buffer meanwhile.
                unsafe { graph.launch(&c).unwrap() };
                // Both streams' other work gets other memory: were it the graph's, nothing would order the two.
                let mut others: Vec<Lease> = (0..6).map(|_| of_b.alloc(size).unwrap()).collect();
                for lease in &mut others {
                    // SAFETY: the stream is the heap's.
                    unsafe { b.fill_slice(lease.stream_slice_mut(), round).unwrap() };
                }
            }
            // It was captured on one stream and ran on another, which the pool does not know.
            let last = c.record().unwrap();
            memory.release_after(&[last]);
            drop(graph);
            // Blocks of a granule each, which need not begin with one: eight granules hold seven in any case.
            let mut all: Vec<Lease> =
                (0..7).map(|_| of_b.alloc(Bytes::new(device.granularity().get())).unwrap()).collect();
            for lease in &mut all {
                // SAFETY: the stream is the heap's.
                unsafe { b.fill_slice(lease.stream_slice_mut(), 9).unwrap() };
            }
            drop(all);
            c.synchronize().unwrap();
            b.synchronize().unwrap();
            assert!(read(&device, out.slice(..).unwrap()).iter().all(|&byte| byte == 7));
        });
    }

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn a_capture_maps_nothing() {
        run(|open| {
            let device = open();
            let bank = bank(&device, 8);
            let pool = pool(&bank);
            let stream = stream(&device);
            let heap = pool.heap(&stream).unwrap();
            let warm = heap.alloc(Bytes::kib(100)).unwrap().ptr();
            heap.begin_capture().unwrap();
            assert!(matches!(heap.begin_capture(), Err(Error::Capturing { .. })));
            let inside = heap.alloc(Bytes::kib(100)).unwrap();
            assert_eq!(inside.ptr(), warm);
            assert!(heap.alloc(Bytes::new(2 * device.granularity().get())).is_err());
            assert!(inside.slice().is_err(), "nothing can be waited for");
            let (graph, memory) = heap.end_capture().unwrap();
            assert!(matches!(heap.end_capture(), Err(Error::NotCapturing)));
            assert_eq!(graph.nodes().unwrap(), 0);
            drop((graph, memory));
            drop(heap.alloc(Bytes::new(2 * device.granularity().get())).unwrap());
            drop(inside);
            assert_eq!(pool.stats().live, 0);
        });
    }

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn views_go_into_work_of_the_stream() {
        run(|open| {
            let device = open();
            let bank = bank(&device, 2);
            let pool = pool(&bank);
            let stream = stream(&device);
            let heap = pool.heap(&stream).unwrap();
            let mut values = heap.alloc_slice::<f32>(1000).unwrap();
            let view = values.view_mut().unwrap();
            assert_eq!(view.len(), 1000);
            drop(view);
            assert_eq!(values.view().unwrap().len(), 1000);
            let local = pool.local().unwrap().alloc_slice::<f32>(1).unwrap();
            assert!(matches!(local.view(), Err(Error::NoStream { .. })));
            let mut bytes = [0_u8; 4];
            // SAFETY: the stream is the heap's.
            unsafe { stream.fill_slice(values.slice_mut().unwrap(), 0).unwrap() };
            device
                .copy(values.slice().unwrap().subslice(..4).unwrap(), DeviceSliceMut::from(&mut bytes[..]))
                .unwrap();
            assert_eq!(bytes, [0; 4]);
        });
    }
}
