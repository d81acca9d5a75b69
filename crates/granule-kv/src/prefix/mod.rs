//! The prefix cache: prompts that were computed once are found again, for as long as nobody needs their memory more.
//!
//! What is remembered is a fork of a sequence: its granules, mapped once more, and nothing copied. A lookup answers a fork of
//! that, cut to the tokens that match. Which matches, and which is forgotten first, is `index`'s, which knows neither memory
//! nor devices. Memory is given back when the bank is asked for more than it has (this is one of its reclaimers).
//!
//! Locks: the cache's own is never held while the bank is asked for memory, so a reclaimer may wait for it. What has to ask,
//! forking, happens under the lock of the one prefix, which is pinned for as long: the reclaimer does not touch it.

mod index;
mod key;
mod stats;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use granule_bank::{Bank, Offer, Owner, PieceId, Reclaim, ReclaimGuard};
use granule_device::Bytes;

use crate::{Error, Sequence};
use index::{Id, Index, Victim};

pub use key::PrefixKey;
pub use stats::PrefixStats;

/// How much a [`PrefixCache`] may remember, and what its prefixes are worth.
#[derive(Clone, Debug)]
pub struct PrefixOptions {
    bytes: Option<Bytes>,
    entries: usize,
    least: usize,
    token_time: Duration,
}

impl Default for PrefixOptions {
    fn default() -> Self {
        PrefixOptions { bytes: None, entries: 4096, least: 8, token_time: Duration::from_millis(1) }
    }
}

impl PrefixOptions {
    /// No limit but the bank's budget and 4096 prefixes, of which 8 tokens have to match, each worth a millisecond.
    pub fn new() -> PrefixOptions {
        PrefixOptions::default()
    }

    /// The most granules, in bytes, that may be behind prefixes; those that live sequences share count too.
    #[must_use]
    pub fn bytes(self, bytes: Bytes) -> PrefixOptions {
        PrefixOptions { bytes: Some(bytes), ..self }
    }

    /// The most prefixes that are remembered.
    #[must_use]
    pub fn entries(self, entries: usize) -> PrefixOptions {
        PrefixOptions { entries, ..self }
    }

    /// The fewest tokens that are worth a lookup: nearly every prompt begins with the token that begins a text, and with that alone
    /// nothing is won.
    #[must_use]
    pub fn least(self, least: usize) -> PrefixOptions {
        PrefixOptions { least, ..self }
    }

    /// How long the model takes for one token of a prompt. By this the bank compares forgetting a prefix with what others offer.
    #[must_use]
    pub fn token_time(self, token_time: Duration) -> PrefixOptions {
        PrefixOptions { token_time, ..self }
    }
}

/// Remembers the beginnings of finished sequences. Cheap to clone; every clone is the same cache. It serves sequences of any
/// number of caches and layouts on one bank: [`PrefixKey`] keeps them apart.
///
/// ```
/// # use granule_bank::*; use granule_device::*; use granule_kv::*;
/// # let device = Device::host_with(HostOptions::new().granule(Bytes::kib(16)).capacity(Bytes::mib(1)))?;
/// # let bank = Bank::new(device, BankOptions::new())?;
/// # let shape = KvShape { n_layers: 2, n_kv_heads: 2, head_dim: 64 };
/// # let layout = KvLayout::new(shape, KvType::Q8_0, KvType::F16, None, 0)?;
/// let cache = KvCache::new(&bank, layout, KvOptions::new())?;
/// let prefixes = PrefixCache::new(&bank, PrefixOptions::new().least(2));
/// let identity = Identity { model: b"digest of the weights".to_vec(), ..Identity::default() };
/// let key = PrefixKey::new(&identity, &layout, 4096);
///
/// let prompt = [1, 15043, 29892, 920];
/// let mut sequence = cache.sequence(4096)?;
/// sequence.prepare(prompt.len())?; // and each layer's rows are written
/// sequence.commit(prompt.len())?;
/// prefixes.insert(&key, &prompt, &mut sequence)?;
/// drop(sequence);
///
/// let next = [1, 15043, 29892, 3186, 29991];
/// let hit = prefixes.lookup(&key, &next[..4])?.ok_or("begins as the prompt did")?;
/// assert_eq!((hit.matched, hit.sequence.len()), (3, 3));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct PrefixCache {
    core: Arc<Core>,
    _asked: Arc<ReclaimGuard>,
}

