//! The shapes of some models, as their configurations give them.

/// A Llama-like model.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// What it is called.
    pub name: &'static str,
    /// Layers.
    pub layers: u64,
    /// Numbers in a hidden state.
    pub embd: u64,
    /// Heads of queries.
    pub heads: u64,
    /// Heads of keys and values.
    pub kv_heads: u64,
    /// Numbers in a head.
    pub head_dim: u64,
    /// Numbers between the two halves of the feed-forward network.
    pub ff: u64,
    /// Tokens of the vocabulary.
    pub vocab: u64,
    /// Whether the output matrix is the embedding.
    pub tied: bool,
}

/// SmolLM2-135M.
pub const SMOL: Model = Model {
    name: "SmolLM2-135M",
    layers: 30,
    embd: 576,
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    ff: 1536,
    vocab: 49152,
    tied: true,
};
/// Qwen2.5-0.5B.
pub const QWEN: Model = Model {
    name: "Qwen2.5-0.5B",
    layers: 24,
    embd: 896,
    heads: 14,
    kv_heads: 2,
    head_dim: 64,
    ff: 4864,
    vocab: 151_936,
    tied: true,
};
/// Llama-3.2-1B.
pub const LLAMA_1B: Model = Model {
    name: "Llama-3.2-1B",
    layers: 16,
    embd: 2048,
    heads: 32,
    kv_heads: 8,
    head_dim: 64,
    ff: 8192,
    vocab: 128_256,
    tied: true,
};
/// Llama-3.1-8B.
pub const LLAMA_8B: Model = Model {
    name: "Llama-3.1-8B",
    layers: 32,
    embd: 4096,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    ff: 14336,
    vocab: 128_256,
    tied: false,
};

impl Model {
    /// Numbers in the queries of one token.
    pub const fn q_width(&self) -> u64 {
        self.heads * self.head_dim
    }

    /// Numbers in the keys, or the values, of one token.
    pub const fn kv_width(&self) -> u64 {
        self.kv_heads * self.head_dim
    }

    /// Bytes of each tensor of the model with Q4_0 matrices (18 bytes for 32 numbers) and f32 norms, in the order of a file.
    pub fn tensors(&self) -> Vec<u64> {
        let q4 = |numbers: u64| numbers / 32 * 18;
        let mut sizes = vec![q4(self.vocab * self.embd)];
        for _ in 0..self.layers {
            sizes.push(4 * self.embd);
            sizes.extend([self.q_width(), self.kv_width(), self.kv_width()].map(|n| q4(n * self.embd)));
            sizes.push(q4(self.q_width() * self.embd));
            sizes.push(4 * self.embd);
            sizes.extend([q4(self.ff * self.embd); 3]);
        }
        sizes.push(4 * self.embd);
        sizes.extend((!self.tied).then(|| q4(self.vocab * self.embd)));
        sizes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The published sizes of the files, Q4_0 throughout, without metadata; the tolerance is what other types there make.
    #[test]
    fn sizes_are_those_of_the_models() {
        for (model, mib) in [(SMOL, 72.0), (QWEN, 265.0), (LLAMA_1B, 663.0), (LLAMA_8B, 4307.0)] {
            let bytes: u64 = model.tensors().iter().sum();
            let found = bytes as f64 / f64::from(1 << 20);
            assert!((found / mib - 1.0).abs() < 0.02, "{}: {found:.0} MiB", model.name);
        }
    }
}
