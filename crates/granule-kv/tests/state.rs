//! State files: what is restored is what was saved, byte for byte; every flipped bit and every cut is refused; and whatever
//! fails leaves everything as it was.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use granule_device::{Bytes, FaultPlan, LiveCounts};
use granule_kv::state::{Part, SaveSequence, StateError, StateFile, save};
use granule_kv::{Identity, KvCache, KvLayout, KvShape, KvType, Sequence};
use support::{append, bank, cache_of, holds, layout, sequence};

const N_CTX: usize = 300;

fn identity() -> Identity {
    Identity { model: b"a model".to_vec(), rope: b"10000".to_vec(), transform: vec![1, 2] }
}

fn tokens(n: u32) -> Vec<u32> {
    (0..n).map(|i| i * i % 97).collect()
}

fn one<'a>(sequence: &'a Sequence, tokens: &'a [u32]) -> [SaveSequence<'a>; 1] {
    [SaveSequence { sequence, further: &[], heads: &[], tokens, extra: b"" }]
}

/// A file of one layer and few bytes.
fn small(path: &Path) -> KvCache {
    let bank = bank(100);
    let shape = KvShape { n_layers: 1, n_kv_heads: 1, head_dim: 2 };
    let cache = cache_of(&bank, KvLayout::new(shape, KvType::F16, KvType::F32, None, 0).unwrap());
    let sequence = sequence(&cache, 8, &[5, 6, 7]).unwrap();
    let both =
        SaveSequence { sequence: &sequence, further: &[], heads: &[], tokens: &[5, 6, 7], extra: b"extra" };
    save(path, &identity(), &[both]).unwrap();
    cache
}

