//! What contexts of one model have in common: KV caches for each layout and transform, one a stage, and the prompts that are remembered.
//!
//! One cache means one thread that maps ahead, one set of parked ranges, and granules that any sequence may share. It
//! lives as long as a context uses it, or as long as the model once it has a remembered prompt.

use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use granule_bank::Bank;
use granule_device::Bytes;
use granule_kv::{Identity, KvCache, KvLayout, KvOptions, PrefixCache, PrefixOptions, Sequence};

use crate::error::Result;
use crate::kv_tables::Tables;

/// A cache for each place of a model, and what their bytes were made with.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Of one layout but for the number of layers and heads; never empty.
    pub(crate) caches: Vec<KvCache>,
    pub(crate) tables: Option<Arc<Tables>>,
    /// What each place has of the tables: all, or those of its heads. Empty where there are none.
    parts: Vec<Arc<Tables>>,
}

impl Shared {
    /// The layouts of the caches, stage by stage.
    pub(crate) fn layouts(&self) -> Vec<KvLayout> {
        self.caches.iter().map(|cache| *cache.layout()).collect()
    }

    /// What each place has of the tables, if there are some.
    pub(crate) fn parts(&self) -> Option<&[Arc<Tables>]> {
        Some(&self.parts[..]).filter(|parts| !parts.is_empty())
    }

    /// Memory of all tables, of the whole and of parts.
    pub(crate) fn held_by_tables(&self) -> Bytes {
        let Some(whole) = &self.tables else { return Bytes::ZERO };
        let parts = self.parts.iter().filter(|part| !Arc::ptr_eq(part, whole));
        parts.map(|part| part.held()).fold(whole.held(), Bytes::saturating_add)
    }

    /// An empty sequence of each cache.
    pub(crate) fn sequences(&self, n_ctx: usize) -> Result<Vec<Sequence>> {
        Ok(self.caches.iter().map(|cache| cache.sequence(n_ctx)).collect::<Result<_, _>>()?)
    }
}

/// The caches of a model and its remembered prompts.
#[derive(Debug, Default)]
pub(crate) struct Caches {
    // Prompts go first: their memory is parked in the caches, and goes with these.
    /// Of each stage.
    prefixes: OnceLock<Vec<PrefixCache>>,
    kept: Mutex<Vec<Arc<Shared>>>,
    used: Mutex<Vec<Weak<Shared>>>,
    identity: OnceLock<Identity>,
}

impl Caches {
    /// The caches of these layouts, one in each bank, these options and these tables, of which `parts` says what each place has; new
    /// ones where no context uses them.
    pub(crate) fn get<'a>(
        &self,
        banks: impl Iterator<Item = &'a Bank>,
        layouts: &[KvLayout],
        options: KvOptions,
        tables: Option<Arc<Tables>>,
        parts: impl FnOnce(&Arc<Tables>) -> Result<Vec<Arc<Tables>>>,
    ) -> Result<Arc<Shared>> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.retain(|shared| shared.strong_count() > 0);
        let is_wanted = |shared: &Arc<Shared>| {
            let caches = || shared.caches.iter();
            caches().map(KvCache::layout).eq(layouts)
                && caches().all(|cache| cache.options() == options)
                && shared.tables == tables
        };
        if let Some(shared) = used.iter().filter_map(Weak::upgrade).find(is_wanted) {
            return Ok(shared);
        }
        let caches = banks.zip(layouts).map(|(bank, &layout)| KvCache::new(bank, layout, options));
        let caches = caches.collect::<Result<_, _>>()?;
        let parts = tables.as_ref().map(parts).transpose()?.unwrap_or_default();
        let shared = Arc::new(Shared { caches, tables, parts });
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

    /// The remembered prompts, of each stage.
    pub(crate) fn prefixes<'a, I: Iterator<Item = &'a Bank>>(
        &self,
        banks: impl FnOnce() -> I,
    ) -> &[PrefixCache] {
        self.prefixes
            .get_or_init(|| banks().map(|bank| PrefixCache::new(bank, PrefixOptions::new())).collect())
    }

    /// The remembered prompts, if any ever were: those of each stage, or none.
    pub(crate) fn known_prefixes(&self) -> &[PrefixCache] {
        self.prefixes.get().map_or(&[], Vec::as_slice)
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
