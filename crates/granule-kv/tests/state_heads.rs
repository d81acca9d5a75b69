//! State files of layers whose key-value heads are in several caches: the same bytes however the heads lay when they were saved, and
//! every part gets its own heads of them.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![expect(clippy::single_range_in_vec_init, reason = "lists of heads, some with one part")]

mod support;

use std::fs;
use std::ops::Range;

use granule_bank::Bank;
use granule_kv::state::{SaveSequence, StateError, StateFile, save};
use granule_kv::{Identity, KvCache, KvLayout, KvShape, KvType, Sequence};
use support::{append, bank, cache_of, planes, sequence};

const SHAPE: KvShape = KvShape { n_layers: 3, n_kv_heads: 3, head_dim: 32 };
const N_CTX: usize = 200;

/// Of each run of layers how many they are and which heads each of its parts has.
type Way = Vec<(usize, Vec<Range<usize>>)>;

fn ways() -> Vec<Way> {
    vec![
        vec![(3, vec![0..1, 1..3])],
        vec![(3, vec![0..1, 1..2, 2..3])],
        vec![(1, vec![0..3]), (2, vec![0..2, 2..3])],
        vec![(2, vec![0..1, 0..1, 1..2, 2..3]), (1, vec![0..3, 0..3])],
        vec![(1, vec![0..2, 1..3]), (1, vec![0..3]), (1, vec![0..1, 1..3])],
    ]
}

fn part_of(bank: &Bank, whole: &KvLayout, n_layers: usize, heads: usize, layers_per_row: usize) -> KvCache {
    let shape = KvShape { n_layers, n_kv_heads: heads, ..SHAPE };
    let (k, v) = (whole.k_type(), whole.v_type());
    cache_of(bank, KvLayout::new(shape, k, v, Some(layers_per_row.min(n_layers)), whole.sinks()).unwrap())
}

/// A layer's rows as attention reads them, and its sinks: each plane by itself, and of each its heads.
fn heads_of(sequence: &Sequence, layer: usize) -> Vec<Vec<Vec<u8>>> {
    let n = sequence.cache().layout().shape().n_kv_heads;
    let view = sequence.view(layer, sequence.len()).unwrap();
    let layout = *view.layout();
    let cut = |plane: &[u8]| plane.chunks_exact((plane.len() / n).max(1)).map(<[u8]>::to_vec).collect();
    let mut all = Vec::new();
    for segment in view.segments() {
        for row in segment.rows.as_host().unwrap().chunks_exact(layout.row_stride).take(segment.len) {
            all.extend(
                planes(&layout)
                    .into_iter()
                    .filter(|&(_, len)| len > 0)
                    .map(|(at, len)| cut(&row[at..at + len])),
            );
        }
    }
    if let (Some(place), Some(sinks)) = (layout.sinks, view.sinks()) {
        let (bytes, each) = (sinks.as_host().unwrap(), layout.elements() * 2);
        for at in [place.k, place.v] {
            let sinks = bytes[at..at + place.rows.min(sequence.len()) * each].chunks_exact(each);
            all.extend(sinks.map(cut));
        }
    }
    all
}

fn restored(
    file: &StateFile,
    bank: &Bank,
    whole: &KvLayout,
    way: &Way,
    layers_per_row: usize,
) -> Vec<Sequence> {
    let mut first = 0;
    let mut all = Vec::new();
    for (n_layers, parts) in way {
        for heads in parts {
            let cache = part_of(bank, whole, *n_layers, heads.len(), layers_per_row);
            all.push(
                file.restore_heads(0, first, heads.clone(), &cache, N_CTX, &Identity::default()).unwrap(),
            );
        }
        first += n_layers;
    }
    all
}

fn split<'a>(
    parts: &'a [&'a Sequence],
    heads: &'a [Vec<Range<usize>>],
    tokens: &'a [u32],
) -> SaveSequence<'a> {
    SaveSequence { sequence: parts[0], further: &parts[1..], heads, tokens, extra: b"" }
}