/// The name of the refusal.
fn refusal(path: &Path) -> &'static str {
    match StateFile::open(path) {
        Ok(_) => "none",
        Err(StateError::NotAStateFile { .. }) => "no state file",
        Err(StateError::Version { .. }) => "version",
        Err(StateError::Cut { .. }) => "cut",
        Err(StateError::Damaged { part: Part::Header, .. }) => "header",
        Err(StateError::Damaged { part: Part::Contents, .. }) => "contents",
        Err(StateError::Damaged { part: Part::Chunk(_), .. }) => "chunk",
        Err(StateError::Damaged { part: Part::Table, .. }) => "table",
        Err(StateError::Damaged { part: Part::Tail, .. }) => "tail",
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn any_types_and_layers_per_row_restore_to_any_layers_per_row() {
    let folder = tempfile::tempdir().unwrap();
    for (&k, &v) in KvType::ALL.iter().flat_map(|k| KvType::ALL.iter().map(move |v| (k, v))) {
        let bank = bank(400);
        let tokens = tokens(150);
        let mut files = Vec::new();
        for layers_per_row in 1..=3 {
            let cache = cache_of(&bank, layout(k, v, layers_per_row));
            let saved = sequence(&cache, N_CTX, &tokens).unwrap();
            let path = folder.path().join(format!("{k}-{v}-{layers_per_row}"));
            let len = save(&path, &identity(), &one(&saved, &tokens)).unwrap();
            drop(saved);
            let bytes = fs::read(&path).unwrap();
            assert_eq!(len, Bytes::from_usize(bytes.len()));
            let file = StateFile::open(&path).unwrap();
            assert_eq!(
                (file.types(), file.tokens(0).unwrap(), file.identity()),
                ((k, v), &tokens[..], &identity())
            );
            for other in 1..=3 {
                let cache = cache_of(&bank, layout(k, v, other));
                let mut restored = file.restore(0, &cache, N_CTX - other, &identity()).unwrap();
                assert!(holds(&restored, &tokens));
                let again = folder.path().join("again");
                save(&again, &identity(), &one(&restored, &tokens)).unwrap();
                assert!(fs::read(&again).unwrap() == bytes);
                // And it goes on.
                append(&mut restored, &mut tokens.clone(), &[1, 2, 3]).unwrap();
            }
            files.push(bytes);
        }
        assert!(files[0] == files[1] && files[1] == files[2]);
        assert_eq!(bank.stats().held, Bytes::ZERO);
    }
}

/// Two tokens of four that are sinks gone, a window that slid, a shift; then more tokens behind.
fn edited(cache: &KvCache) -> Sequence {
    let mut all = tokens(90);
    let mut one = sequence(cache, N_CTX, &all).unwrap();
    one.remove(1..3).unwrap();
    one.remove(40..60).unwrap();
    one.shift(0..10, -2).unwrap();
    all.truncate(one.len());
    append(&mut one, &mut all, &tokens(30)).unwrap();
    one
}

#[test]
fn segments_turns_and_sinks_are_restored_wherever_their_rows_come_to_lie() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["one", "two"].map(|name| folder.path().join(name));
    let bank = bank(400);
    for layout_of in [support::layout_with_sinks, |rows| layout(KvType::F16, KvType::Q4_0, rows)] {
        for layers_per_row in 1..=3 {
            let cache = cache_of(&bank, layout_of(layers_per_row));
            let whole = sequence(&cache, N_CTX, &tokens(50)).unwrap();
            let mut without_sinks = sequence(&cache, N_CTX, &tokens(50)).unwrap();
            without_sinks.keep(20..45).unwrap();
            let mut some = sequence(&cache, N_CTX, &tokens(3)).unwrap();
            some.keep(1..3).unwrap();
            for saved in [edited(&cache), whole, without_sinks, some] {
                // Its tokens' names are the engine's, here any.
                let names = tokens(u32::try_from(saved.len()).unwrap());
                save(&paths[0], &identity(), &one(&saved, &names)).unwrap();
                for other in 1..=3 {
                    let cache = cache_of(&bank, layout_of(other));
                    let file = StateFile::open(&paths[0]).unwrap();
                    let mut restored = file.restore(0, &cache, saved.len() + 3, &identity()).unwrap();
                    assert!(support::seen(&restored) == support::seen(&saved));
                    assert_eq!(restored.position(), saved.position());
                    save(&paths[1], &identity(), &one(&restored, &names)).unwrap();
                    assert!(fs::read(&paths[0]).unwrap() == fs::read(&paths[1]).unwrap());
                    append(&mut restored, &mut names.clone(), &[1, 2, 3]).unwrap();
                }
            }
        }
    }
    let sinks = cache_of(&bank, support::layout_with_sinks(1));
    let plain = KvLayout::new(support::SHAPE, KvType::Q4_0, KvType::Q8_0, None, 0).unwrap();
    save(&paths[0], &identity(), &one(&sinks.sequence(9).unwrap(), &[])).unwrap();
    let file = StateFile::open(&paths[0]).unwrap();
    assert!(matches!(file.check(&identity(), &plain), Err(StateError::WrongTransform)));
    file.restore(0, &sinks, 9, &identity()).unwrap();
}

