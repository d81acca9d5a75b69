//! Growth: where it happens, what it costs, and who pays.

use granule_device::{Bytes, FaultPlan, calls_made_here};
use granule_kv::{Error, KvCache, KvLayout, KvOptions, KvShape, KvType};

use crate::support::{Model, Open, append, assert_holds, bank, cache, exact, granules, is_reported, until};

pub(crate) fn growth_neither_moves_nor_copies(open: Open<'_>) {
    for (layers_per_row, sinks) in [(1, 0), (2, 4), (3, 0), (3, 4)] {
        let bank = bank(open, 60, 0);
        let cache = cache(&bank, layers_per_row, sinks, exact());
        let mut sequence = cache.sequence(200).unwrap();
        assert_eq!(sequence.memory().held, Bytes::ZERO);
        let bases: Vec<_> = sequence.bases().collect();
        let mut model = Model::default();
        for token in 0..200 {
            append(&mut sequence, &mut model, &[token]).unwrap();
            assert!(sequence.bases().eq(bases.iter().copied()));
            let expected = cache.layout().held_bytes(model.len(), bank.granule()).unwrap();
            assert_eq!((sequence.memory().held, bank.stats().held), (expected, expected));
            let used = cache.layout().token_bytes().saturating_mul(model.len() as u64);
            assert_eq!(sequence.memory().used, used);
        }
        assert_holds(&sequence, &model);
        assert_eq!(sequence.bytes_copied(), Bytes::ZERO);
        let full = sequence.prepare(1);
        assert!(matches!(full, Err(Error::ContextFull { requested: 1, len: 200, n_ctx: 200 })));
    }
}

pub(crate) fn thirty_thousand_tokens_are_never_copied(open: Open<'_>) {
    const TOKENS: usize = 1 << 15;
    let device = open(40);
    let bank = granule_bank::Bank::new(device, granule_bank::BankOptions::new()).unwrap();
    let heads = bank.granule().get() as usize / 4096;
    let shape = KvShape { n_layers: 1, n_kv_heads: heads, head_dim: 2 };
    let layout = KvLayout::new(shape, KvType::F16, KvType::F16, None, 0).unwrap();
    let row = layout.row_stride(0).get() as usize;
    let tokens = TOKENS.min(30 * bank.granule().get() as usize / row);
    let cache = KvCache::new(&bank, layout, KvOptions::new()).unwrap();
    let mut sequence = cache.sequence(tokens).unwrap();
    let base = sequence.bases().next();
    let device = bank.device();
    for token in 0..tokens {
        assert_eq!(sequence.prepare(1).unwrap(), 1);
        if token % 1000 == 0 {
            let to = sequence.rows_mut(0).unwrap();
            let mut to = to;
            let to = to.rows().subslice(..4).unwrap();
            device.copy((&(token as u32).to_le_bytes()[..]).into(), to).unwrap();
        }
        sequence.commit(1).unwrap();
    }
    assert_eq!((sequence.len(), sequence.bases().next()), (tokens, base));
    assert_eq!((sequence.bytes_copied(), cache.stats().copies), (Bytes::ZERO, 0));
    assert_eq!(sequence.segments().len(), 1);
    let view = sequence.view(0, tokens).unwrap();
    for token in (0..tokens).step_by(1000) {
        let mut bytes = [0; 4];
        let from = view.segments()[0].rows.subslice(token * row..token * row + 4).unwrap();
        device.copy(from, (&mut bytes[..]).into()).unwrap();
        assert_eq!(u32::from_le_bytes(bytes) as usize, token);
    }
}