#[test]
fn heads_are_cut_and_put_together_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["whole", "parts"].map(|name| folder.path().join(name));
    let bank = bank(800);
    let tokens: Vec<u32> = (0..150).map(|i| i * i % 97).collect();
    let types = [
        (KvType::F16, KvType::F16, 0),
        (KvType::Q8_0, KvType::Q4_0, 0),
        (KvType::F32, KvType::Q8_0, 0),
        (KvType::Q4_0, KvType::BF16, 0),
        (KvType::Q4_0, KvType::Q8_0, 4),
        (KvType::F16, KvType::Q4_0, 4),
    ];
    for (k, v, sinks) in types {
        let layout = KvLayout::new(SHAPE, k, v, None, sinks).unwrap();
        let mut whole = sequence(&cache_of(&bank, layout), N_CTX, &tokens).unwrap();
        // Some sinks, and some of the others, are gone.
        whole.remove(1..3).unwrap();
        whole.remove(40..60).unwrap();
        let names: Vec<u32> = tokens[..whole.len()].to_vec();
        let one = SaveSequence { sequence: &whole, further: &[], heads: &[], tokens: &names, extra: b"" };
        save(&paths[0], &Identity::default(), &[one]).unwrap();
        let bytes = fs::read(&paths[0]).unwrap();
        let file = StateFile::open(&paths[0]).unwrap();
        // As what is restored: rows close up, and sinks keep their places.
        let again = file.restore(0, &cache_of(&bank, layout), N_CTX, &Identity::default()).unwrap();
        for way in ways() {
            for layers_per_row in [1, 3] {
                let mut parts = restored(&file, &bank, &layout, &way, layers_per_row);
                let mut sequences = parts.iter();
                let mut first = 0;
                for (n_layers, heads) in &way {
                    for (heads, part) in heads.iter().zip(sequences.by_ref()) {
                        for layer in 0..*n_layers {
                            let (own, all) = (heads_of(part, layer), heads_of(&again, first + layer));
                            assert_eq!(own.len(), all.len());
                            assert!(own.iter().zip(&all).all(|(own, all)| own[..] == all[heads.clone()]));
                        }
                    }
                    first += n_layers;
                }
                let heads: Vec<_> = way.iter().map(|(_, heads)| heads.clone()).collect();
                let saved: Vec<&Sequence> = parts.iter().collect();
                save(&paths[1], &Identity::default(), &[split(&saved, &heads, &names)]).unwrap();
                assert!(fs::read(&paths[1]).unwrap() == bytes, "{k} {v} {sinks} {way:?}");
                for part in &mut parts {
                    append(part, &mut names.clone(), &[1, 2, 3]).unwrap();
                }
            }
        }
    }
    assert!(bank.stats().held.is_zero());
}

#[test]
fn what_makes_up_no_heads_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let bank = bank(200);
    let layout = KvLayout::new(SHAPE, KvType::F16, KvType::F16, None, 0).unwrap();
    let tokens = [3, 4, 5];
    let of =
        |n_layers, heads| sequence(&part_of(&bank, &layout, n_layers, heads, 1), N_CTX, &tokens).unwrap();
    let (one, two, short) = (of(3, 1), of(3, 2), of(2, 2));
    let saved = |parts: &[&Sequence], heads: &[Vec<Range<usize>>]| {
        save(&path, &Identity::default(), &[split(parts, heads, &tokens)])
    };
    for (parts, heads) in [
        (&[&one, &two][..], vec![vec![0..2, 2..3]]), // the other way round
        (&[&one, &two], vec![vec![0..1, 2..4]]),     // a gap
        (&[&one, &two], vec![vec![1..2, 2..4]]),     // not from the first
        (&[&one, &two], vec![vec![0..1]]),           // one part too many
        (&[&one], vec![vec![0..1, 1..3]]),           // and one too few
        (&[&one, &two], vec![vec![0..1, 1..3], vec![]]), // layers of nobody
        (&[&one, &short], vec![vec![0..1, 1..3]]),   // a layer that only one of them has
    ] {
        let refused = saved(parts, &heads);
        assert!(matches!(refused, Err(StateError::Heads | StateError::Mixed)), "{heads:?}: {refused:?}");
    }
    // Without a word of heads they would be further layers, of other heads.
    assert!(matches!(saved(&[&one, &two], &[]), Err(StateError::Mixed)));
    assert!(!path.exists());
    saved(&[&one, &two], &[vec![0..1, 1..3]]).unwrap();
    let file = StateFile::open(&path).unwrap();
    assert_eq!(file.shape(), SHAPE);
    let restore = |first, heads: Range<usize>, cache: &KvCache| {
        file.restore_heads(0, first, heads, cache, N_CTX, &Identity::default()).map(|sequence| sequence.len())
    };
    for (first, heads, cache) in
        [(0, 0..2, &one), (0, 3..4, &one), (0, 2..4, &two), (1, 0..2, &two), (2, 0..2, &short)]
    {
        let refused = restore(first, heads.clone(), cache.cache());
        assert!(matches!(refused, Err(StateError::WrongShape { .. })), "{first} {heads:?}: {refused:?}");
    }
    assert_eq!(restore(1, 1..3, short.cache()).unwrap(), 3);
    assert!(matches!(
        file.restore(0, one.cache(), N_CTX, &Identity::default()),
        Err(StateError::WrongShape { .. })
    ));
}
