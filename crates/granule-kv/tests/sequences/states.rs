//! State files, on every kind of device: what is restored is what was saved, with work in flight and where calls fail.

use std::fs;

use granule_device::{Bytes, FaultPlan};
use granule_kv::state::{SaveSequence, StateFile, save};
use granule_kv::{Identity, KvLayout, KvShape, KvType, Sequence};

use crate::support::{Model, Open, append, assert_holds, bank, cache, exact, is_host, parked, work};

/// A sequence that was cut, shifted and gone on with; and the names of its tokens.
fn edited(sequence: &mut Sequence, model: &mut Model) -> Vec<u32> {
    append(sequence, model, &(0..50).collect::<Vec<_>>()).unwrap();
    sequence.remove(1..3).unwrap();
    model.remove(1..3);
    sequence.remove(20..40).unwrap();
    model.remove(20..40);
    sequence.shift(5..10, 3).unwrap();
    model.shift(5..10, 3);
    append(sequence, model, &(100..110).collect::<Vec<_>>()).unwrap();
    model.0.iter().map(|token| token.id).collect()
}

pub(crate) fn what_was_saved_is_restored_in_any_layout(open: Open<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["state", "again"].map(|name| folder.path().join(name));
    let bank = bank(open, 120, 0);
    for sinks in [0, 4] {
        let caches = [1, 2, 3].map(|layers_per_row| cache(&bank, layers_per_row, sinks, exact()));
        let (mut saved, mut model) = (caches[1].sequence(100).unwrap(), Model::default());
        let tokens = edited(&mut saved, &mut model);
        let one = SaveSequence { sequence: &saved, further: &[], heads: &[], tokens: &tokens, extra: b"" };
        save(&paths[0], &Identity::default(), &[one]).unwrap();
        let file = StateFile::open(&paths[0]).unwrap();
        for other in &caches {
            let mut model = model.clone();
            let mut restored = file.restore(0, other, 60, &Identity::default()).unwrap();
            assert_holds(&restored, &model);
            let one =
                SaveSequence { sequence: &restored, further: &[], heads: &[], tokens: &tokens, extra: b"" };
            save(&paths[1], &Identity::default(), &[one]).unwrap();
            assert!(fs::read(&paths[0]).unwrap() == fs::read(&paths[1]).unwrap());
            append(&mut restored, &mut model, &[1, 2, 3]).unwrap();
            assert_holds(&restored, &model);
        }
        assert_holds(&saved, &model);
    }
    assert_eq!(bank.stats().held, Bytes::ZERO);
}

/// What is saved or exported may still be being written: that is waited for.
pub(crate) fn saving_waits_for_work(open: Open<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let bank = bank(open, 60, 0);
    let layout = KvShape { n_layers: 3, n_kv_heads: 2, head_dim: 64 };
    let layout = KvLayout::new(layout, KvType::F16, KvType::Q8_0, None, 0).unwrap();
    let cache = granule_kv::KvCache::new(&bank, layout, exact()).unwrap();
    let stream = bank.device().stream().unwrap();
    let mut sequence = cache.sequence(100).unwrap();
    sequence.prepare(20).unwrap();
    let (k, v) = (vec![1; 20 * 2 * 64 * 2], vec![2; 20 * 2 * 64 / 32 * 34]);
    (0..3).for_each(|layer| sequence.import(layer, &k, &v).unwrap());
    sequence.commit(20).unwrap();
    let event = work(&stream, 20);
    sequence.busy_until(&event);
    assert!(sequence.export(0, 9..21).is_err());
    assert_eq!(sequence.export(0, 0..20).unwrap(), (k, v));
    assert!(event.is_done());
    let event = work(&stream, 20);
    sequence.busy_until(&event);
    let tokens: Vec<u32> = (0..20).collect();
    let one = SaveSequence { sequence: &sequence, further: &[], heads: &[], tokens: &tokens, extra: b"" };
    save(&path, &Identity::default(), &[one]).unwrap();
    assert!(event.is_done());
}

/// Into what a sequence left that device work may still use; and with the k-th call failing.
pub(crate) fn a_restore_waits_for_memory_and_leaves_nothing_where_it_fails(open: Open<'_>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let bank = bank(open, 60, 0);
    let cache = cache(&bank, 2, 4, parked(&bank, 60));
    let stream = bank.device().stream().unwrap();
    let (mut saved, mut model) = (cache.sequence(100).unwrap(), Model::default());
    let tokens = edited(&mut saved, &mut model);
    let one = SaveSequence { sequence: &saved, further: &[], heads: &[], tokens: &tokens, extra: b"" };
    save(&path, &Identity::default(), &[one]).unwrap();
    let file = StateFile::open(&path).unwrap();
    saved.busy_until(&work(&stream, 5));
    // Its middle is given back behind the work, and the rest is parked.
    saved.remove(5..20).unwrap();
    drop(saved);
    stream.synchronize().unwrap();
    let restored = file.restore(0, &cache, 100, &Identity::default()).unwrap();
    assert_holds(&restored, &model);
    drop(restored);
    cache.trim();
    bank.drain();
    assert_eq!(bank.stats().held, Bytes::ZERO);
    let stride = if is_host(bank.device()) { 1 } else { 13 };
    for k in (1..).step_by(stride) {
        let guard = bank.device().inject_fault(FaultPlan::nth(k));
        let restored = file.restore(0, &cache, 100, &Identity::default());
        let fired = guard.fired();
        drop(guard);
        match restored {
            Ok(restored) => assert_holds(&restored, &model),
            Err(error) => assert!(fired, "{error}"),
        }
        cache.trim();
        assert_eq!(bank.stats().held, Bytes::ZERO);
        if !fired {
            break;
        }
    }
}
