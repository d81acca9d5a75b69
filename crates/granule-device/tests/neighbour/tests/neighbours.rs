//! Granule beside an engine's own choice of cudarc: without a driver, and with one.

use cudarc::driver::{LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use granule_device::{Bytes, Device, Error, Region, cuda_devices};
use neighbour::Engine;

#[expect(dead_code, reason = "the example's main")]
#[path = "../examples/pooled.rs"]
mod pooled;

#[test]
fn without_a_driver_there_is_an_error_and_a_host() {
    match cuda_devices() {
        Ok(devices) => assert!(!devices.is_empty()),
        Err(error) => {
            let typed = matches!(
                error,
                Error::NoCudaDriver { .. }
                    | Error::BrokenCudaDriver { .. }
                    | Error::CudaDriverTooOld { .. }
                    | Error::NoCudaDevice { .. }
            );
            assert!(typed, "{error:?}");
            assert_eq!(Device::cuda(0).err().map(|error| error.to_string()), Some(error.to_string()));
        }
    }
    let host = Device::host().unwrap();
    let mut memory = host.alloc(Bytes::kib(4)).unwrap();
    memory.slice_mut(..).unwrap().as_host_mut().unwrap().fill(1);
    assert_eq!(memory.slice(..3).unwrap().as_host().unwrap(), [1, 1, 1]);
}

mod cuda {
    use super::*;

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn an_engine_and_granule_share_context_stream_and_memory() {
        assert!(!cuda_devices().unwrap().is_empty());
        let engine = Engine::new().unwrap();
        let (device, stream) = engine.granule().unwrap();
        let own = engine.upload(&[1, 2, 3]).unwrap();
        assert_eq!(engine.sum(&own).unwrap(), 6);
        let mut region = Region::new(device.alloc(Bytes::new(40)).unwrap()).unwrap();
        stream.fill(&mut region, .., 1).unwrap();
        // The engine's copy is behind the fill, on the stream that both use.
        assert_eq!(engine.sum_of(&stream, &region).unwrap(), 10 * 0x0101_0101);
        drop((region, stream));
        assert_eq!(device.live(), Default::default());
        drop(own);
        engine.stream.synchronize().unwrap();
    }
    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn an_engines_kernel_takes_views_of_granules_memory() {
        const PTX: &str = include_str!("../../../../../kernels/ptx/fill.ptx");
        let engine = Engine::new().unwrap();
        let (device, stream) = engine.granule().unwrap();
        let function =
            engine.context.load_module(Ptx::from_src(PTX)).unwrap().load_function("fill_bytes").unwrap();
        let mut region = Region::new(device.alloc(Bytes::new(320)).unwrap()).unwrap();
        stream.fill(&mut region, .., 1).unwrap();
        let mut view = stream.lend_mut::<u64, _>(&mut region, 32..).unwrap();
        let (count, low, high) = (256_u64, u64::from_le_bytes([2; 8]), u64::from_le_bytes([3; 8]));
        let shape = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (64, 1, 1), shared_mem_bytes: 0 };
        let mut launch = engine.stream.launch_builder(&function);
        launch.arg(&mut view).arg(&count).arg(&low).arg(&high);
        // SAFETY: the kernel takes a pointer, a count and a pattern, and stays inside its 256 bytes; the view was lent for
        // this stream.
        unsafe { launch.launch(shape).unwrap() };
        drop(view);
        // Looking waits for the engine's kernel, which Granule never saw.
        let mut seen = [0_u8; 320];
        device.copy(region.slice(..).unwrap(), (&mut seen[..]).into()).unwrap();
        let expected = [vec![1; 32], [[2; 8], [3; 8]].concat().repeat(16), vec![1; 32]].concat();
        assert_eq!(seen[..], expected);
        drop((region, stream, function));
        assert_eq!(device.live(), Default::default());
    }

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn an_engines_kernel_runs_on_leases_of_a_pool() {
        let answer = crate::pooled::run(1000, 5).unwrap();
        assert_eq!(answer, vec![2.0 * (1.0 + 2.0 + 3.0 + 4.0); 1000]);
    }
}
