//! Products of many tokens by cuBLAS, or what stands for it, held to the bound of those of this project's kernels.

use granule_device::{Blas, Buffer, Bytes, ComputeCapability, FaultPlan, Stream};
use granule_ops::activate::{CudaActivations, Form};
use granule_ops::product::{self, Product, blas_scratch_bytes};
use granule_ops::{Error, PlanarMatrix};
use granule_quant::DType;

use super::Cuda;
use crate::matmul::Case;

/// A case in the device's memory.
struct There {
    x: Buffer,
    matrices: Vec<Buffer>,
    outs: Vec<Buffer>,
}

impl There {
    fn of(cuda: &Cuda, case: &Case) -> There {
        let results = case.weights.iter().zip(&case.before).map(|(weights, before)| {
            let before = before.clone().unwrap_or_else(|| vec![f32::NAN; case.tokens * weights.rows]);
            cuda.memory(bytemuck::cast_slice(&before))
        });
        There {
            x: cuda.memory(case.activations().bytes()),
            outs: results.collect(),
            matrices: case.weights.iter().map(|weights| cuda.memory(weights.bytes())).collect(),
        }
    }

    fn launch(
        &mut self,
        cuda: &Cuda,
        blas: &Blas,
        stream: &Stream,
        case: &Case,
        scratch: &mut Buffer,
    ) -> Result<(), Error> {
        let form = Form::of(case.dtype, usize::MAX);
        let x = self.x.slice(..form.bytes(case.tokens, case.cols)?)?;
        let x = CudaActivations::new(form, case.tokens, case.cols, x)?;
        let mut products = Vec::new();
        let jobs = case.weights.iter().zip(&case.before).zip(&self.matrices).zip(&mut self.outs);
        for (((weights, before), matrix), out) in jobs {
            let data = matrix.slice(..weights.bytes().len())?;
            let weight = PlanarMatrix::new(weights.dtype, weights.rows, weights.cols, data)?;
            let out = out.slice_mut(..case.tokens * weights.rows * 4)?;
            products.push(Product { weight, out, adds: before.is_some() });
        }
        let scratch = scratch.slice_mut(..)?;
        // SAFETY: everything stays until the stream was waited for, and nothing else touches it.
        unsafe { product::cuda_blas(&cuda.kernels, blas, stream, &x, &mut products, scratch) }
    }

    fn check(&self, cuda: &Cuda, case: &Case) {
        for (i, (out, weights)) in self.outs.iter().zip(&case.weights).enumerate() {
            case.check(i, &cuda.floats_back(out, case.tokens * weights.rows));
        }
    }
}

impl Cuda {
    fn capability(&self) -> ComputeCapability {
        self.device().cuda_info().unwrap().compute_capability
    }

    /// Bytes for the products of a case.
    fn scratch_bytes(&self, case: &Case) -> usize {
        let products = case.weights.iter().zip(&case.before);
        let products = products.map(|(weights, before)| (case.dtype, weights.rows, before.is_some()));
        blas_scratch_bytes(self.capability(), case.tokens, case.cols, products)
    }

    /// All products of a case in one call, with so many bytes of scratch, held to their bound.
    fn check_blas(&self, blas: &Blas, case: &Case, scratch: usize) {
        let mut scratch = self.device().alloc(Bytes::from_usize(scratch)).unwrap();
        let mut there = There::of(self, case);
        let launched = there.launch(self, blas, &self.stream, case, &mut scratch);
        self.stream.synchronize().unwrap();
        launched.unwrap();
        there.check(self, case);
    }
}

