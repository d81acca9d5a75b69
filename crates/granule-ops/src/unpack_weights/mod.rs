//! Weights out of their planes, some rows at a time, as dense 16-bit floats: for products by a library, on a CUDA device.

mod cuda;

pub(crate) use cuda::{Dense, cuda};