#[test]
fn several_sequences_each_with_what_belongs_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let bank = bank(1000);
    let caches =
        [1, 3].map(|layers_per_row| cache_of(&bank, layout(KvType::Q8_0, KvType::Q4_0, layers_per_row)));
    // More than one chunk, nothing at all, and something that begins inside a chunk.
    let lists = [tokens(290), Vec::new(), tokens(33)];
    let sequences =
        [0, 1, 0].iter().zip(&lists).map(|(&cache, list)| sequence(&caches[cache], N_CTX, list).unwrap());
    let sequences: Vec<_> = sequences.collect();
    let extras: [&[u8]; 3] = [b"first", b"", &[0; 1000]];
    let saved = sequences.iter().zip(&lists).zip(extras);
    let saved: Vec<_> = saved
        .map(|((sequence, tokens), extra)| SaveSequence { sequence, further: &[], heads: &[], tokens, extra })
        .collect();
    save(&path, &identity(), &saved).unwrap();
    let file = StateFile::open(&path).unwrap();
    assert_eq!(file.sequences(), 3);
    for which in [2, 0, 1] {
        assert_eq!(
            (file.tokens(which).unwrap(), file.extra(which).unwrap()),
            (&lists[which][..], extras[which])
        );
        assert!(holds(&file.restore(which, &caches[1], N_CTX, &identity()).unwrap(), &lists[which]));
    }
    assert!(matches!(file.tokens(3), Err(StateError::NoSuchSequence { which: 3, sequences: 3 })));
    assert!(file.restore(3, &caches[0], N_CTX, &identity()).is_err());

    let fewer = [SaveSequence { tokens: &lists[0][..289], ..saved[0] }];
    assert!(matches!(save(&path, &identity(), &fewer), Err(StateError::Tokens { tokens: 289, len: 290 })));
    assert!(matches!(save(&path, &identity(), &[]), Err(StateError::Count)));
    let other = cache_of(&bank, layout(KvType::Q8_0, KvType::F16, 1)).sequence(N_CTX).unwrap();
    let mixed =
        [saved[1], SaveSequence { sequence: &other, further: &[], heads: &[], tokens: &[], extra: b"" }];
    assert!(matches!(save(&path, &identity(), &mixed), Err(StateError::Mixed)));
    // None of those touched the file.
    assert_eq!(StateFile::open(&path).unwrap().sequences(), 3);
}

#[test]
fn every_flipped_bit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    small(&path);
    let good = fs::read(&path).unwrap();
    let mut names = Vec::new();
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, bad).unwrap();
        names.push(refusal(&path));
    }
    assert_eq!(names.iter().filter(|&&name| name == "no state file").count(), 64);
    assert_eq!(names.iter().filter(|&&name| name == "version").count(), 32);
    assert_eq!(names.iter().filter(|&&name| name == "header").count(), (48 - 12) * 8);
    assert_eq!(names.iter().filter(|&&name| name == "chunk").count(), 3 * (4 + 8) * 8);
    assert_eq!(names.iter().filter(|&&name| name == "table").count(), 32);
    let contents = good.len() - 48 - 36 - 4;
    assert_eq!(names.iter().filter(|&&name| name == "contents").count(), contents * 8);
    fs::write(&path, good).unwrap();
    assert_eq!(refusal(&path), "none");
}

#[test]
fn every_cut_and_every_tail_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    small(&path);
    let good = fs::read(&path).unwrap();
    for len in 0..good.len() {
        fs::write(&path, &good[..len]).unwrap();
        assert_eq!(refusal(&path), if len < 8 { "no state file" } else { "cut" });
    }
    fs::write(&path, [&good[..], &[0]].concat()).unwrap();
    assert_eq!(refusal(&path), "tail");
    fs::write(&path, [&good[..], &good[..]].concat()).unwrap();
    assert_eq!(refusal(&path), "tail");
}

#[test]
fn chunks_that_changed_places_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let bank = bank(1000);
    let cache = cache_of(&bank, layout(KvType::F32, KvType::F32, 3));
    let saved = sequence(&cache, N_CTX, &tokens(290)).unwrap();
    save(&path, &identity(), &one(&saved, &tokens(290))).unwrap();
    let good = fs::read(&path).unwrap();
    const CHUNK: usize = 64 << 10;
    let data_at = good.len() - good.len() / CHUNK * 4 - 290 * 3 * 2 * 64 * 4;
    for (a, b) in [(0, 1), (1, 3)] {
        let mut bad = good.clone();
        let (a, b) = (data_at + a * CHUNK, data_at + b * CHUNK);
        bad[a..a + CHUNK].copy_from_slice(&good[b..b + CHUNK]);
        bad[b..b + CHUNK].copy_from_slice(&good[a..a + CHUNK]);
        fs::write(&path, &bad).unwrap();
        assert_eq!(refusal(&path), "chunk");
        // Also where their sums go with them.
        let sums = good.len() - good.len() / CHUNK * 4;
        let (a, b) = (sums + (a - data_at) / CHUNK * 4, sums + (b - data_at) / CHUNK * 4);
        bad[a..a + 4].copy_from_slice(&good[b..b + 4]);
        bad[b..b + 4].copy_from_slice(&good[a..a + 4]);
        fs::write(&path, &bad).unwrap();
        assert_eq!(refusal(&path), "table");
    }
}

