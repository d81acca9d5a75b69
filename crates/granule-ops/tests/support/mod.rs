//! Numbers and transforms for the tests of the KV cache's operations.

use granule_ops::{KvFold, KvTransform};

/// Numbers between -1 and 1 from a small generator (Steele et al., splitmix64), so that a case is its seed.
pub(crate) fn numbers(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            ((z ^ (z >> 31)) >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        })
        .collect()
}

/// A transform of keys and values: constants up to 4, scales from a quarter to four.
pub(crate) fn transform(n_kv_heads: usize, head_dim: usize, seed: u64) -> KvTransform {
    let fold = |seed: u64| {
        let constants = numbers(seed, n_kv_heads * head_dim).iter().map(|x| 4.0 * x).collect();
        let scales = numbers(!seed, n_kv_heads * head_dim).iter().map(|x| (2.0 * x).exp2()).collect();
        KvFold::new(n_kv_heads, head_dim, constants, scales).unwrap()
    };
    KvTransform::new(n_kv_heads, head_dim, Some(fold(seed ^ 1)), Some(fold(seed ^ 2))).unwrap()
}
