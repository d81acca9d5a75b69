//! What contexts of one model have in common: a KV cache for each layout and transform, and the prompts that are remembered.
//!
//! One cache means one thread that maps ahead, one set of parked ranges, and granules that any sequence may share. It
//! lives as long as a context uses it, or as long as the model once it has a remembered prompt.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use granule_bank::Bank;
use granule_kv::{Identity, KvCache, KvLayout, KvOptions, PrefixCache, PrefixOptions};

use crate::error::Result;
use crate::kv_tables::Tables;

/// A cache, and what its bytes were made with.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) cache: KvCache,
    pub(crate) tables: Option<Arc<Tables>>,
}

/// The caches of a model and its remembered prompts.
#[derive(Debug, Default)]
pub(crate) struct Caches {
    // Prompts go first: their memory is parked in the caches, and goes with these.
    prefixes: OnceLock<PrefixCache>,
    kept: Mutex<Vec<Arc<Shared>>>,
    used: Mutex<Vec<Weak<Shared>>>,
    identity: OnceLock<Identity>,
}

impl Caches {
    /// The cache of this layout, these options and these tables; a new one where no context uses it.
    pub(crate) fn get(
        &self,
        bank: &Bank,
        layout: KvLayout,
        options: KvOptions,
        tables: Option<Arc<Tables>>,
    ) -> Result<Arc<Shared>> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|shared| shared.strong_count() > 0);
        let is_wanted = |shared: &Arc<Shared>| {
            let cache = &shared.cache;
            (cache.layout(), cache.options()) == (&layout, options) && shared.tables == tables
        };
        if let Some(shared) = used.iter().filter_map(Weak::upgrade).find(is_wanted) {
            return Ok(shared);
        }
        let cache = KvCache::new(bank, layout, options)?;
        let shared = Arc::new(Shared { cache, tables });
        used.push(Arc::downgrade(&shared));
        Ok(shared)
    }

    /// Has a cache stay with the model: prompts are remembered in it.
    pub(crate) fn keep(&self, shared: &Arc<Shared>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.iter().any(|known| Arc::ptr_eq(known, shared)) {
            kept.push(Arc::clone(shared));
        }
    }

    /// The remembered prompts.
    pub(crate) fn prefixes(&self, bank: &Bank) -> &PrefixCache {
        self.prefixes.get_or_init(|| PrefixCache::new(bank, PrefixOptions::new()))
    }

    /// The remembered prompts, if any ever were.
    pub(crate) fn known_prefixes(&self) -> Option<&PrefixCache> {
        self.prefixes.get()
    }

    /// What the model is to be told apart by, made now if it was not needed before.
    pub(crate) fn identity(&self, make: impl FnOnce() -> Result<Identity>) -> Result<&Identity> {
        if let Some(identity) = self.identity.get() {
            return Ok(identity);
        }
        let made = make()?;
        Ok(self.identity.get_or_init(|| made))
    }
}
