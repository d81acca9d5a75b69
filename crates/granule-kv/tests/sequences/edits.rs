//! Tokens that go, stay or stand elsewhere.

use granule_device::Bytes;
use granule_kv::KvOptions;

use crate::support::{
    Model, Open, append, assert_holds, assert_reported, bank, cache, exact, granules, work,
};

pub(crate) fn clear_keeps_memory_and_trim_gives_it_back(open: Open<'_>) {
    let bank = bank(open, 60, 0);
    let cache = cache(&bank, 1, 0, exact());
    let mut sequence = cache.sequence(200).unwrap();
    let mut model = Model::default();
    append(&mut sequence, &mut model, &(0..100).collect::<Vec<_>>()).unwrap();
    let held = bank.stats().held;
    sequence.clear();
    let calls = bank.device().calls_made();
    assert_eq!(sequence.prepare(100).unwrap(), 100);
    sequence.commit(100).unwrap();
    assert_eq!((bank.stats().held, bank.device().calls_made()), (held, calls));
    sequence.truncate(0).unwrap();
    model.keep(0..0);
    append(&mut sequence, &mut model, &[7, 8, 9]).unwrap();
    assert_eq!(bank.stats().held, held);
    let freed = sequence.trim().unwrap();
    assert_eq!(bank.stats().held, granules(&bank, 3));
    assert_eq!(freed, held.checked_sub(granules(&bank, 3)).unwrap());
    assert_holds(&sequence, &model);
    sequence.clear();
    sequence.trim().unwrap();
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

/// What `clear` and `truncate` keep for what comes next goes to whoever needs it before that.
pub(crate) fn what_is_kept_goes_to_whoever_needs_it(open: Open<'_>) {
    let bank = bank(open, 24, 0);
    let cache = cache(&bank, 1, 4, exact());
    let stream = bank.device().stream().unwrap();
    let owner = granule_bank::Owner::new("somebody");
    let mut sequence = cache.sequence(200).unwrap();
    let mut model = Model::default();
    for left in [0, 5] {
        append(&mut sequence, &mut model, &(0..100).collect::<Vec<_>>()).unwrap();
        let held = bank.stats().held;
        // Also what device work may still use: that is waited for.
        sequence.busy_until(&work(&stream, 2));
        sequence.truncate(left).unwrap();
        model.keep(0..left);
        let needed = cache.layout().held_bytes(left, bank.granule()).unwrap();
        assert_eq!(sequence.memory().held, held);
        assert_eq!(sequence.memory().spare, held.checked_sub(needed).unwrap());
        let rest = bank.stats().budget.get() - needed.get();
        let stock = bank.take(&owner, usize::try_from(rest / bank.granule().get()).unwrap()).unwrap();
        assert_eq!((sequence.memory().held, sequence.memory().spare), (needed, Bytes::ZERO));
        assert_holds(&sequence, &model);
        drop(stock);
        append(&mut sequence, &mut model, &[7; 90]).unwrap();
        assert_holds(&sequence, &model);
        // A few tokens take back what they lie in, and no more.
        sequence.clear();
        model.keep(0..0);
        append(&mut sequence, &mut model, &[8]).unwrap();
        let needed = cache.layout().held_bytes(1, bank.granule()).unwrap();
        assert_eq!(sequence.memory().held, sequence.memory().spare.checked_add(needed).unwrap());
        assert_reported(&cache, [&sequence].into_iter());
        sequence.clear();
        model.keep(0..0);
    }
}

pub(crate) fn the_middle_goes_back(open: Open<'_>) {
    let bank = bank(open, 60, 0);
    let cache = cache(&bank, 3, 4, exact());
    let mut sequence = cache.sequence(100).unwrap();
    let mut model = Model::default();
    append(&mut sequence, &mut model, &(0..80).collect::<Vec<_>>()).unwrap();
    let (held, bases) = (bank.stats().held, sequence.bases().collect::<Vec<_>>());
    sequence.remove(10..70).unwrap();
    model.remove(10..70);
    assert_holds(&sequence, &model);
    let back = held.checked_sub(bank.stats().held).unwrap();
    assert!(back >= granules(&bank, 6), "{back} came back");
    let turns: Vec<_> = sequence.segments().iter().map(|segment| segment.turn).collect();
    assert_eq!((turns, sequence.position()), (vec![60, 0], 80));
    append(&mut sequence, &mut model, &(80..150).collect::<Vec<_>>()).unwrap();
    assert_holds(&sequence, &model);
    sequence.remove(0..5).unwrap();
    model.remove(0..5);
    sequence.truncate(20).unwrap();
    model.remove(20..model.len());
    assert_holds(&sequence, &model);
    append(&mut sequence, &mut model, &[1, 2, 3]).unwrap();
    sequence.truncate(4).unwrap();
    model.remove(4..model.len());
    assert_eq!(sequence.segments()[0].turn, 0, "what is last stands where it was stored");
    append(&mut sequence, &mut model, &[4]).unwrap();
    assert_holds(&sequence, &model);
    assert_eq!(sequence.bases().collect::<Vec<_>>(), bases);
    assert_eq!(sequence.bytes_copied(), Bytes::ZERO);
    assert_reported(&cache, [&sequence].into_iter());
}

/// A window over a text that does not end: two segments and a third while the addresses begin anew, and no more memory than
/// the window needs.
pub(crate) fn a_window_slides_for_ever(open: Open<'_>) {
    for (layers_per_row, ahead) in [(1, 0), (3, 0), (3, 10)] {
        let bank = bank(open, 60, 4);
        let cache = cache(&bank, layers_per_row, 4, KvOptions::new().ahead(ahead).parked(Bytes::ZERO));
        let mut sequence = cache.sequence(40).unwrap();
        let mut model = Model::default();
        let mut most = Bytes::ZERO;
        for token in 0..400 {
            if model.len() == 40 {
                sequence.slide(4, 35).unwrap();
                model.remove(4..5);
            }
            append(&mut sequence, &mut model, &[token]).unwrap();
            assert!(sequence.segments().len() <= 3, "{:?}", sequence.segments());
            most = most.max(bank.stats().held);
            if token % 20 == 0 {
                assert_holds(&sequence, &model);
            }
        }
        assert_holds(&sequence, &model);
        let whole = cache.layout().held_bytes(40 + ahead, bank.granule()).unwrap();
        let groups = cache.layout().groups() as u64;
        assert!(most <= whole.checked_add(granules(&bank, 4 * groups)).unwrap(), "{most} for {whole}");
        assert_eq!(sequence.bytes_copied(), Bytes::ZERO);
    }
}

pub(crate) fn shifted_tokens_stand_elsewhere(open: Open<'_>) {
    let bank = bank(open, 60, 0);
    let cache = cache(&bank, 3, 0, exact());
    let mut sequence = cache.sequence(100).unwrap();
    let mut model = Model::default();
    append(&mut sequence, &mut model, &(0..30).collect::<Vec<_>>()).unwrap();
    for (tokens, delta) in [(5..10, 7), (20..30, -3), (0..30, 100), (7..25, 2), (7..25, -2)] {
        sequence.shift(tokens.clone(), delta).unwrap();
        model.shift(tokens, delta);
        assert_holds(&sequence, &model);
        append(&mut sequence, &mut model, &[1000]).unwrap();
        assert_holds(&sequence, &model);
    }
    let mut fork = sequence.fork().unwrap();
    let mut other = model.clone();
    append(&mut fork, &mut other, &[7]).unwrap();
    assert_holds(&fork, &other);
    assert_holds(&sequence, &model);
}

/// Where the free rows are cut up, a step gets fewer than it asked for, and none is lost.
pub(crate) fn cut_up_rows_are_used_in_parts(open: Open<'_>) {
    let bank = bank(open, 60, 0);
    let cache = cache(&bank, 3, 0, exact());
    let mut sequence = cache.sequence(32).unwrap();
    let mut model = Model::default();
    append(&mut sequence, &mut model, &(0..32).collect::<Vec<_>>()).unwrap();
    let mut next = 32;
    for round in 0..40 {
        // Every third token stays.
        for index in (0..10).rev() {
            sequence.remove(3 * index..3 * index + 2).unwrap();
            model.remove(3 * index..3 * index + 2);
        }
        let free = 32 - model.len() as u32;
        let asked = sequence.prepare(free as usize).unwrap();
        assert!(asked >= 1);
        append(&mut sequence, &mut model, &(next..next + free).collect::<Vec<_>>()).unwrap();
        next += free;
        assert_holds(&sequence, &model);
        if round % 8 == 7 {
            assert_reported(&cache, [&sequence].into_iter());
        }
    }
}