/// In steady decode the thread that decodes calls nobody, however many granules it crosses.
pub(crate) fn steady_decode_makes_no_call(open: Open<'_>) {
    for (layers_per_row, sinks) in [(1, 0), (3, 4)] {
        let bank = bank(open, 120, 0);
        let cache = cache(&bank, layers_per_row, sinks, KvOptions::new().ahead(12));
        let mut sequence = cache.sequence(300).unwrap();
        let mut model = Model::default();
        append(&mut sequence, &mut model, &[0]).unwrap();
        let (start, mapped_now) = (sequence.memory().held, cache.stats().mapped_now);
        let mut calls = 0;
        for token in 1..200 {
            // A token takes long enough for the mapper: here it takes just that.
            let needed = cache.layout().held_bytes(model.len() + 1, bank.granule()).unwrap();
            until("memory for the next token", || cache.memory().held >= needed);
            let before = calls_made_here();
            sequence.prepare(1).unwrap();
            for layer in 0..3 {
                assert_eq!(sequence.rows_mut(layer).unwrap().len(), 1);
                assert_eq!(sequence.view(layer, token + 1).unwrap().len(), token + 1);
            }
            calls += calls_made_here() - before;
            append(&mut sequence, &mut model, &[token as u32]).unwrap();
            let before = calls_made_here();
            sequence.prepare(0).unwrap();
            sequence.commit(0).unwrap();
            calls += calls_made_here() - before;
        }
        assert_eq!(calls, 0);
        let stats = cache.stats();
        assert_eq!((stats.mapped_now, stats.copies), (mapped_now, 0));
        assert!(sequence.memory().held > start.checked_add(granules(&bank, 10)).unwrap(), "many granules");
        assert!(stats.mapped_ahead > 10);
        assert_holds(&sequence, &model);
        until("a moment in which nothing is being mapped", || is_reported(&cache, [&sequence].into_iter()));
    }
}

/// Memory that a trim has taken away is not thought to be there still.
pub(crate) fn after_a_trim_memory_is_mapped_ahead_again(open: Open<'_>) {
    let bank = bank(open, 120, 0);
    let cache = cache(&bank, 3, 0, KvOptions::new().ahead(12));
    let mut sequence = cache.sequence(300).unwrap();
    let mut model = Model::default();
    append(&mut sequence, &mut model, &(0..200).collect::<Vec<_>>()).unwrap();
    sequence.truncate(20).unwrap();
    model.keep(0..20);
    // The tail is found to be covered, then it goes.
    append(&mut sequence, &mut model, &[20]).unwrap();
    sequence.trim().unwrap();
    append(&mut sequence, &mut model, &[21]).unwrap();
    let ahead = cache.layout().held_bytes(model.len() + 12, bank.granule()).unwrap();
    until("memory ahead", || sequence.memory().held >= ahead);
    assert_holds(&sequence, &model);
}

