//! Forks and copies: what is shared, what is copied when, and what waits for device work.

use granule_device::Bytes;

use crate::support::{Model, Open, append, assert_holds, assert_reported, bank, cache, exact, granules};

pub(crate) fn a_fork_shares_until_one_writes(open: Open<'_>) {
    let bank = bank(open, 40, 0);
    let cache = cache(&bank, 3, 0, exact());
    let mut parent = cache.sequence(200).unwrap();
    let mut model = Model::default();
    append(&mut parent, &mut model, &(0..50).collect::<Vec<_>>()).unwrap();
    let held = bank.stats().held;
    let mut fork = parent.fork().unwrap();
    let mut other = model.clone();
    assert_eq!(bank.stats().held, held);
    assert_eq!((fork.memory().shared, parent.memory().shared, cache.memory().shared), (held, held, held));
    assert_eq!(parent.rows_mut(0).unwrap().len(), 0, "what was prepared is shared now");

    let row = cache.layout().row_stride(0).get();
    let parting = 50 * row % bank.granule().get();
    assert!(parting > 0);
    append(&mut fork, &mut other, &[100]).unwrap();
    assert_eq!(fork.bytes_copied(), Bytes::new(parting), "only the granule in which the two part");
    assert_eq!(bank.stats().held, held.checked_add(bank.granule()).unwrap());
    append(&mut parent, &mut model, &[200]).unwrap();
    assert_eq!(parent.bytes_copied(), Bytes::ZERO, "the last that has it needs no copy");
    assert_eq!(bank.stats().held, held.checked_add(bank.granule()).unwrap());
    let stats = cache.stats();
    assert_eq!((stats.copies, stats.copied), (1, Bytes::new(parting)));

    assert_holds(&parent, &model);
    assert_holds(&fork, &other);
    drop(parent);
    assert_holds(&fork, &other);
    assert_eq!(bank.stats().held, held);
    assert_eq!(fork.memory().shared, Bytes::ZERO);
}

pub(crate) fn a_cut_fork_writes_over_what_it_shares(open: Open<'_>) {
    let bank = bank(open, 100, 0);
    let cache = cache(&bank, 2, 4, exact());
    let mut parent = cache.sequence(200).unwrap();
    let mut model = Model::default();
    append(&mut parent, &mut model, &(0..60).collect::<Vec<_>>()).unwrap();
    let mut fork = parent.fork().unwrap();
    let mut other = model.clone();
    fork.truncate(10).unwrap();
    other.keep(0..10);
    // What the fork shared and has no token in any more is no memory to keep.
    assert_eq!(fork.memory().held, cache.layout().held_bytes(10, bank.granule()).unwrap());
    append(&mut fork, &mut other, &[7, 8]).unwrap();
    assert_holds(&parent, &model);
    assert_holds(&fork, &other);
    let row = cache.layout().token_bytes().get();
    assert!(fork.bytes_copied().get() > 0 && fork.bytes_copied().get() < 10 * row + 3 * bank.granule().get());
    parent.clear();
    model.keep(0..0);
    append(&mut parent, &mut model, &[1]).unwrap();
    assert_holds(&parent, &model);
    assert_holds(&fork, &other);
    assert_reported(&cache, [&parent, &fork].into_iter());
}

pub(crate) fn a_copy_has_its_tokens_alone(open: Open<'_>) {
    let bank = bank(open, 100, 0);
    let cache = cache(&bank, 3, 4, exact());
    let mut parent = cache.sequence(100).unwrap();
    let mut model = Model::default();
    append(&mut parent, &mut model, &(0..80).collect::<Vec<_>>()).unwrap();
    parent.remove(30..35).unwrap();
    model.remove(30..35);
    let mut copy = parent.copy(20..60).unwrap();
    let mut part = model.clone();
    part.keep(20..60);
    assert!(copy.memory().held < parent.memory().held);
    assert_eq!(copy.memory().held, copy.memory().shared);
    assert_holds(&copy, &part);
    append(&mut copy, &mut part, &[500; 30]).unwrap();
    append(&mut parent, &mut model, &[600; 20]).unwrap();
    copy.keep(5..70).unwrap();
    part.keep(5..70);
    assert_holds(&copy, &part);
    assert_holds(&parent, &model);
    drop(parent);
    assert_holds(&copy, &part);
    let empty = copy.copy(3..3).unwrap();
    assert_eq!((empty.len(), empty.memory().held), (0, Bytes::ZERO));
    assert_reported(&cache, [&copy, &empty].into_iter());
}

/// Memory that device work may still read is given back behind it, and comes back to whoever needs it then.
pub(crate) fn memory_is_given_back_after_work(open: Open<'_>) {
    let bank = bank(open, 60, 0);
    let cache = cache(&bank, 3, 0, exact());
    let stream = bank.device().stream().unwrap();
    let mut sequence = cache.sequence(100).unwrap();
    let mut model = Model::default();
    append(&mut sequence, &mut model, &(0..80).collect::<Vec<_>>()).unwrap();
    let mut fork = sequence.fork().unwrap();
    let mut other = model.clone();
    stream.call(|| std::thread::sleep(std::time::Duration::from_millis(5))).unwrap();
    let event = stream.record().unwrap();
    sequence.busy_until(&event);
    fork.busy_until(&event);
    fork.truncate(9).unwrap();
    other.keep(0..9);
    append(&mut fork, &mut other, &[1000; 30]).unwrap();
    sequence.remove(10..60).unwrap();
    model.remove(10..60);
    append(&mut sequence, &mut model, &[2000; 40]).unwrap();
    assert_holds(&sequence, &model);
    assert_holds(&fork, &other);
    fork.trim().unwrap();
    sequence.trim().unwrap();
    stream.synchronize().unwrap();
    bank.drain();
    assert!(bank.stats().held <= granules(&bank, 2 * 11));
    assert_reported(&cache, [&sequence, &fork].into_iter());
    sequence.busy_until(&event);
    drop((sequence, fork));
    bank.drain();
    assert_eq!(bank.stats().held, Bytes::ZERO);
}
