//! Numbers and transforms for the tests of the KV cache's operations.

mod random;

use granule_ops::{KvFold, KvTransform};

pub(crate) use random::numbers;

/// A transform of keys and values: constants up to 4, scales from a quarter to four.
pub(crate) fn transform(n_kv_heads: usize, head_dim: usize, seed: u64) -> KvTransform {
    let fold = |seed: u64| {
        let constants = numbers(seed, n_kv_heads * head_dim).iter().map(|x| 4.0 * x).collect();
        let scales = numbers(!seed, n_kv_heads * head_dim).iter().map(|x| (2.0 * x).exp2()).collect();
        KvFold::new(n_kv_heads, head_dim, constants, scales).unwrap()
    };
    KvTransform::new(n_kv_heads, head_dim, Some(fold(seed ^ 1)), Some(fold(seed ^ 2))).unwrap()
}
