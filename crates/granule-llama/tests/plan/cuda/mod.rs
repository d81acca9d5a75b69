//! Plans of models on CUDA devices. Without a driver these tests fail.

mod fit;
mod numeric;