/// Products of every type and shape.
mod numeric {
    use super::*;

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn products_by_cublas_are_those_of_f64() {
        let cuda = Cuda::new();
        let blas = Blas::new(cuda.device()).unwrap();
        for (i, &dtype) in DType::ALL.iter().enumerate() {
            let case = Case::draw(dtype, &[33, 4], 256, 9, i as u64);
            cuda.check_blas(&blas, &case, cuda.scratch_bytes(&case));
            // Pieces of 128 rows, the last one not whole: of products that take the place, and that are added.
            let case = Case::draw(dtype, &[300, 259], 256, 3, i as u64);
            let least = case.weights.iter().map(|weights| weights.rows).max().unwrap();
            assert!(least > 2 * 128);
            let one = Case::draw(dtype, &[128, 128], 256, 3, 1);
            cuda.check_blas(&blas, &case, cuda.scratch_bytes(&one));
        }
        // Rows that end in the middle of 16 bytes; one token, one row, one column.
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            for (rows, cols, tokens) in [(9, 70, 11), (1, 1, 1), (7, 9, 2)] {
                let case = Case::draw(dtype, &[rows, rows], cols, tokens, cols as u64);
                cuda.check_blas(&blas, &case, cuda.scratch_bytes(&case));
            }
        }
        // A real GPU has time for the shapes of a model.
        if granule_sim::Sim::find().is_none() {
            for &dtype in DType::ALL {
                for (tokens, rows, cols) in [(200, 1024, 2048), (300, 4096, 512), (16, 70, 4096)] {
                    let case = Case::draw(dtype, &[rows, 48], cols, tokens, tokens as u64);
                    cuda.check_blas(&blas, &case, cuda.scratch_bytes(&case));
                }
            }
        }
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn streams_with_scratch_of_their_own_do_not_disturb_each_other() {
    let cuda = Cuda::new();
    let blas = Blas::new(cuda.device()).unwrap();
    let streams = [cuda.device().stream().unwrap(), cuda.device().stream().unwrap()];
    let cases = [DType::Q4_0, DType::F32].map(|dtype| Case::draw(dtype, &[20, 150], 64, 10, 3));
    let mut scratch = cases
        .each_ref()
        .map(|case| cuda.device().alloc(Bytes::from_usize(cuda.scratch_bytes(case))).unwrap());
    let mut there = cases.each_ref().map(|case| There::of(&cuda, case));
    for (i, stream) in streams.iter().enumerate() {
        there[i].launch(&cuda, &blas, stream, &cases[i], &mut scratch[i]).unwrap();
    }
    drop(blas);
    cuda.device().synchronize().unwrap();
    there.iter().zip(&cases).for_each(|(there, case)| there.check(&cuda, case));
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_graph_holds_products_by_cublas() {
    let cuda = Cuda::new();
    let blas = Blas::new(cuda.device()).unwrap();
    // What takes the place of what was there is the same however often it is computed.
    let case = Case::draw(DType::Q6_K, &[130], 256, 9, 3);
    let mut scratch = cuda.device().alloc(Bytes::from_usize(cuda.scratch_bytes(&case))).unwrap();
    let mut there = There::of(&cuda, &case);
    // Once before, so that all is loaded.
    there.launch(&cuda, &blas, &cuda.stream, &case, &mut scratch).unwrap();
    cuda.stream.begin_capture().unwrap();
    there.launch(&cuda, &blas, &cuda.stream, &case, &mut scratch).unwrap();
    let graph = cuda.stream.end_capture().unwrap();
    assert!(graph.nodes().unwrap() >= 3, "unpacking, the product, the factors");
    let graph = graph.instantiate().unwrap();
    cuda.stream.synchronize().unwrap();
    let gone = vec![0xff; case.tokens * 130 * 4];
    cuda.device().copy(gone[..].into(), there.outs[0].slice_mut(..gone.len()).unwrap()).unwrap();
    for _ in 0..2 {
        // SAFETY: everything stays until the stream was waited for.
        unsafe { graph.launch(&cuda.stream) }.unwrap();
    }
    cuda.stream.synchronize().unwrap();
    there.check(&cuda, &case);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_call_that_fails_is_an_error_and_the_next_ones_are_right() {
    let cuda = Cuda::new();
    let blas = Blas::new(cuda.device()).unwrap();
    let case = Case::draw(DType::Q5_1, &[20, 150], 64, 10, 3);
    let mut scratch = cuda.device().alloc(Bytes::from_usize(cuda.scratch_bytes(&case))).unwrap();
    let mut failed = 0;
    for n in 1.. {
        let mut there = There::of(&cuda, &case);
        let fault = cuda.device().inject_fault(FaultPlan::nth(n));
        let launched = there.launch(&cuda, &blas, &cuda.stream, &case, &mut scratch);
        let fired = fault.fired();
        drop(fault);
        cuda.stream.synchronize().unwrap();
        match launched {
            Ok(()) => there.check(&cuda, &case),
            Err(error) => {
                assert!(fired && error.to_string().contains("injected"), "{error}");
                failed += 1;
            }
        }
        if !fired {
            break;
        }
    }
    assert!(
        failed >= 8,
        "two products, two unpacked matrices, factors twice, a stream, a workspace: {failed}"
    );
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_does_not_fit_is_refused() {
    let cuda = Cuda::new();
    let blas = Blas::new(cuda.device()).unwrap();
    let case = Case::draw(DType::Q4_0, &[200], 64, 9, 1);
    let (mut there, modules) = (There::of(&cuda, &case), cuda.device().live().modules);
    let mut launch = |scratch: &mut Buffer, form: Form, dtype: DType, at: usize| {
        let x = cuda.memory(&[0; 4096]);
        let x = CudaActivations::new(form, 9, 64, x.slice(..form.bytes(9, 64)?)?)?;
        let bytes = PlanarMatrix::bytes(dtype, 200, 64)?;
        let weights = cuda.memory(&vec![0; bytes]);
        let weight = PlanarMatrix::new(dtype, 200, 64, weights.slice(..bytes)?)?;
        let out = there.outs[0].slice_mut(..9 * 200 * 4)?;
        let mut products = [Product { weight, out, adds: false }];
        let scratch = scratch.slice_mut(at..)?;
        // SAFETY: it is refused, so nothing runs.
        unsafe { product::cuda_blas(&cuda.kernels, &blas, &cuda.stream, &x, &mut products, scratch) }
    };
    let enough = cuda.scratch_bytes(&case);
    let mut scratch = cuda.device().alloc(Bytes::from_usize(enough + 16)).unwrap();
    let mut refused = |form, dtype, at| launch(&mut scratch, form, dtype, at).unwrap_err();
    assert!(matches!(refused(Form::Bf16, DType::Q4_0, 0), Error::Form { form: Form::Bf16, .. }));
    assert!(matches!(refused(Form::Fixed, DType::Q4_0, 0), Error::Form { form: Form::Fixed, .. }));
    assert!(matches!(refused(Form::F16, DType::BF16, 0), Error::Form { dtype: DType::BF16, .. }));
    assert!(matches!(refused(Form::F16, DType::Q4_0, 16), Error::Alignment { must: 256, .. }));
    // Less than 128 rows have room for.
    let mut small = cuda.device().alloc(Bytes::from_usize(enough - 200 * 128 + 127 * 128)).unwrap();
    let few = launch(&mut small, Form::F16, DType::Q4_0, 0).unwrap_err();
    assert!(matches!(few, Error::Shape { what: "bytes of scratch", .. }), "{few}");
    let mut none = cuda.device().alloc(Bytes::kib(64)).unwrap();
    let none = launch(&mut none, Form::F16, DType::F16, 0).unwrap_err();
    assert!(matches!(none, Error::Shape { got: 65536, want: 4_194_816.., .. }), "{none}");
    assert_eq!(cuda.device().live().modules, modules);
}