/// A file with these contents and rows, and every sum right.
fn forge(version: u32, contents: &[u8], data: &[u8]) -> Vec<u8> {
    let sums: Vec<u8> =
        data.chunks(64 << 10).flat_map(|chunk| crc32fast::hash(chunk).to_le_bytes()).collect();
    let len = (48 + contents.len() + data.len() + sums.len()) as u64;
    let mut file = b"\x89GRANKV\n".to_vec();
    file.extend(version.to_le_bytes());
    file.extend(crc32fast::hash(contents).to_le_bytes());
    [len, contents.len() as u64, data.len() as u64]
        .iter()
        .for_each(|number| file.extend(number.to_le_bytes()));
    file.extend(crc32fast::hash(&sums).to_le_bytes());
    let own = crc32fast::hash(&file);
    file.extend(own.to_le_bytes());
    [file, contents.to_vec(), data.to_vec(), sums].concat()
}

/// Nobody would see them, and they would be gone when the sequence is saved again: a file has one form.
#[test]
fn sinks_without_a_token_that_are_not_zero_are_refused_though_the_sums_are_right() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let bank = bank(100);
    let cache = cache_of(&bank, support::layout_with_sinks(1));
    let mut some = sequence(&cache, N_CTX, &tokens(3)).unwrap();
    some.keep(1..3).unwrap();
    save(&path, &identity(), &one(&some, &tokens(2))).unwrap();
    let good = fs::read(&path).unwrap();
    let [contents, data] =
        [24, 32].map(|at| u64::from_le_bytes(good[at..at + 8].try_into().unwrap()) as usize);
    let (contents, data) = (&good[48..48 + contents], &good[48 + contents..48 + contents + data]);
    // The last layer's values of the sinks end the rows.
    let each = support::SHAPE.n_kv_heads * support::SHAPE.head_dim * 2;
    let sinks = cache.layout().sinks();
    for sink in 0..sinks {
        let mut data = data.to_vec();
        let at = data.len() - (sinks - sink) * each;
        data[at] ^= 1;
        fs::write(&path, forge(1, contents, &data)).unwrap();
        let restored = StateFile::open(&path).unwrap().restore(0, &cache, 2, &identity());
        let has_token = (1..3).contains(&sink);
        assert_eq!(restored.is_ok(), has_token, "sink {sink}");
        assert!(has_token || matches!(restored, Err(StateError::Damaged { .. })), "sink {sink}");
    }
}

#[test]
fn numbers_that_cannot_be_are_refused_though_the_sums_are_right() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    small(&path);
    let good = fs::read(&path).unwrap();
    let (contents, data) = (&good[48..good.len() - 40], &good[good.len() - 40..good.len() - 4]);
    let try_one = |version, contents: &[u8], data: &[u8]| {
        fs::write(&path, forge(version, contents, data)).unwrap();
        refusal(&path)
    };
    assert_eq!(try_one(1, contents, data), "none");
    assert_eq!(try_one(2, contents, data), "version");
    assert_eq!(try_one(1, contents, &data[1..]), "contents");
    assert_eq!(try_one(1, contents, &[data, data].concat()), "contents");
    assert_eq!(try_one(1, &[contents, &[0]].concat(), data), "contents");
    assert_eq!(try_one(1, &[], data), "contents");
    // Every number of the contents, as small and as large as it can be.
    for at in 0..contents.len() - 3 {
        for number in [0, 1, u32::MAX, u32::MAX / 4 + 1, 1 << 31] {
            let mut bad = contents.to_vec();
            bad[at..at + 4].copy_from_slice(&u32::to_le_bytes(number));
            let refused = try_one(1, &bad, data);
            // What it says may be another token, or another model; never more than there is.
            assert!(refused == "contents" || refused == "none", "{number} at {at}: {refused}");
        }
    }
    // Lengths in the header that only fit together modulo 2^64.
    for (contents_len, data_len) in
        [(u64::MAX - 47, 0), (0, u64::MAX - 47), (1 << 63, 1 << 63), (u64::MAX, u64::MAX)]
    {
        let mut bad = good.clone();
        bad[24..32].copy_from_slice(&u64::to_le_bytes(contents_len));
        bad[32..40].copy_from_slice(&u64::to_le_bytes(data_len));
        let own = crc32fast::hash(&bad[..44]).to_le_bytes();
        bad[44..48].copy_from_slice(&own);
        fs::write(&path, bad).unwrap();
        assert_eq!(refusal(&path), "header");
    }
}

