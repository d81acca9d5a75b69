//! `PrefixKey`: under what a prefix is remembered.

use crate::{Identity, KvLayout};

/// Everything that changes the bytes of a row, or where they lie, besides the tokens: a prefix is found only under the key that
/// it was remembered under. Keys are compared in full, but for the size of the context, which a prefix has none of.
#[derive(Clone, Debug)]
pub struct PrefixKey {
    bytes: Vec<u8>,
    layout: KvLayout,
    n_ctx: usize,
}

impl PrefixKey {
    /// The key of sequences of this layout with rows made so, for contexts of this size.
    pub fn new(identity: &Identity, layout: &KvLayout, n_ctx: usize) -> PrefixKey {
        let shape = layout.shape();
        let numbers =
            [shape.n_layers, shape.n_kv_heads, shape.head_dim, layout.layers_per_row(), layout.sinks()];
        let types = [layout.k_type().name().as_bytes(), layout.v_type().name().as_bytes()];
        let numbers = numbers.map(|number| (number as u64).to_le_bytes());
        let mut bytes = numbers.concat();
        // Each with its length before it, so that no two keys have the same bytes.
        for part in types.into_iter().chain(identity.parts()) {
            bytes.extend((part.len() as u64).to_le_bytes());
            bytes.extend(part);
        }
        PrefixKey { bytes, layout: *layout, n_ctx }
    }

    /// The layout of the sequences.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// The context size of what a lookup answers.
    pub fn n_ctx(&self) -> usize {
        self.n_ctx
    }

    pub(super) fn bytes(&self) -> &Vec<u8> {
        &self.bytes
    }
}
