//! Products of every type and shape.

use granule_quant::DType;

use super::super::Cuda;
use crate::matvec::Case;

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn products_of_few_tokens_are_those_of_f64() {
    let cuda = Cuda::new();
    for (i, &dtype) in DType::ALL.iter().enumerate() {
        for (rows, cols, tokens) in [(&[33, 4][..], 256, 1), (&[18, 1, 40], 512, 3), (&[5], 2048, 9)] {
            cuda.check_products(&[&Case::draw(dtype, rows, cols, tokens, (i * 8 + tokens) as u64)]);
        }
    }
    // A real GPU has time for the shapes of a model.
    if granule_sim::Sim::find().is_none() {
        for &dtype in DType::ALL {
            for tokens in [1, 2, 5, 8] {
                cuda.check_products(&[&Case::draw(dtype, &[1024, 4096], 4096, tokens, 1)]);
            }
        }
    }
}