#[test]
fn a_state_of_something_else_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let bank = bank(100);
    let cache = cache_of(&bank, layout(KvType::Q8_0, KvType::F16, 3));
    let saved = sequence(&cache, N_CTX, &tokens(9)).unwrap();
    save(&path, &identity(), &one(&saved, &tokens(9))).unwrap();
    drop(saved);
    let file = StateFile::open(&path).unwrap();
    let restore =
        |cache: &KvCache, n_ctx, identity: &Identity| file.restore(0, cache, n_ctx, identity).unwrap_err();
    let other = Identity { model: b"a  model".to_vec(), ..identity() };
    assert!(matches!(restore(&cache, N_CTX, &other), StateError::WrongModel));
    let other = Identity { rope: b"".to_vec(), ..identity() };
    assert!(matches!(restore(&cache, N_CTX, &other), StateError::WrongRope));
    let other = Identity { transform: vec![], ..identity() };
    assert!(matches!(restore(&cache, N_CTX, &other), StateError::WrongTransform));
    let types = cache_of(&bank, layout(KvType::F16, KvType::F16, 3));
    assert!(matches!(restore(&types, N_CTX, &identity()), StateError::WrongTypes { .. }));
    let shape = KvShape { n_layers: 4, ..support::SHAPE };
    let shape = cache_of(&bank, KvLayout::new(shape, KvType::Q8_0, KvType::F16, None, 0).unwrap());
    assert!(matches!(restore(&shape, N_CTX, &identity()), StateError::WrongShape { .. }));
    assert!(matches!(restore(&cache, 8, &identity()), StateError::TooLong { tokens: 9, n_ctx: 8 }));
    assert_eq!(bank.stats().held, Bytes::ZERO);
    file.restore(0, &cache, 9, &identity()).unwrap();
}

