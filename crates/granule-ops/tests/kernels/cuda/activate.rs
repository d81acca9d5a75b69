//! Activations through their launcher.

use granule_device::{Buffer, Bytes, DeviceSlice, DeviceSliceMut};
use granule_ops::Error;
use granule_ops::activate::{self, CudaActivations, Form, Source};

use super::Cuda;
use crate::activate::{Activates, Case, From, UNTOUCHED};

impl Cuda {
    pub(super) fn buffer(&self, bytes: &[u8]) -> Buffer {
        let mut buffer = self.device().alloc(Bytes::from_usize(bytes.len().max(1))).unwrap();
        self.device().copy(DeviceSlice::from(bytes), buffer.slice_mut(..bytes.len()).unwrap()).unwrap();
        buffer
    }
}

impl Activates for Cuda {
    fn activate(&self, case: &Case, form: Form) -> (Vec<u8>, u32) {
        let [a, b] = [&case.a, &case.b].map(|x| self.buffer(bytemuck::cast_slice(x)));
        let (a, b) = (a.slice(..4 * case.a.len()).unwrap(), b.slice(..4 * case.b.len()).unwrap());
        let numbers = match &case.from {
            From::Norm(_, Some((numbers, _))) => Some(self.buffer(bytemuck::cast_slice(numbers))),
            _ => None,
        };
        let source = match &case.from {
            From::Plain => Source::Plain { x: a },
            From::Norm(eps, _) => Source::Norm {
                x: a,
                weight: b,
                eps: *eps,
                rows: numbers.as_ref().map(|n| n.slice(..).unwrap()),
            },
            From::Swiglu => Source::Swiglu { gate: a, up: b },
        };
        let mut bytes = vec![UNTOUCHED; form.bytes(case.rows, case.cols).unwrap()];
        let mut to = self.buffer(&bytes);
        // SAFETY: everything stays until the stream was waited for, nothing else touches it, and numbers are those of rows.
        let done = unsafe {
            let to = to.slice_mut(..).unwrap();
            activate::cuda(&self.kernels, &self.stream, &source, case.rows, case.cols, form, to)
        };
        done.unwrap();
        self.stream.synchronize().unwrap();
        self.device().copy(to.slice(..).unwrap(), DeviceSliceMut::from(&mut bytes[..])).unwrap();
        let flag = match self.kernels.check() {
            Ok(()) => 0,
            Err(Error::Flagged { not_finite: true, overflow: false, .. }) => 1,
            Err(error) => panic!("{error}"),
        };
        (bytes, flag)
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_does_not_fit_is_refused_and_nothing_is_launched() {
    let cuda = Cuda::new();
    let (x, weight) = (cuda.buffer(&[0; 4 * 128]), cuda.buffer(&[0; 4 * 64]));
    let (x, weight) = (x.slice(..).unwrap(), weight.slice(..).unwrap());
    let mut memory = cuda.buffer(&[0; 4096]);
    let mut launch = |source: Source<'_>, rows, cols, form: Form, at: usize, len: usize| {
        let to = memory.slice_mut(at..at + len).unwrap();
        // SAFETY: all is refused, or has nothing to do.
        unsafe { activate::cuda(&cuda.kernels, &cuda.stream, &source, rows, cols, form, to) }
    };
    let plain = Source::Plain { x };
    let norm = Source::Norm { x, weight, eps: 1e-5, rows: None };
    let bytes = Form::Fixed.bytes(2, 64).unwrap();
    assert!(matches!(launch(plain, 2, 48, Form::Fixed, 0, 512), Err(Error::Dimension { .. })));
    assert!(matches!(launch(plain, 3, 64, Form::Fixed, 0, bytes), Err(Error::Shape { .. })));
    assert!(matches!(launch(plain, 2, 64, Form::Fixed, 0, bytes - 1), Err(Error::Shape { .. })));
    assert!(matches!(launch(plain, 2, 64, Form::Fixed, 8, bytes), Err(Error::Alignment { must: 16, .. })));
    assert!(matches!(launch(norm, 4, 32, Form::F32, 0, 512), Err(Error::Shape { .. })));
    let rows = Some(weight.subslice(..8).unwrap());
    let off = Source::Norm { x, weight, eps: 1e-5, rows: Some(weight.subslice(2..10).unwrap()) };
    assert!(matches!(launch(off, 2, 64, Form::F32, 0, 512), Err(Error::Alignment { must: 4, .. })));
    let some = Source::Norm { x, weight, eps: 1e-5, rows };
    assert!(matches!(launch(some, 3, 64, Form::F32, 0, 768), Err(Error::Shape { .. })));
    let swiglu = Source::Swiglu { gate: x, up: weight };
    assert!(matches!(launch(swiglu, 2, 64, Form::F32, 0, 512), Err(Error::Shape { .. })));
    let here = [0u8; 512];
    let host = Source::Plain { x: DeviceSlice::from(&here[..]) };
    assert!(matches!(launch(host, 2, 64, Form::F32, 0, 512), Err(Error::NotOnDevice { .. })));
    let none = Source::Plain { x: x.subslice(..0).unwrap() };
    launch(none, 0, 64, Form::F16, 0, 0).unwrap();
    assert_eq!(cuda.device().live().modules, 0);
    assert!(matches!(CudaActivations::new(Form::F16, 2, 64, x), Ok(made) if made.layout().parts[1] == 256));
}
