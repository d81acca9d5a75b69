//! An unmodified cudarc program on the simulated driver. Needs it in the library path: `cargo xtask test` runs these.

mod sim {
    use cudarc::driver::CudaContext;
    use granule_sim::Sim;

    fn sim() -> Sim {
        let sim = Sim::find().unwrap();
        sim.reset();
        sim
    }

    #[test]
    #[ignore = "needs the simulated driver: cargo xtask test"]
    fn bytes_make_the_round_trip_and_nothing_is_left() {
        let sim = sim();
        let context = CudaContext::new(0).unwrap();
        let stream = context.default_stream();
        let data: Vec<f32> = (0..1000).map(|n| n as f32).collect();
        let there = stream.clone_htod(&data).unwrap();
        let twice = stream.clone_dtod(&there).unwrap();
        let back = stream.clone_dtoh(&twice).unwrap();
        stream.synchronize().unwrap();
        assert_eq!(back, data);
        drop((there, twice, stream));
        drop(context);
        assert_eq!(sim.take_reports(), []);
        assert_eq!(sim.live(), []);
        assert!(sim.calls() > 10);
    }
}
