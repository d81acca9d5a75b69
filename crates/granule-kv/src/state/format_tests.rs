//! Contents there and back, and bytes that no `write` wrote.

use proptest::prelude::*;

use super::*;

fn contents() -> impl Strategy<Value = Contents> {
    let bytes = || prop::collection::vec(any::<u8>(), 0..5);
    let run = (0..6usize, 1..5usize, 0..99usize, -3..3i32);
    let run = run.prop_map(|(row, len, stored, turn)| Run { row, len, stored, turn });
    let saved = (bytes(), prop::collection::vec(run, 0..4), any::<u32>());
    let types = (prop::sample::select(KvType::ALL), prop::sample::select(KvType::ALL));
    (1..4usize, types, 0..5usize, [bytes(), bytes(), bytes()], prop::collection::vec(saved, 1..4)).prop_map(
        |(n_layers, (k, v), sinks, [model, rope, transform], sequences)| Contents {
            shape: KvShape { n_layers, n_kv_heads: 2, head_dim: 32 },
            k,
            v,
            sinks,
            identity: Identity { model, rope, transform },
            sequences: sequences
                .into_iter()
                .map(|(extra, runs, seed)| one(extra, runs, seed, sinks))
                .collect(),
        },
    )
}

/// As a sequence has them: sinks first and each once, the last one not turned.
fn one(extra: Vec<u8>, mut runs: Vec<Run>, seed: u32, sinks: usize) -> Saved {
    let mut next = 0;
    for run in &mut runs {
        run.row += next;
        next = run.row + run.len;
    }
    if let Some(last) = runs.last_mut() {
        last.turn = 0;
    }
    let segments = canonical(runs.into_iter(), sinks);
    let tokens: usize = segments.iter().map(|run| run.len).sum();
    Saved { extra, tokens: (0..tokens as u32).map(|i| seed.wrapping_mul(i)).collect(), segments }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 6 } else { 256 }, failure_persistence: None, ..Default::default() })]

    #[test]
    fn contents_go_both_ways_and_nothing_else_is_read(contents in contents(), flip in any::<(usize, u8)>()) {
        let mut bytes = contents.write().unwrap();
        prop_assert_eq!(Contents::read(&bytes), Some(contents));
        for len in 0..bytes.len() {
            prop_assert_eq!(Contents::read(&bytes[..len]), None);
        }
        // Whatever else is read is what would be written so: one form only.
        let at = flip.0 % bytes.len();
        bytes[at] = flip.1;
        if let Some(other) = Contents::read(&bytes) {
            prop_assert_eq!(other.write(), Some(bytes));
        }
    }

    #[test]
    fn canonical_keeps_every_token(contents in contents()) {
        for saved in &contents.sequences {
            let again = canonical(saved.segments.iter().copied(), contents.sinks);
            prop_assert_eq!(&again, &saved.segments);
            // Cut into single tokens, and put together again.
            let single = saved.segments.iter().flat_map(|run| {
                (0..run.len).map(|i| Run { row: run.row + i, len: 1, stored: run.stored + i, turn: run.turn })
            });
            prop_assert_eq!(canonical(single, contents.sinks), again);
        }
    }
}

/// Turns that no shift could make, and from which cutting could not go on.
#[test]
fn what_could_not_be_counted_on_is_not_read() {
    let run = |stored, turn| Run { row: 0, len: 1, stored, turn };
    let is_read = |runs: Vec<Run>| {
        let contents = Contents {
            shape: KvShape { n_layers: 1, n_kv_heads: 1, head_dim: 32 },
            k: KvType::F16,
            v: KvType::F16,
            sinks: 0,
            identity: Identity::default(),
            sequences: vec![one(Vec::new(), runs, 1, 0)],
        };
        Contents::read(&contents.write().unwrap()).is_some()
    };
    assert!(is_read(vec![run(0, i32::MAX), run(5, 0)]));
    assert!(is_read(vec![run(9, i32::MIN + 1), run(5, 0)]));
    assert!(!is_read(vec![run(9, i32::MIN), run(5, 0)]));
    assert!(!is_read(vec![run(0, i32::MAX), run(9, -1), run(5, 0)]));
    assert!(is_read(vec![run(i32::MAX as usize - 1, 0)]));
    assert!(!is_read(vec![run(i32::MAX as usize, 0)]));
}
