//! The kernels through their launchers, on CUDA device 0.

mod activate;
#[cfg(feature = "cublas")]
mod cublas;
mod launchers;
mod numeric;
mod planes;
mod prefill;
mod products;
mod ranks;
mod rope;
mod sample;

use granule_device::{Buffer, Bytes, Device, DeviceSlice, DeviceSliceMut, Stream};
use granule_ops::compare::{self, Difference};
use granule_ops::fill::{self, Pattern};
use granule_ops::{Error, Kernels, RowShape, Rows, RowsMut, dequantize, quantize, relayout};

use crate::machine::{Machine, Placed};

/// CUDA device 0 with its kernels. Without a driver the test fails.
struct Cuda {
    kernels: Kernels,
    stream: Stream,
}

impl Cuda {
    fn new() -> Cuda {
        let device = Device::cuda(0).unwrap();
        let stream = device.stream().unwrap();
        Cuda { kernels: Kernels::new(&device).unwrap(), stream }
    }

    fn device(&self) -> &Device {
        self.kernels.device()
    }

    /// Device memory that holds the same, with the same bytes around it.
    fn upload(&self, placed: &Placed) -> Buffer {
        let mut buffer = self.device().alloc(Bytes::from_usize(placed.all().len())).unwrap();
        self.device().copy(DeviceSlice::from(placed.all()), buffer.slice_mut(..).unwrap()).unwrap();
        buffer
    }

    /// Runs `launch` on device copies of `from` and `to`, and copies `to` back with what is around it.
    fn run(
        &self,
        from: &Placed,
        to: &mut Placed,
        launch: impl FnOnce(DeviceSlice<'_>, DeviceSliceMut<'_>) -> Result<(), Error>,
    ) {
        let (source, mut target) = (self.upload(from), self.upload(to));
        launch(source.slice(from.range()).unwrap(), target.slice_mut(to.range()).unwrap()).unwrap();
        self.stream.synchronize().unwrap();
        self.device().copy(target.slice(..).unwrap(), DeviceSliceMut::from(to.all_mut())).unwrap();
    }

    /// [`Cuda::run`] for rows.
    fn run_rows(
        &self,
        (from, x): (&Placed, &RowShape),
        (to, y): (&mut Placed, &RowShape),
        launch: impl FnOnce(Rows<'_>, RowsMut<'_>) -> Result<(), Error>,
    ) {
        self.run(from, to, |from, to| launch(Rows::new(from, *x)?, RowsMut::new(to, *y)?));
    }
}

impl Machine for Cuda {
    fn quantize(&self, from: &Placed, x: &RowShape, to: &mut Placed, y: &RowShape) -> u32 {
        self.run_rows((from, x), (to, y), |from, to| {
            // SAFETY: `run` keeps the memory until it has synchronized, and touches it after that alone.
            unsafe { quantize::cuda(&self.kernels, &self.stream, from, to) }
        });
        match self.kernels.check() {
            Ok(()) => 0,
            Err(Error::Flagged { not_finite, overflow, .. }) => {
                u32::from(not_finite) | u32::from(overflow) << 1
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn dequantize(&self, from: &Placed, x: &RowShape, to: &mut Placed, y: &RowShape) {
        self.run_rows((from, x), (to, y), |from, to| {
            // SAFETY: as above.
            unsafe { dequantize::cuda(&self.kernels, &self.stream, from, to) }
        });
    }

    fn relayout(&self, from: &Placed, x: &RowShape, to: &mut Placed, y: &RowShape) {
        self.run_rows((from, x), (to, y), |from, to| {
            // SAFETY: as above.
            unsafe { relayout::cuda(&self.kernels, &self.stream, from, to) }
        });
    }

    fn fill(&self, to: &mut Placed, pattern: &[u8]) {
        let pattern = Pattern::new(pattern).unwrap();
        self.run(&Placed::new(0, 0), to, |_, to| {
            // SAFETY: as above.
            unsafe { fill::cuda(&self.kernels, &self.stream, to, pattern) }
        });
    }

    fn compare(&self, a: &Placed, b: &Placed) -> Difference {
        let (a_there, b_there) = (self.upload(a), self.upload(b));
        let mut result = self.device().alloc_pinned(Bytes::from_usize(Difference::BYTES)).unwrap();
        let (a, b) = (a_there.slice(a.range()).unwrap(), b_there.slice(b.range()).unwrap());
        // SAFETY: all three stay until the stream was waited for, and nothing else touches them.
        unsafe { compare::cuda(&self.kernels, &self.stream, a, b, result.slice_mut(..).unwrap()) }.unwrap();
        self.stream.synchronize().unwrap();
        let bytes = result.slice(..).unwrap();
        Difference::from_bytes(bytes.as_host().unwrap().try_into().unwrap())
    }
}
