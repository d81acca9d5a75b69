//! Products through their launchers: the same cases as in the emulator, and what is refused.

use granule_device::{Buffer, Bytes, DeviceSlice, DeviceSliceMut};
use granule_ops::activate::{CudaActivations, Form};
use granule_ops::product::{self, Product};
use granule_ops::{Error, PlanarMatrix};
use granule_quant::DType;

use super::Cuda;
use crate::matvec::Case;

impl Cuda {
    pub(super) fn memory(&self, bytes: &[u8]) -> Buffer {
        let mut buffer = self.device().alloc(Bytes::from_usize(bytes.len().max(256))).unwrap();
        self.device().copy(DeviceSlice::from(bytes), buffer.slice_mut(..bytes.len()).unwrap()).unwrap();
        buffer
    }

    pub(super) fn floats_back(&self, buffer: &Buffer, n: usize) -> Vec<f32> {
        let mut got = vec![0f32; n];
        let bytes = bytemuck::cast_slice_mut::<f32, u8>(&mut got);
        self.device().copy(buffer.slice(..n * 4).unwrap(), DeviceSliceMut::from(bytes)).unwrap();
        got
    }

    /// All products of `cases`, which meet the same activations, in one call; the results in the order of their jobs.
    pub(super) fn products(&self, cases: &[&Case]) -> Result<Vec<Vec<f32>>, Error> {
        let first = cases[0];
        let (quantized, parts) = (first.weights[0].dtype.is_quantized(), first.parts());
        let form = if quantized { Form::Fixed } else { Form::F32 };
        let x = self.memory(parts.bytes());
        let x = CudaActivations::new(form, first.tokens, first.cols, x.slice(..parts.bytes().len())?)?;
        let all = || cases.iter().flat_map(|case| case.weights.iter().zip(&case.before));
        let matrices: Vec<Buffer> = all().map(|(weights, _)| self.memory(weights.bytes())).collect();
        let lens: Vec<usize> = all().map(|(weights, _)| first.tokens * weights.rows).collect();
        let mut outs: Vec<Buffer> = all()
            .zip(&lens)
            .map(|((_, before), &len)| {
                let before = before.clone().unwrap_or_else(|| vec![f32::NAN; len]);
                self.memory(bytemuck::cast_slice(&before))
            })
            .collect();
        let mut products = Vec::new();
        for ((((weights, before), matrix), out), len) in all().zip(&matrices).zip(&mut outs).zip(&lens) {
            let data = matrix.slice(..weights.bytes().len())?;
            let weight = PlanarMatrix::new(weights.dtype, weights.rows, weights.cols, data)?;
            products.push(Product { weight, out: out.slice_mut(..len * 4)?, adds: before.is_some() });
        }
        // SAFETY: everything stays until the stream was waited for, and nothing else touches it.
        let launched = unsafe { product::cuda(&self.kernels, &self.stream, &x, &mut products) };
        self.stream.synchronize()?;
        launched?;
        Ok(outs.iter().zip(&lens).map(|(out, &len)| self.floats_back(out, len)).collect())
    }

    pub(super) fn check_products(&self, cases: &[&Case]) {
        let mut outs = self.products(cases).unwrap().into_iter();
        for case in cases {
            (0..case.weights.len()).for_each(|i| case.check(i, &outs.next().unwrap()));
        }
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn products_of_several_types_and_more_jobs_than_a_launch_has() {
    let cuda = Cuda::new();
    for tokens in [1, 2] {
        let one = Case::draw(DType::Q4_0, &[9, 1, 20, 33, 7], 64, tokens, 1);
        let other = one.with(DType::Q8_0, 5, 2);
        cuda.check_products(&[&one, &other]);
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_does_not_fit_is_refused() {
    let cuda = Cuda::new();
    let (x, w, mut out) = (cuda.memory(&[0; 2048]), cuda.memory(&[0; 2048]), cuda.memory(&[0; 2048]));
    let mut refused = |form: Form, dtype, cols: usize, bytes: usize, at: usize| {
        let x = x.slice(..form.bytes(2, 64).unwrap()).unwrap();
        let x = CudaActivations::new(form, 2, 64, x).unwrap();
        let data = w.slice(..PlanarMatrix::bytes(dtype, 3, cols).unwrap()).unwrap();
        let weight = PlanarMatrix::new(dtype, 3, cols, data).unwrap();
        let product = Product { weight, out: out.slice_mut(at..at + bytes).unwrap(), adds: false };
        // SAFETY: it is refused, so nothing runs.
        unsafe { product::cuda(&cuda.kernels, &cuda.stream, &x, &mut [product]) }.unwrap_err()
    };
    assert!(matches!(refused(Form::Fixed, DType::F16, 64, 24, 0), Error::Form { dtype: DType::F16, .. }));
    assert!(matches!(refused(Form::F32, DType::Q4_0, 64, 24, 0), Error::Form { form: Form::F32, .. }));
    assert!(matches!(refused(Form::Bf16, DType::Q4_0, 64, 24, 0), Error::Form { form: Form::Bf16, .. }));
    assert!(matches!(refused(Form::Fixed, DType::Q4_0, 32, 24, 0), Error::Shape { got: 64, want: 32, .. }));
    assert!(matches!(refused(Form::Fixed, DType::Q4_0, 64, 20, 0), Error::Shape { got: 20, want: 24, .. }));
    assert!(matches!(refused(Form::Fixed, DType::Q4_0, 64, 24, 8), Error::Alignment { must: 16, .. }));
}
