//! Remembered prompts, on every kind of device: found again, given back under pressure, and never something else.

use granule_bank::{Bank, Owner};
use granule_device::{Bytes, Event};
use granule_kv::{Hit, Identity, KvCache, KvOptions, PrefixCache, PrefixKey, PrefixOptions, Sequence};

use crate::support::{Model, Open, append, assert_holds, bank, cache, exact, granules, until, work};

const N_CTX: usize = 100;

fn key(cache: &KvCache) -> PrefixKey {
    PrefixKey::new(&Identity::default(), cache.layout(), N_CTX)
}

fn prompt(seed: u32, len: u32) -> Vec<u32> {
    (0..len).map(|i| seed * 1000 + i).collect()
}

/// A sequence of these tokens, and what it is.
fn computed(cache: &KvCache, tokens: &[u32]) -> (Sequence, Model) {
    let (mut sequence, mut model) = (cache.sequence(N_CTX).unwrap(), Model::default());
    append(&mut sequence, &mut model, tokens).unwrap();
    (sequence, model)
}

pub(crate) fn a_prompt_is_found_again(open: Open<'_>) {
    for (layers_per_row, sinks) in [(1, 4), (3, 0)] {
        let bank = bank(open, 120, 0);
        let cache = cache(&bank, layers_per_row, sinks, exact());
        let prefixes = PrefixCache::new(&bank, PrefixOptions::new());
        let tokens = prompt(1, 60);
        let (mut one, model) = computed(&cache, &tokens);
        assert!(prefixes.insert(&key(&cache), &tokens, &mut one).unwrap());
        drop(one);
        drop(computed(&cache, &prompt(2, 70)));
        let asked = [&tokens[..40], &prompt(3, 20)].concat();
        let Hit { mut sequence, matched } = prefixes.lookup(&key(&cache), &asked).unwrap().unwrap();
        let mut part = model.clone();
        part.keep(0..40);
        assert_eq!(matched, 40);
        assert_holds(&sequence, &part);
        append(&mut sequence, &mut part, &asked[40..]).unwrap();
        assert_holds(&sequence, &part);
        let again = prefixes.lookup(&key(&cache), &tokens).unwrap().unwrap();
        assert_holds(&again.sequence, &model);
        assert!(
            prefixes.lookup(&key(&cache), &[tokens[0], 7]).unwrap().is_none(),
            "what every text begins with"
        );
        let stats = prefixes.stats();
        assert_eq!((stats.hits, stats.misses, stats.tokens_saved), (2, 1, 100));
        drop((sequence, again));
        prefixes.clear();
        assert_eq!(bank.stats().held, Bytes::ZERO);
    }
}

/// Most of what a large prompt holds goes to whoever needs it, while a fork of its beginning lives.
pub(crate) fn a_fork_keeps_no_more_than_it_has(open: Open<'_>) {
    let bank = bank(open, 20, 0);
    let cache = cache(&bank, 3, 0, exact());
    let prefixes = PrefixCache::new(&bank, PrefixOptions::new());
    let tokens = prompt(1, 90);
    let (mut one, mut model) = computed(&cache, &tokens);
    prefixes.insert(&key(&cache), &tokens, &mut one).unwrap();
    drop(one);
    let hit = prefixes.lookup(&key(&cache), &tokens[..10]).unwrap().unwrap();
    let needed = usize::try_from(hit.sequence.memory().held.get() / bank.granule().get()).unwrap();
    let stock = bank.take(&Owner::new("somebody"), 20 - needed).unwrap();
    assert_eq!(prefixes.stats().evicted, 1);
    model.keep(0..10);
    assert_holds(&hit.sequence, &model);
    drop((hit, stock));
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

/// A chat remembers each turn, and what it remembers is the last one.
pub(crate) fn a_chat_is_remembered_once(open: Open<'_>) {
    let bank = bank(open, 60, 0);
    let cache = cache(&bank, 3, 0, exact());
    let prefixes = PrefixCache::new(&bank, PrefixOptions::new());
    let (mut one, mut model) = computed(&cache, &[1]);
    let mut tokens = vec![1];
    for turn in 2..40 {
        assert!(prefixes.insert(&key(&cache), &tokens, &mut one).unwrap());
        append(&mut one, &mut model, &[turn]).unwrap();
        tokens.push(turn);
        assert_eq!(prefixes.stats().entries, 1);
        let held = one.memory().held.checked_add(granules(&bank, 1)).unwrap();
        assert!(bank.stats().held <= held, "turn {turn}");
    }
    assert_holds(&one, &model);
    // One that is pinned stays, and is not in the way.
    let (pin, len) = prefixes.pin(&key(&cache), &tokens).unwrap();
    assert_eq!(len, tokens.len() - 1);
    assert!(prefixes.insert(&key(&cache), &tokens, &mut one).unwrap());
    assert_eq!(prefixes.stats().entries, 2);
    drop((pin, one));
    prefixes.clear();
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

/// With remembered prompts filling the budget, the mapper makes room for live sequences, and not the thread that decodes.
pub(crate) fn prompts_make_room_ahead(open: Open<'_>) {
    let bank = bank(open, 24, 0);
    let cache = cache(&bank, 3, 0, KvOptions::new().ahead(12).parked(Bytes::ZERO));
    let prefixes = PrefixCache::new(&bank, PrefixOptions::new());
    for seed in 1..8 {
        let tokens = prompt(seed, 40);
        let (mut one, _) = computed(&cache, &tokens);
        prefixes.insert(&key(&cache), &tokens, &mut one).unwrap();
    }
    let (mut one, mut model) = computed(&cache, &[1]);
    let mapped_now = cache.stats().mapped_now;
    for token in 1..N_CTX {
        // A token takes long enough for the mapper: here it takes just that.
        let rows = (token + 12).min(N_CTX);
        let needed = cache.layout().held_bytes(rows, bank.granule()).unwrap();
        until("memory ahead", || one.memory().held >= needed);
        append(&mut one, &mut model, &[token as u32]).unwrap();
    }
    assert_eq!(cache.stats().mapped_now, mapped_now);
    assert!(prefixes.stats().evicted > 0);
    assert_holds(&one, &model);
    drop(one);
    prefixes.clear();
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

/// What a fork shares may still be being written: it waits for that, and so does remembering.
pub(crate) fn forks_wait_for_work(open: Open<'_>) {
    let bank: Bank = bank(open, 60, 0);
    let cache = cache(&bank, 3, 0, exact());
    let stream = bank.device().stream().unwrap();
    let tokens = prompt(1, 30);
    let (mut one, model) = computed(&cache, &tokens);
    let busy = |one: &mut Sequence| -> Event {
        let event = work(&stream, 20);
        one.busy_until(&event);
        event
    };
    let event = busy(&mut one);
    let fork = one.fork().unwrap();
    assert!(event.is_done());
    let event = busy(&mut one);
    let part = one.copy(0..9).unwrap();
    assert!(event.is_done());
    let event = busy(&mut one);
    let prefixes = PrefixCache::new(&bank, PrefixOptions::new());
    prefixes.insert(&key(&cache), &tokens, &mut one).unwrap();
    assert!(event.is_done());
    assert_holds(&fork, &model);
    assert_eq!(part.len(), 9);
    // What only its device work still uses is given back behind that.
    let event = busy(&mut one);
    one.truncate(9).unwrap();
    drop((one, fork, part));
    prefixes.clear();
    event.synchronize();
    bank.drain();
    assert_eq!(bank.stats().held, Bytes::ZERO);
}
