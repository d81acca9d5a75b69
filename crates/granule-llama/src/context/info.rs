//! What a context's memory is for.

use std::collections::HashMap;

use granule_bank::{Bank, PieceId};
use granule_device::Bytes;
use granule_kv::{KvMemory, Sequence};

use super::Context;
use crate::memory::{DeviceMemory, MemoryInfo, RankTraffic, SequenceMemory};

impl Context {
    /// Where this context's memory and its model's went.
    #[must_use]
    pub fn memory_info(&self) -> MemoryInfo {
        let devices: Vec<DeviceMemory> = self.model.banks().map(|bank| self.memory_in(bank)).collect();
        let all = |part: fn(&DeviceMemory) -> Bytes| {
            devices.iter().map(part).fold(Bytes::ZERO, Bytes::saturating_add)
        };
        let sequences = self.slots.iter().map(|slot| {
            let parts = slot.stages.iter().map(Sequence::memory);
            let kv = parts.fold(KvMemory::default(), KvMemory::saturating_add);
            SequenceMemory { id: slot.id, n_tokens: slot.tokens.len(), kv }
        });
        MemoryInfo {
            device: devices.iter().map(|device| device.device.as_str()).collect::<Vec<_>>().join(" + "),
            model: all(|device| device.model),
            model_packed: self.model.packed_bytes(),
            kv: all(|device| device.kv),
            kv_shared: all(|device| device.kv_shared),
            kv_used: all(|device| device.kv_used),
            kv_reserved: all(|device| device.kv_reserved),
            kv_prefixes: all(|device| device.kv_prefixes),
            kv_parked: all(|device| device.kv_parked),
            kv_transform: all(|device| device.kv_transform),
            activations: all(|device| device.activations),
            scratch: all(|device| device.scratch),
            pinned: all(|device| device.pinned),
            n_tokens: self.tokens().len(),
            n_ctx: self.n_ctx(),
            total: all(|device| device.total),
            sequences: sequences.collect(),
            devices,
        }
    }

    /// What ranks of this process have sent to others for this context, stage by stage of those that are split. Where other ranks are
    /// other processes, one communicator serves all contexts, and counts for all.
    #[must_use]
    pub fn traffic(&self) -> Vec<RankTraffic> {
        self.engine.traffic().collect()
    }

    /// What is in one of the model's banks.
    fn memory_in(&self, bank: &Bank) -> DeviceMemory {
        let granule = bank.granule();
        let times = |count: usize| granule.saturating_mul(count as u64);
        // Of each granule, whether somebody else has it too.
        let mut granules: HashMap<PieceId, bool> = HashMap::new();
        let mut named = 0;
        let mut memory = DeviceMemory::new(bank.device().name(), self.model.bytes_in(bank));
        if bank.is(self.model.tables_bank()) {
            memory.kv_transform = self.shared.held_by_tables();
        }
        let places = || self.model.places().iter().filter(|place| place.bank.is(bank));
        for place in places() {
            memory.layers += place.span.len();
            let cache = &self.shared.caches[place.span.index];
            memory.kv_parked = memory.kv_parked.saturating_add(cache.stats().parked);
            for slot in &self.slots {
                let sequence = &slot.stages[place.span.index];
                for (id, is_shared) in sequence.granules() {
                    granules.insert(id, is_shared);
                    named += 1;
                }
                let held = sequence.memory();
                memory.kv = memory.kv.saturating_add(held.held);
                memory.kv_used = memory.kv_used.saturating_add(held.used);
                memory.kv_reserved = memory.kv_reserved.saturating_add(held.reserved);
            }
        }
        // Those that several sequences have count once.
        memory.kv = memory.kv.saturating_sub(times(named - granules.len()));
        memory.kv_shared = times(granules.values().filter(|&&is_shared| is_shared).count());
        for (place, engine) in self.model.places().iter().zip(self.engine.memory()) {
            if !place.bank.is(bank) {
                continue;
            }
            let prefixes = self.model.caches().known_prefixes().get(place.span.index);
            let others = prefixes.map(|prefixes| prefixes.granules());
            let others = others.iter().flatten().filter(|&id| !granules.contains_key(id)).count();
            memory.kv_prefixes = memory.kv_prefixes.saturating_add(times(others));
            memory.kv_transform = memory.kv_transform.saturating_add(engine.folds);
            memory.activations = memory.activations.saturating_add(engine.activations);
            memory.scratch = memory.scratch.saturating_add(engine.scratch);
            memory.pinned = memory.pinned.saturating_add(engine.pinned);
        }
        memory.total = memory.sum();
        #[cfg(feature = "cuda")]
        {
            memory.context = places().find_map(|place| place.cuda.as_ref()?.context());
        }
        memory
    }
}
