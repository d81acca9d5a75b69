//! Granule beside an engine's own choice of cudarc: without a driver, and with one.

use granule_device::{Bytes, Device, Error, Region, cuda_devices};
use neighbour::Engine;

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
}
