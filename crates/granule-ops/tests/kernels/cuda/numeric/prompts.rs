//! Products of many tokens, of every type and shape.

use granule_device::Buffer;
use granule_ops::PlanarMatrix;
use granule_ops::activate::{CudaActivations, Form};
use granule_ops::product::{self, Product};
use granule_quant::DType;

use super::super::Cuda;
use crate::matmul::Case;

impl Cuda {
    /// All products of a case in one call, held to their bound.
    fn check_prompt(&self, case: &Case) {
        let activations = case.activations();
        let form = Form::of(case.dtype, usize::MAX);
        let memory = self.memory(activations.bytes());
        let len = form.bytes(case.tokens, case.cols).unwrap();
        let x = CudaActivations::new(form, case.tokens, case.cols, memory.slice(..len).unwrap()).unwrap();
        let matrices: Vec<Buffer> = case.weights.iter().map(|weights| self.memory(weights.bytes())).collect();
        let lens: Vec<usize> = case.weights.iter().map(|weights| case.tokens * weights.rows).collect();
        let mut outs: Vec<Buffer> = case
            .before
            .iter()
            .zip(&lens)
            .map(|(before, &len)| {
                let before = before.clone().unwrap_or_else(|| vec![f32::NAN; len]);
                self.memory(bytemuck::cast_slice(&before))
            })
            .collect();
        let mut products = Vec::new();
        let jobs = case.weights.iter().zip(&case.before).zip(&matrices).zip(&mut outs).zip(&lens);
        for ((((weights, before), matrix), out), len) in jobs {
            let data = matrix.slice(..weights.bytes().len()).unwrap();
            let weight = PlanarMatrix::new(weights.dtype, weights.rows, weights.cols, data).unwrap();
            products.push(Product { weight, out: out.slice_mut(..len * 4).unwrap(), adds: before.is_some() });
        }
        // SAFETY: everything stays until the stream was waited for, and nothing else touches it.
        unsafe { product::cuda(&self.kernels, &self.stream, &x, &mut products) }.unwrap();
        self.stream.synchronize().unwrap();
        for (i, (out, &len)) in outs.iter().zip(&lens).enumerate() {
            case.check(i, &self.floats_back(out, len));
        }
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn products_of_many_tokens_are_those_of_f64() {
    let cuda = Cuda::new();
    for (i, &dtype) in DType::ALL.iter().enumerate() {
        cuda.check_prompt(&Case::draw(dtype, &[33, 4], 256, 9, i as u64));
    }
    // More jobs than a launch has, and rows that end in the middle of 16 bytes.
    cuda.check_prompt(&Case::draw(DType::Q4_0, &[9, 1, 20, 33, 7], 64, 40, 1));
    cuda.check_prompt(&Case::draw(DType::BF16, &[9], 70, 11, 2));
    // A real GPU has time for the shapes of a model: tiles of every shape.
    if granule_sim::Sim::find().is_none() {
        for &dtype in DType::ALL {
            for (tokens, rows, cols) in
                [(9, 14336, 512), (33, 14336, 256), (200, 1024, 2048), (300, 4096, 512), (16, 70, 4096)]
            {
                cuda.check_prompt(&Case::draw(dtype, &[rows, 48], cols, tokens, tokens as u64));
            }
        }
    }
}
