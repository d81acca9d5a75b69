//! What a context's memory is for.

use std::collections::HashMap;

use granule_bank::PieceId;
use granule_device::Bytes;

use super::Context;
use crate::engine::EngineMemory;
use crate::memory::{MemoryInfo, SequenceMemory};

impl Context {
    /// Where this context's memory and its model's went.
    #[must_use]
    pub fn memory_info(&self) -> MemoryInfo {
        let granule = self.model.bank().granule();
        // Of each granule, whether somebody else has it too.
        let mut granules: HashMap<PieceId, bool> = HashMap::new();
        let (mut named, mut kv, mut used, mut reserved) = (0, Bytes::ZERO, Bytes::ZERO, Bytes::ZERO);
        let mut sequences = Vec::with_capacity(self.slots.len());
        for slot in &self.slots {
            let memory = slot.sequence.memory();
            for (id, is_shared) in slot.sequence.granules() {
                granules.insert(id, is_shared);
                named += 1;
            }
            kv = kv.saturating_add(memory.held);
            used = used.saturating_add(memory.used);
            reserved = reserved.saturating_add(memory.reserved);
            sequences.push(SequenceMemory { id: slot.id, n_tokens: slot.tokens.len(), kv: memory });
        }
        let times = |count: usize| granule.saturating_mul(count as u64);
        // Those that several sequences have count once.
        let kv = kv.saturating_sub(times(named - granules.len()));
        let kv_shared = times(granules.values().filter(|&&is_shared| is_shared).count());
        let prefixes = self.model.caches().known_prefixes().map(|prefixes| prefixes.granules());
        let others = prefixes.iter().flatten().filter(|&id| !granules.contains_key(id)).count();
        let (kv_prefixes, kv_parked) = (times(others), self.shared.cache.stats().parked);
        let kv_transform = self.shared.tables.as_ref().map_or(Bytes::ZERO, |tables| tables.held());
        let EngineMemory { activations, scratch, folds, pinned } = self.engine.memory();
        let model = self.model.bytes();
        let kv_transform = kv_transform.saturating_add(folds);
        let parts = [model, kv, kv_prefixes, kv_parked, kv_transform, activations, scratch];
        MemoryInfo {
            device: self.model.bank().device().name().to_owned(),
            model,
            model_packed: self.model.packed_bytes(),
            kv,
            kv_shared,
            kv_used: used,
            kv_reserved: reserved,
            kv_prefixes,
            kv_parked,
            kv_transform,
            activations,
            scratch,
            pinned,
            n_tokens: self.tokens().len(),
            n_ctx: self.n_ctx(),
            total: parts.into_iter().fold(Bytes::ZERO, Bytes::saturating_add),
            sequences,
        }
    }
}
