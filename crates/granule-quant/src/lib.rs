//! ggml block formats: bit-exact scalar codec and SIMD dot products.