/// A prefix that was found.
#[derive(Debug)]
pub struct Hit {
    /// A fork that holds the first [`matched`](Hit::matched) of the tokens, and can go on from there. It keeps the granules that
    /// they lie in; the rest of what it was found in may be forgotten.
    pub sequence: Sequence,
    /// How many tokens that are; at least [as many as are worth it](PrefixOptions::least).
    pub matched: usize,
}

/// Keeps a prefix from being forgotten until dropped.
#[derive(Debug)]
pub struct Pin {
    core: Arc<Core>,
    id: Id,
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.core.state().index.unpin(self.id);
    }
}

#[derive(Debug)]
struct Core {
    granule: Bytes,
    options: PrefixOptions,
    state: Mutex<State>,
    /// Held by the thread that evicts for the bank, until the memory is there: who asks meanwhile waits for that, and is not told
    /// that there is nothing.
    giving: Mutex<()>,
    /// Bytes that are being given back.
    leaving: AtomicU64,
}

#[derive(Debug)]
struct State {
    index: Index<Vec<u8>, Arc<Frozen>>,
    /// The granules behind entries, and behind how many.
    holders: BTreeMap<PieceId, usize>,
    counts: PrefixStats,
}

/// A fork that nobody appends to.
#[derive(Debug)]
struct Frozen {
    /// `None` once its memory has been given back.
    sequence: Mutex<Option<Sequence>>,
    granules: Vec<PieceId>,
}

impl PrefixCache {
    /// An empty one, which gives memory back when `bank` asks.
    pub fn new(bank: &Bank, options: PrefixOptions) -> PrefixCache {
        let state = State { index: Index::new(), holders: BTreeMap::new(), counts: PrefixStats::default() };
        let core = Arc::new(Core {
            granule: bank.granule(),
            options,
            state: Mutex::new(state),
            giving: Mutex::default(),
            leaving: AtomicU64::new(0),
        });
        let asked = Arc::new(bank.add_reclaimer(&core));
        PrefixCache { core, _asked: asked }
    }

    /// Remembers `tokens`, which are those that `sequence` begins with, and answers whether a lookup finds them now: not where
    /// the limits are too tight. The sequence stays as it is; it shares its granules with the prefix from now on, and gets
    /// its own copy of the last one when it goes on.
    ///
    /// What is remembered and begins these tokens is forgotten, unless it is pinned: it is found in them.
    ///
    /// Of a sequence that tokens were removed from, only what is before them is remembered: what came after was computed with
    /// them in sight.
    ///
    /// # Errors
    /// [`Error::OtherKey`] where the key is that of another layout, [`Error::PastEnd`] where the sequence has fewer tokens;
    /// [`Error::Bank`].
    pub fn insert(&self, key: &PrefixKey, tokens: &[u32], sequence: &mut Sequence) -> Result<bool, Error> {
        if key.layout() != sequence.cache().layout() {
            return Err(Error::OtherKey);
        }
        if tokens.len() > sequence.len() {
            return Err(Error::PastEnd { to: tokens.len(), len: sequence.len() });
        }
        // Rows that follow one another from the first on, stored at positions from 0 on.
        let first = sequence.segments().first().filter(|first| (first.row, first.stored) == (0, 0));
        let known = &tokens[..tokens.len().min(first.map_or(0, |first| first.len))];
        if self.core.state().knows(key, known) {
            return Ok(known.len() == tokens.len());
        }
        // Nobody appends to it: it needs no addresses for more than it has.
        let fork = self.core.counted(sequence.copy_within(0..known.len(), known.len(), 0))?;
        let granules: Vec<PieceId> = fork.granules().map(|(id, _)| id).collect();
        let frozen = Arc::new(Frozen { sequence: Mutex::new(Some(fork)), granules });
        let (kept, gone) = self.core.remember(key, known, frozen);
        for frozen in gone {
            frozen.give_back();
        }
        Ok(kept && known.len() == tokens.len())
    }