#[test]
fn what_is_no_state_file_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let bank = bank(100);
    let cache = cache_of(&bank, layout(KvType::Q8_0, KvType::F16, 3));
    let saved = sequence(&cache, N_CTX, &tokens(9)).unwrap();
    let try_one = |path: &Path| save(path, &identity(), &one(&saved, &tokens(9)));
    let refused = |path: &Path| matches!(try_one(path), Err(StateError::NotAStateFile { .. }));
    fs::write(&path, "a model of 700 GB").unwrap();
    assert!(refused(&path) && refused(folder.path()) && refused(Path::new("/dev/null")));
    assert_eq!(fs::read(&path).unwrap(), b"a model of 700 GB");
    assert!(matches!(StateFile::open(folder.path()), Err(StateError::Io { .. })));
    assert!(matches!(StateFile::open(folder.path().join("none")), Err(StateError::Io { .. })));
    assert!(matches!(try_one(&folder.path().join("none/state")), Err(StateError::Io { .. })));
    // An empty one is, keeping its permissions; a link stays one; what a program that was ended has left is no hindrance.
    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let part = folder.path().join("state.part");
    fs::write(&part, "somebody's notes").unwrap();
    let Err(StateError::NotAStateFile { path: named }) = try_one(&path) else {
        panic!("it was written over")
    };
    assert_eq!((fs::read(&part).unwrap(), named), (b"somebody's notes".to_vec(), part.clone()));
    fs::remove_file(&part).unwrap();
    std::os::unix::fs::symlink(&path, &part).unwrap();
    assert!(matches!(try_one(&path), Err(StateError::Io { .. })));
    fs::remove_file(&part).unwrap();
    fs::write(&part, [[0; 48].to_vec(), [1; 100_000].to_vec()].concat()).unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    try_one(&link).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(refusal(&path), "none");
    // Somebody else is at it.
    let part = fs::File::create(folder.path().join("state.part")).unwrap();
    part.lock().unwrap();
    assert!(matches!(try_one(&path), Err(StateError::Busy { .. })));
    drop(part);
    try_one(&path).unwrap();
    let mut left: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["link", "state"]);
    // What is new is for its owner's eyes.
    try_one(&folder.path().join("new")).unwrap();
    assert_eq!(fs::metadata(folder.path().join("new")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn restoring_without_memory_or_with_a_fault_at_any_call_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let tokens = tokens(150);
    {
        let bank = bank(400);
        let cache = cache_of(&bank, layout(KvType::F32, KvType::F16, 2));
        let saved = sequence(&cache, N_CTX, &tokens).unwrap();
        save(&path, &identity(), &one(&saved, &tokens)).unwrap();
    }
    let file = StateFile::open(&path).unwrap();
    let few = bank(20);
    let cache = cache_of(&few, layout(KvType::F32, KvType::F16, 1));
    assert!(matches!(file.restore(0, &cache, N_CTX, &identity()), Err(StateError::Kv(_))));
    assert_eq!((few.stats().held, few.device().live().granules), (Bytes::ZERO, 0));

    let bank = bank(400);
    let cache = cache_of(&bank, layout(KvType::F32, KvType::F16, 3));
    for nth in 1.. {
        let fault = bank.device().inject_fault(FaultPlan::nth(nth));
        let restored = file.restore(0, &cache, N_CTX, &identity());
        drop(fault);
        if let Ok(restored) = restored {
            assert!(nth > 1 && holds(&restored, &tokens));
            break;
        }
        assert_eq!((bank.stats().held, bank.device().live().granules), (Bytes::ZERO, 0));
    }
    drop(cache);
    let device = bank.device().clone();
    drop(bank);
    assert_eq!(device.live(), LiveCounts::default());
}

#[test]
fn a_file_that_changes_after_it_was_opened_is_refused_when_it_is_restored() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let bank = bank(400);
    let cache = cache_of(&bank, layout(KvType::F32, KvType::F32, 3));
    let tokens = tokens(200);
    let saved = sequence(&cache, N_CTX, &tokens).unwrap();
    save(&path, &identity(), &one(&saved, &tokens)).unwrap();
    let file = StateFile::open(&path).unwrap();
    // Replaced: the old one is still there for who has it open.
    save(&path, &identity(), &one(&saved, &tokens)).unwrap();
    assert!(holds(&file.restore(0, &cache, N_CTX, &identity()).unwrap(), &tokens));
    // Written into, which no program of ours does.
    let file = StateFile::open(&path).unwrap();
    let held = bank.stats().held;
    let good = fs::read(&path).unwrap();
    let mut bad = good.clone();
    let last = bad.len() - 100;
    bad[last] ^= 1;
    fs::write(&path, &bad).unwrap();
    let damaged = file.restore(0, &cache, N_CTX, &identity());
    assert!(matches!(damaged, Err(StateError::Damaged { part: Part::Chunk(_), .. })));
    fs::write(&path, &good).unwrap();
    let half = good.len() as u64 / 2;
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(half).unwrap();
    let cut = file.restore(0, &cache, N_CTX, &identity());
    assert!(matches!(cut, Err(StateError::Cut { found, .. }) if found == half));
    assert_eq!(bank.stats().held, held);
}
