//! A transformer's arithmetic on quantized weights and a quantized KV cache.