    /// The longest beginning of `tokens` that is remembered under this key, as a sequence that goes on from there. To have
    /// logits, the last token of a prompt has to be computed: look up all but that one.
    ///
    /// # Errors
    /// [`Error::Bank`], for a prefix that was found and could not be forked.
    pub fn lookup(&self, key: &PrefixKey, tokens: &[u32]) -> Result<Option<Hit>, Error> {
        let tokens = &tokens[..tokens.len().min(key.n_ctx())];
        let Some((_pin, frozen, matched)) = self.find(key, tokens, self.core.options.least) else {
            self.core.state().counts.misses += 1;
            return Ok(None);
        };
        let sequence = {
            let mut source = frozen.sequence.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(source) = source.as_mut() else { return Ok(None) };
            let rows = source.cache().layout().rows_for(key.n_ctx());
            source.copy_within(0..matched, key.n_ctx(), rows)
        };
        let sequence = self.core.counted(sequence)?;
        let mut state = self.core.state();
        state.counts.hits += 1;
        state.counts.tokens_saved += matched as u64;
        drop(state);
        Ok(Some(Hit { sequence, matched }))
    }

    /// Keeps the longest remembered beginning of `tokens`, and answers how long it is: for prompts that everybody uses.
    pub fn pin(&self, key: &PrefixKey, tokens: &[u32]) -> Option<(Pin, usize)> {
        self.find(key, tokens, 1).map(|(pin, _, matched)| (pin, matched))
    }

    /// Forgets everything that is not pinned; answers how much was given back.
    pub fn clear(&self) -> Bytes {
        let mut state = self.core.state();
        let all: Vec<Id> = state.index.unpinned().map(|(id, ..)| id).collect();
        let gone: Vec<_> = all.into_iter().filter_map(|id| state.index.remove(id)).collect();
        gone.iter().for_each(|frozen| state.forget(frozen));
        drop(state);
        gone.iter().map(|frozen| frozen.give_back()).fold(Bytes::ZERO, Bytes::saturating_add)
    }

    /// What it holds, and what came of it.
    pub fn stats(&self) -> PrefixStats {
        let state = self.core.state();
        let held = self.core.granule.saturating_mul(state.holders.len() as u64);
        PrefixStats { entries: state.index.len(), tokens: state.index.tokens(), held, ..state.counts }
    }

    /// The granules behind what it holds, each once.
    pub fn granules(&self) -> Vec<PieceId> {
        self.core.state().holders.keys().copied().collect()
    }

    fn find(&self, key: &PrefixKey, tokens: &[u32], least: usize) -> Option<(Pin, Arc<Frozen>, usize)> {
        let mut state = self.core.state();
        let found = state.index.find(key.bytes(), tokens).filter(|found| found.len >= least)?;
        let frozen = state.index.get(found.id)?.clone();
        state.index.touch(found.id);
        state.index.pin(found.id);
        Some((Pin { core: self.core.clone(), id: found.id }, frozen, found.len))
    }
}

impl Core {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a fork that failed.
    fn counted(&self, fork: Result<Sequence, Error>) -> Result<Sequence, Error> {
        fork.inspect_err(|_| self.state().counts.failed += 1)
    }

    /// Puts a prefix in, and what the limits have no room for out. Answers whether the prefix is in, and what is out.
    fn remember(&self, key: &PrefixKey, tokens: &[u32], frozen: Arc<Frozen>) -> (bool, Vec<Arc<Frozen>>) {
        let limit = self.options.bytes.map_or(usize::MAX, |bytes| {
            usize::try_from(bytes.get() / self.granule.get().max(1)).unwrap_or(usize::MAX)
        });
        if frozen.granules.len() > limit || self.options.entries == 0 {
            return (false, vec![frozen]);
        }
        let mut state = self.state();
        let (id, mut gone) = match state.index.insert(key.bytes(), tokens, frozen.clone()) {
            Ok(done) => done,
            // Somebody else remembered it meanwhile.
            Err(frozen) => return (!tokens.is_empty(), vec![frozen]),
        };
        frozen.granules.iter().for_each(|&id| *state.holders.entry(id).or_default() += 1);
        gone.iter().for_each(|contained| state.forget(contained));
        state.counts.inserted += 1;
        // The new one is not weighed against the old: it is what was used last.
        state.index.pin(id);
        while state.holders.len() > limit || state.index.len() > self.options.entries {
            let State { index, holders, .. } = &*state;
            let alone = |frozen: &Arc<Frozen>| {
                let mine = frozen.granules.iter().filter(|id| holders.get(id) == Some(&1)).count();
                self.granule.get().saturating_mul(mine as u64)
            };
            let victim = index.first_to_go(|frozen| Some(alone(frozen)));
            let Some(old) = victim.and_then(|victim| state.evict(victim)) else { break };
            gone.push(old);
        }
        state.index.unpin(id);
        let fits = state.holders.len() <= limit && state.index.len() <= self.options.entries;
        // Everything else is pinned.
        if !fits && let Some(frozen) = state.index.remove(id) {
            state.forget(&frozen);
            gone.push(frozen);
        }
        (fits, gone)
    }

