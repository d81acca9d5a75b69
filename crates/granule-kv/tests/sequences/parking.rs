//! What sequences that are gone leave for the next ones.

use granule_bank::Owner;
use granule_device::Bytes;

use crate::support::{Model, Open, append, assert_holds, assert_reported, bank, cache, granules, parked};

pub(crate) fn what_is_parked_is_used_again(open: Open<'_>) {
    let bank = bank(open, 60, 0);
    let cache = cache(&bank, 3, 4, parked(&bank, 20));
    let tokens: Vec<u32> = (0..50).collect();
    let mut first = cache.sequence(100).unwrap();
    let mut model = Model::default();
    append(&mut first, &mut model, &tokens).unwrap();
    let (held, bases) = (bank.stats().held, first.bases().collect::<Vec<_>>());
    let fork = first.copy(0..20).unwrap();
    let shared = fork.memory().held;
    drop(first);
    // What the fork has too is its alone now.
    let left = held.checked_sub(shared).unwrap();
    assert_eq!((cache.stats().parked, bank.stats().held), (left, held));
    assert_reported(&cache, [&fork].into_iter());
    let calls = bank.device().calls_made();
    let mut second = cache.sequence(100).unwrap();
    assert_eq!(bank.device().calls_made(), calls, "with the mappings");
    assert_eq!(second.bases().collect::<Vec<_>>(), bases);
    assert_eq!((second.len(), cache.stats().parked), (0, Bytes::ZERO));
    assert_eq!(cache.stats().reused, left.get() / bank.granule().get());
    let mut model = Model::default();
    append(&mut second, &mut model, &tokens).unwrap();
    assert_holds(&second, &model);
    assert_eq!(bank.stats().held, held.checked_add(shared).unwrap());
    // A larger context does not fit into the addresses.
    drop(second);
    let larger = cache.sequence(101).unwrap();
    assert_eq!((larger.memory().held, cache.stats().parked), (Bytes::ZERO, held));
    assert_eq!(cache.trim(), held);
    assert_reported(&cache, [&fork, &larger].into_iter());
}

pub(crate) fn what_is_parked_goes_to_whoever_needs_it(open: Open<'_>) {
    let bank = bank(open, 12, 0);
    let cache = cache(&bank, 3, 0, parked(&bank, 12));
    for _ in 0..2 {
        let mut sequences = [cache.sequence(100).unwrap(), cache.sequence(100).unwrap()];
        for sequence in &mut sequences {
            append(sequence, &mut Model::default(), &(0..40).collect::<Vec<_>>()).unwrap();
        }
    }
    assert!(cache.stats().parked >= granules(&bank, 10));
    let stock = bank.take(&Owner::new("weights"), 9).unwrap();
    assert_eq!(stock.len(), 9);
    assert!(cache.stats().parked <= granules(&bank, 3));
    drop(stock);
    cache.trim();
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

pub(crate) fn no_more_is_parked_than_said(open: Open<'_>) {
    let bank = bank(open, 60, 0);
    let cache = cache(&bank, 1, 0, parked(&bank, 6));
    for round in 0..4 {
        let mut sequences: Vec<_> = (0..3).map(|_| cache.sequence(100).unwrap()).collect();
        for sequence in &mut sequences {
            let mut model = Model::default();
            append(sequence, &mut model, &(round..round + 40).collect::<Vec<_>>()).unwrap();
            assert_holds(sequence, &model);
        }
        drop(sequences);
        let parked = cache.stats().parked;
        assert!(parked <= granules(&bank, 6) && !parked.is_zero(), "{parked}");
        assert_eq!(bank.stats().held, parked);
    }
}

/// A sequence that begins with what another one left holds no more than its tokens need, once somebody needs the rest.
pub(crate) fn what_is_used_again_is_anybodys_until_it_is_used(open: Open<'_>) {
    let bank = bank(open, 20, 0);
    let cache = cache(&bank, 3, 0, parked(&bank, 20));
    let tokens: Vec<u32> = (0..80).collect();
    // Also what was shared until just now.
    let mut first = cache.sequence(100).unwrap();
    append(&mut first, &mut Model::default(), &tokens).unwrap();
    drop(first.fork().unwrap());
    drop(first);
    let left = cache.stats().parked;
    let mut one = cache.sequence(100).unwrap();
    assert_eq!((one.memory().held, one.memory().spare, cache.memory().spare), (left, left, left));
    let mut model = Model::default();
    append(&mut one, &mut model, &[1]).unwrap();
    assert_eq!(one.memory().held, left);
    assert_reported(&cache, [&one].into_iter());
    let stock = bank.take(&Owner::new("somebody"), 19).unwrap();
    assert_eq!((one.memory().held, one.memory().spare), (granules(&bank, 1), Bytes::ZERO));
    assert_holds(&one, &model);
    assert!(append(&mut one, &mut model, &tokens).is_err());
    drop(stock);
    append(&mut one, &mut model, &tokens).unwrap();
    assert_holds(&one, &model);
    assert_reported(&cache, [&one].into_iter());
}
