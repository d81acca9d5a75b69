//! The reference Llama engine: GGUF, tokenizers, forward pass, sampling, generation.