/// What fails ahead of time is nobody's error; it is done, and told, when it is needed.
pub(crate) fn what_cannot_be_mapped_ahead_is_mapped_when_needed(open: Open<'_>) {
    let bank = bank(open, 60, 0);
    let cache = cache(&bank, 3, 0, KvOptions::new().ahead(12).parked(Bytes::ZERO));
    let mut sequence = cache.sequence(100).unwrap();
    let mut model = Model::default();
    let device = bank.device().clone();
    append(&mut sequence, &mut model, &[0]).unwrap();
    until("memory for the first tokens", || cache.memory().held >= granules(&bank, 2));
    for token in 1..100 {
        if token % 8 == 0 {
            // Whatever is called next fails, on whichever thread.
            let guard = device.inject_fault(FaultPlan::nth(1));
            let done = sequence.prepare(1);
            assert!(done.is_ok() || guard.fired());
            sequence.commit(0).unwrap();
        }
        append(&mut sequence, &mut model, &[token]).unwrap();
    }
    assert_holds(&sequence, &model);
    drop(sequence);
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

/// Rows that are mapped ahead are the sequence's until somebody needs their memory; then it maps them when it comes to them.
pub(crate) fn what_is_mapped_ahead_goes_to_whoever_needs_it(open: Open<'_>) {
    let bank = bank(open, 8, 0);
    let cache = cache(&bank, 1, 0, KvOptions::new().ahead(30).parked(Bytes::ZERO));
    let mut sequence = cache.sequence(100).unwrap();
    let mut model = Model::default();
    append(&mut sequence, &mut model, &[1]).unwrap();
    until("memory ahead", || sequence.memory().held == granules(&bank, 6));
    assert_eq!((sequence.memory().spare, cache.memory().spare), (granules(&bank, 3), granules(&bank, 3)));
    let needed = cache.layout().held_bytes(1, bank.granule()).unwrap();
    let stock = bank.take(&granule_bank::Owner::new("somebody"), 5).unwrap();
    assert_eq!((sequence.memory().held, sequence.memory().spare), (needed, Bytes::ZERO));
    let ids: Vec<u32> = (2..50).collect();
    assert!(append(&mut sequence, &mut model, &ids).is_err());
    assert_holds(&sequence, &model);
    drop(stock);
    append(&mut sequence, &mut model, &ids).unwrap();
    assert_holds(&sequence, &model);
}

pub(crate) fn too_little_memory_is_an_error_and_changes_nothing(open: Open<'_>) {
    let bank = bank(open, 7, 0);
    let cache = cache(&bank, 1, 0, exact());
    let mut sequence = cache.sequence(1000).unwrap();
    let mut model = Model::default();
    append(&mut sequence, &mut model, &[1, 2]).unwrap();
    let held = bank.stats().held;
    let refused = sequence.prepare(60).unwrap_err();
    let Error::Bank(granule_bank::Error::OutOfMemory { owner, .. }) = refused else { panic!("{refused}") };
    assert_eq!(owner.name(), "kv");
    assert_eq!((bank.stats().held, sequence.len()), (held, 2));
    append(&mut sequence, &mut model, &[3; 20]).unwrap();
    let never = sequence.prepare(900).unwrap_err();
    assert!(matches!(never, Error::Bank(granule_bank::Error::TooLarge { .. })), "{never}");
    assert_holds(&sequence, &model);
}

pub(crate) fn wrong_asks_are_refused(open: Open<'_>) {
    let bank = bank(open, 40, 0);
    let cache = cache(&bank, 3, 0, exact());
    let mut sequence = cache.sequence(200).unwrap();
    append(&mut sequence, &mut Model::default(), &[1, 2, 3]).unwrap();
    assert!(matches!(sequence.truncate(4), Err(Error::PastEnd { to: 4, len: 3 })));
    assert!(matches!(sequence.remove(2..4), Err(Error::NoSuchTokens { len: 3, .. })));
    assert!(matches!(sequence.remove(4..4), Err(Error::NoSuchTokens { len: 3, .. })));
    let upside_down = std::ops::Range { start: 3, end: 1 };
    assert!(matches!(sequence.remove(upside_down.clone()), Err(Error::NoSuchTokens { len: 3, .. })));
    assert!(matches!(sequence.keep(upside_down.clone()), Err(Error::NoSuchTokens { len: 3, .. })));
    assert!(matches!(sequence.shift(upside_down.clone(), 1), Err(Error::NoSuchTokens { len: 3, .. })));
    assert!(matches!(sequence.copy(upside_down), Err(Error::NoSuchTokens { len: 3, .. })));
    assert_eq!(sequence.len(), 3);
    assert!(matches!(sequence.keep(2..4), Err(Error::NoSuchTokens { len: 3, .. })));
    assert!(matches!(sequence.shift(2..4, 1), Err(Error::NoSuchTokens { len: 3, .. })));
    assert!(matches!(sequence.shift(0..1, i32::MIN), Ok(())));
    assert!(matches!(sequence.shift(0..1, -1), Err(Error::Positions { position: 0 })));
    assert!(matches!(sequence.copy(1..4).map(|_| ()), Err(Error::NoSuchTokens { len: 3, .. })));
    assert!(matches!(sequence.view(3, 1), Err(Error::NoSuchLayer { layer: 3, n_layers: 3 })));
    assert!(sequence.rows_mut(3).is_err());
    assert_eq!(sequence.prepare(2).unwrap(), 2);
    assert!(matches!(sequence.view(0, 6), Err(Error::NotPrepared { requested: 6, prepared: 5 })));
    assert!(matches!(sequence.commit(3), Err(Error::NotPrepared { requested: 3, prepared: 2 })));
    assert!(matches!(sequence.commit(usize::MAX), Err(Error::NotPrepared { .. })));
    assert!(matches!(sequence.prepare(usize::MAX), Err(Error::ContextFull { .. })));
    let mut none = cache.sequence(0).unwrap();
    assert!(matches!(none.prepare(1), Err(Error::ContextFull { .. })));
    assert_eq!(none.prepare(0).unwrap(), 0);
    assert_eq!(none.view(0, 0).unwrap().len(), 0);
}