    /// What giving back the memory that only this one holds would cost, in microseconds a MiB.
    fn price(&self, tokens: usize, bytes: u64) -> u64 {
        let micros = self.options.token_time.as_micros().saturating_mul(tokens as u128);
        let price = micros.saturating_mul(1 << 20) / u128::from(bytes.max(1));
        u64::try_from(price).unwrap_or(u64::MAX)
    }
}

impl State {
    /// Whether all of the tokens are known; where they are, they have been used just now.
    fn knows(&mut self, key: &PrefixKey, tokens: &[u32]) -> bool {
        let found = self.index.find(key.bytes(), tokens).filter(|found| found.len == tokens.len());
        if let Some(found) = found {
            self.index.touch(found.id);
        }
        found.is_some() || tokens.is_empty()
    }

    fn evict(&mut self, victim: Victim) -> Option<Arc<Frozen>> {
        let frozen = self.index.evict(victim)?;
        self.forget(&frozen);
        self.counts.evicted += 1;
        Some(frozen)
    }

    /// Its granules are not an entry's any more.
    fn forget(&mut self, frozen: &Frozen) {
        for id in &frozen.granules {
            if let Some(count) = self.holders.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    self.holders.remove(id);
                }
            }
        }
    }
}

impl Frozen {
    /// What only it holds, of all there is. `None` where it is in use, and for nothing.
    fn alone(&self) -> Option<Bytes> {
        let sequence = self.sequence.try_lock().ok()?;
        let memory = sequence.as_ref()?.memory();
        Some(memory.held.saturating_sub(memory.shared)).filter(|alone| !alone.is_zero())
    }

    /// Gives its memory back to the bank, and answers how much that was.
    fn give_back(&self) -> Bytes {
        let sequence = self.sequence.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(sequence) = sequence else { return Bytes::ZERO };
        let memory = sequence.memory();
        sequence.discard();
        memory.held.saturating_sub(memory.shared)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // Its addresses are too few for any other sequence.
        self.give_back();
    }
}

impl Reclaim for Core {
    fn owner(&self) -> Owner {
        Owner::new("kv prefixes")
    }

    fn could_give(&self) -> Vec<Offer> {
        let state = self.state();
        let mut offers = BTreeMap::<u64, Bytes>::new();
        for (_, frozen, tokens) in state.index.unpinned() {
            let Some(alone) = frozen.alone() else { continue };
            let offer = offers.entry(self.price(tokens, alone.get())).or_default();
            *offer = offer.saturating_add(alone);
        }
        drop(state);
        // Looked at last: what left the index until now is in here.
        let leaving = Bytes::new(self.leaving.load(Ordering::Acquire));
        let offers = offers.into_iter().map(|(cost, bytes)| Offer::new(bytes, cost));
        offers.chain((!leaving.is_zero()).then(|| Offer::new(leaving, 0))).collect()
    }

    fn reclaim(&self, want: Bytes) -> Bytes {
        // Nobody asks the bank with this lock held, so it can be waited for.
        let _giving = self.giving.lock().unwrap_or_else(PoisonError::into_inner);
        let mut given = Bytes::ZERO;
        while given < want {
            let mut state = self.state();
            let mut gone = Vec::new();
            let mut expected = given;
            for victim in state.index.to_go(|frozen| frozen.alone().map(Bytes::get)) {
                if expected >= want {
                    break;
                }
                expected = expected.saturating_add(Bytes::new(victim.bytes));
                self.leaving.fetch_add(victim.bytes, Ordering::AcqRel);
                gone.extend(state.evict(victim));
            }
            drop(state);
            if gone.is_empty() {
                break;
            }
            // What one gives back may be the next one's alone: where it is not enough they are looked at anew.
            given = gone.iter().map(|frozen| frozen.give_back()).fold(given, Bytes::saturating_add);
            self.leaving.store(0, Ordering::Release);
        }
        given
    }
}
