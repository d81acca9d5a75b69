//! Plans against naive twins: every element has a holder, shares are what they say, and only what cannot be is refused.

use granule_device::Bytes;
use granule_quant::DType;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn weights(ranks: Range<usize>) -> impl Strategy<Value = Vec<u64>> {
    prop_oneof![
        3 => vec(1u64..10, ranks.clone()),
        1 => ranks.clone().prop_map(|ranks| vec![1; ranks]),
        1 => vec(any::<u64>().prop_map(|weight| weight.max(1)), ranks),
    ]
}

fn shapes() -> impl Strategy<Value = SplitShape> {
    let head_dims = prop::sample::select(vec![8, 32, 48, 64, 80, 128, 256]);
    let blocks = || prop::sample::select(vec![1, 32, 256]);
    (1usize..=20, 1usize..=9, head_dims, blocks(), blocks(), 1usize..100, 1usize..2000).prop_filter_map(
        "all heads are whole blocks",
        |(n_kv_heads, group, head_dim, heads_block, ff_block, ff, n_vocab)| {
            let (n_heads, n_ff) = (n_kv_heads * group, ff * ff_block);
            let shape = SplitShape { n_heads, n_kv_heads, head_dim, n_ff, n_vocab, heads_block, ff_block };
            (n_heads * head_dim).is_multiple_of(heads_block).then_some(shape)
        },
    )
}

/// How many ranks hold each of `n` elements.
fn holders(n: usize, parts: impl Iterator<Item = Range<usize>>) -> Vec<usize> {
    let mut holders = vec![0; n];
    parts.for_each(|part| part.for_each(|element| holders[element] += 1));
    holders
}

/// All ways to place boundaries between ranks, each a list of where ranks end among the query heads, that attention and blocks allow.
fn all_ways(shape: &SplitShape, ranks: usize) -> Vec<Vec<usize>> {
    let group = shape.n_heads / shape.n_kv_heads;
    // A piece of query heads can be one rank's where it is some whole groups, or a part of one.
    let fits = |start: usize, end: usize| {
        let whole = start.is_multiple_of(group) && end.is_multiple_of(group);
        let inside = start / group == (end - 1) / group;
        (start * shape.head_dim).is_multiple_of(shape.heads_block)
            && (end * shape.head_dim).is_multiple_of(shape.heads_block)
            && (whole || inside)
    };
    fn go(
        ends: &mut Vec<usize>,
        n: usize,
        ranks: usize,
        fits: &dyn Fn(usize, usize) -> bool,
        all: &mut Vec<Vec<usize>>,
    ) {
        let start = ends.last().copied().unwrap_or(0);
        if ends.len() == ranks {
            if start == n {
                all.push(ends.clone());
            }
            return;
        }
        for end in start + 1..=n {
            if fits(start, end) {
                ends.push(end);
                go(ends, n, ranks, fits, all);
                ends.pop();
            }
        }
    }
    let mut all = Vec::new();
    go(&mut Vec::new(), shape.n_heads, ranks, &fits, &mut all);
    all
}

/// Of all ranks the most that one has to do for its share.
fn worst(heads: impl Iterator<Item = usize>, weights: &[u64]) -> f64 {
    heads.zip(weights).map(|(heads, &weight)| heads as f64 / weight as f64).fold(0.0, f64::max)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_dimension_is_covered_once_by_shares(weights in weights(1..MAX_RANKS + 1), units in 0usize..300, unit in 1usize..300, ragged in 0usize..300) {
        let shares = Shares::ratio(&weights).unwrap();
        let n = (units * unit).saturating_sub(ragged % unit);
        let units = n.div_ceil(unit);
        let parts = match divide("rows", n, unit, &shares) {
            Ok(parts) => parts,
            Err(Error::Indivisible { dimension: "rows", size, unit: told, ranks, legal }) => {
                prop_assert!(units < weights.len());
                prop_assert_eq!((size, told, ranks), (n, unit, weights.len()));
                prop_assert_eq!(legal, (1..=units).collect::<Vec<_>>());
                return Ok(());
            }
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        prop_assert_eq!(parts.len(), weights.len());
        prop_assert!(holders(n, parts.iter().cloned()).iter().all(|&n| n == 1));
        prop_assert!(parts.iter().all(|part| !part.is_empty()));
        prop_assert!(parts.windows(2).all(|two| two[0].end == two[1].start && two[0].end % unit == 0));
        let got: Vec<usize> = parts.iter().map(|part| part.len().div_ceil(unit)).collect();
        // More weight is never less, the same weight one less at most and only behind.
        for (a, b) in (0..got.len()).flat_map(|a| (0..got.len()).map(move |b| (a, b))) {
            prop_assert!(weights[a] <= weights[b] || got[a] >= got[b], "{:?}", got);
            prop_assert!(weights[a] != weights[b] || a >= b || got[a] == got[b] || got[a] == got[b] + 1, "{:?}", got);
        }
        // Those with more than one unit by right are within one unit of it; so is everybody where nobody has less.
        let total: u128 = weights.iter().map(|&weight| u128::from(weight)).sum();
        let exact = |rank: usize| units as f64 * weights[rank] as f64 / total as f64;
        if (0..got.len()).all(|rank| exact(rank) >= 1.0) {
            for (rank, &got) in got.iter().enumerate() {
                prop_assert!((got as f64 - exact(rank)).abs() < 1.0 + 1e-9, "{} {} {}", rank, got, exact(rank));
            }
        }
    }

    #[test]
    fn heads_and_widths_are_covered(shape in shapes(), weights in weights(1..MAX_RANKS + 1)) {
        let shares = Shares::ratio(&weights).unwrap();
        let legal = shape.legal_ranks().unwrap();
        prop_assert!(legal.contains(&1));
        let split = match TransformerSplit::new(&shape, &shares) {
            Ok(split) => split,
            Err(Error::Indivisible { ranks, legal: of_this, dimension, .. }) => {
                prop_assert!(!of_this.contains(&ranks), "{}", dimension);
                prop_assert!(!legal.contains(&ranks), "{}", dimension);
                prop_assert!(legal.iter().all(|ranks| of_this.contains(ranks)));
                return Ok(());
            }
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        };
        prop_assert!(legal.contains(&weights.len()));
        let ranks = split.ranks();
        prop_assert_eq!(ranks.len(), weights.len());
        prop_assert!(holders(shape.n_heads, ranks.iter().map(|rank| rank.heads.clone())).iter().all(|&n| n == 1));
        prop_assert!(holders(shape.n_ff, ranks.iter().map(|rank| rank.ff.clone())).iter().all(|&n| n == 1));
        prop_assert!(holders(shape.n_vocab, ranks.iter().map(|rank| rank.vocab.clone())).iter().all(|&n| n == 1));
        let kv = holders(shape.n_kv_heads, ranks.iter().map(|rank| rank.kv_heads.clone()));
        prop_assert!(kv.iter().all(|&n| n == 1 || n > 1 && weights.len() > shape.n_kv_heads));
        let group = shape.n_heads / shape.n_kv_heads;
        for rank in ranks {
            let RankShape { heads, kv_heads, ff, vocab } = rank;
            prop_assert!(!heads.is_empty() && !kv_heads.is_empty() && !ff.is_empty() && !vocab.is_empty());
            // Query heads read the key-value heads that are here, all of them, and as many each.
            let read: Vec<usize> = heads.clone().map(|head| head / group).collect();
            prop_assert_eq!((read[0], read[read.len() - 1]), (kv_heads.start, kv_heads.end - 1));
            let each = kv_heads.clone().map(|kv| read.iter().filter(|&&read| read == kv).count());
            prop_assert!(each.collect::<Vec<_>>().windows(2).all(|two| two[0] == two[1]));
            prop_assert!((heads.start * shape.head_dim).is_multiple_of(shape.heads_block));
            prop_assert!((heads.end * shape.head_dim).is_multiple_of(shape.heads_block));
            prop_assert!(ff.start.is_multiple_of(shape.ff_block) && ff.end.is_multiple_of(shape.ff_block));
        }
        prop_assert_eq!(&split, &TransformerSplit::new(&shape, &shares).unwrap());
        // Every weight of it can be split so, and is covered.
        for (role, rows, cols, block) in [
            (Role::Query, shape.n_heads * shape.head_dim, 256, 256),
            (Role::KeyValue, shape.n_kv_heads * shape.head_dim, 256, 256),
            (Role::AttentionOutput, 3, shape.n_heads * shape.head_dim, shape.heads_block),
            (Role::FfnUp, shape.n_ff, 256, 256),
            (Role::FfnDown, 3, shape.n_ff, shape.ff_block),
            (Role::Output, shape.n_vocab, 256, 256),
            (Role::Whole, 7, 256, 256),
        ] {
            for &dtype in DType::ALL.iter().filter(|dtype| dtype.block_len() <= block) {
                let tensor = split.tensor(role, dtype, rows, cols).unwrap();
                let firsts = (0..ranks.len()).map(|rank| tensor.first_held(rank).unwrap());
                let elements: usize = firsts.map(|shard| shard.rows.len() * shard.cols.len()).sum();
                prop_assert_eq!(elements, rows * cols, "{:?}", role);
            }
        }
    }

    #[test]
    fn a_split_of_heads_is_legal_where_any_way_is(n_kv_heads in 1usize..=6, group in 1usize..=4, head_dim in prop::sample::select(vec![8usize, 16, 48, 64, 96, 128]), block in prop::sample::select(vec![1usize, 32, 256]), weights in weights(1..7)) {
        let n_heads = n_kv_heads * group;
        prop_assume!((n_heads * head_dim).is_multiple_of(block));
        let shape = SplitShape { n_heads, n_kv_heads, head_dim, n_ff: 4096, n_vocab: 4096, heads_block: block, ff_block: 1 };
        let ways = all_ways(&shape, weights.len());
        let split = TransformerSplit::new(&shape, &Shares::ratio(&weights).unwrap());
        prop_assert_eq!(split.is_ok(), !ways.is_empty());
        let Ok(split) = split else { return Ok(()) };
        let ends: Vec<usize> = split.ranks().iter().map(|rank| rank.heads.end).collect();
        prop_assert!(ways.contains(&ends));
        // Where heads are replicated, the rank with most to do for its share has no more than in the best of all ways to give heads ranks
        // and to divide each head's as a dimension is divided.
        if weights.len() > n_kv_heads {
            let unit = block / (1..=block).rev().find(|n| block % n == 0 && head_dim % n == 0).unwrap();
            let divided = |way: &&Vec<usize>| {
                (0..n_kv_heads).all(|head| {
                    let (start, end) = (head * group, (head + 1) * group);
                    let first = way.iter().take_while(|&&e| e <= start).count();
                    let last = way.iter().position(|&e| e == end);
                    last.is_some_and(|last| {
                        let of = divide("heads", group, unit, &Shares::ratio(&weights[first..=last]).unwrap()).unwrap();
                        of.iter().map(|part| start + part.end).eq(way[first..=last].iter().copied())
                    })
                })
            };
            let lengths = |ends: &[usize]| ends.iter().scan(0, |at, &end| Some(end - std::mem::replace(at, end))).collect::<Vec<_>>();
            let best = ways.iter().filter(divided).map(|way| worst(lengths(way).into_iter(), &weights)).fold(f64::MAX, f64::min);
            prop_assert!(worst(lengths(&ends).into_iter(), &weights) <= best * (1.0 + 1e-12), "{:?}", ends);
        }
    }

    #[test]
    fn copied_shards_are_the_tensor(
        dtype in prop::sample::select(DType::ALL.to_vec()),
        rows in 1usize..40,
        blocks in 1usize..20,
        weights in weights(1..MAX_RANKS + 1),
        by_columns in any::<bool>(),
        lap in 0usize..3,
        seed in any::<u64>(),
    ) {
        let (cols, shares) = (blocks * dtype.block_len(), Shares::ratio(&weights).unwrap());
        let (n, unit, split) = if by_columns { (rows, 1, Split::Column) } else { (cols, dtype.block_len(), Split::Row) };
        let Ok(mut parts) = divide("it", n, unit, &shares) else { return Ok(()) };
        if by_columns {
            // Some are also their neighbour's.
            for rank in 1..parts.len() {
                parts[rank].start = parts[rank].start.saturating_sub(lap).max(parts[rank - 1].start);
            }
        }
        let tensor = TensorSplit::new(dtype, rows, cols, split, parts.clone()).unwrap();
        let (block, row) = (dtype.block_bytes(), dtype.row_bytes(cols).unwrap());
        let whole: Vec<u8> = (0..rows * row).map(|i| (seed.wrapping_mul(i as u64 + 1) >> 29) as u8).collect();
        prop_assert_eq!(tensor.whole_bytes(), whole.len());
        // Block by block, by its row and its place in the row.
        let mut held = vec![0; rows * blocks];
        let mut first_held = vec![0; rows * blocks];
        for (rank, part) in parts.iter().enumerate() {
            let shard = tensor.shard(rank).unwrap();
            let mut bytes = vec![0xa5; tensor.bytes(rank).unwrap()];
            let half = shard.rows.len() / 2;
            let (upper, lower) = bytes.split_at_mut(half * tensor.row_bytes(rank).unwrap());
            tensor.copy_shard(rank, 0..half, &whole, upper).unwrap();
            tensor.copy_shard(rank, half..shard.rows.len(), &whole, lower).unwrap();
            let mut bytes = bytes.chunks_exact(block);
            for r in 0..rows {
                for b in 0..blocks {
                    let here = if by_columns { part.contains(&r) } else { part.contains(&(b * dtype.block_len())) };
                    if here {
                        prop_assert_eq!(bytes.next().unwrap(), &whole[r * row + b * block..][..block]);
                        held[r * blocks + b] += 1;
                    }
                    let first = tensor.first_held(rank).unwrap();
                    first_held[r * blocks + b] += usize::from(first.rows.contains(&r) && first.cols.contains(&(b * dtype.block_len())));
                }
            }
            prop_assert!(bytes.next().is_none());
            let place = tensor.place(rank, half..shard.rows.len()).unwrap();
            prop_assert_eq!(place.is_some(), shard.cols.len() == cols);
            if let Some(place) = place {
                prop_assert_eq!(&whole[place], &*lower_half(&tensor, rank, half, &whole));
            }
        }
        prop_assert!(held.iter().all(|&n| n >= 1));
        prop_assert!(first_held.iter().all(|&n| n == 1));
    }
}

fn lower_half(tensor: &TensorSplit, rank: usize, half: usize, whole: &[u8]) -> Vec<u8> {
    let rows = tensor.shard(rank).unwrap().rows.len();
    let mut bytes = vec![0; (rows - half) * tensor.row_bytes(rank).unwrap()];
    tensor.copy_shard(rank, half..rows, whole, &mut bytes).unwrap();
    bytes
}

#[test]
fn shares_are_checked_and_told_in_lowest_terms() {
    assert!(matches!(Shares::equal(0), Err(Error::Ranks { ranks: 0, most: MAX_RANKS })));
    assert!(matches!(Shares::ratio(&[1; 17]), Err(Error::Ranks { ranks: 17, .. })));
    assert!(matches!(Shares::ratio(&[3, 0]), Err(Error::NoShare { rank: 1, ranks: 2 })));
    let free = Shares::by_free(&[Bytes::gib(24), Bytes::gib(8)]).unwrap();
    assert_eq!((free.to_string().as_str(), free.is_equal()), ("3:1", false));
    assert!(Shares::ratio(&[7, 7, 7]).unwrap().is_equal());
}

#[test]
fn remainders_go_to_the_largest_and_ties_to_the_first() {
    let lengths = |n, weights: &[u64]| {
        let parts = divide("rows", n, 1, &Shares::ratio(weights).unwrap()).unwrap();
        parts.iter().map(Range::len).collect::<Vec<_>>()
    };
    assert_eq!(lengths(8, &[3, 1]), [6, 2]);
    assert_eq!(lengths(8, &[1, 1, 1]), [3, 3, 2]);
    assert_eq!(lengths(7, &[3, 1]), [5, 2]); // 5.25 and 1.75
    assert_eq!(lengths(6, &[1, 2, 1]), [2, 3, 1]); // 1.5, 3 and 1.5
    assert_eq!(lengths(4, &[100, 1, 1]), [2, 1, 1]);
    // The second has 1.2 by right, until the first has had the one that it had no right to.
    assert_eq!(lengths(6, &[1, 21, 83]), [1, 1, 4]);
    assert_eq!(lengths(3, &[u64::MAX, 1, u64::MAX]), [1, 1, 1]);
}

#[test]
fn what_cannot_be_split_is_named_with_what_can() {
    // tales-5m with weights of 256 to a block: 8 heads of 32 elements are one block.
    let shape = SplitShape {
        n_heads: 8,
        n_kv_heads: 4,
        head_dim: 32,
        n_ff: 768,
        n_vocab: 2048,
        heads_block: 256,
        ff_block: 256,
    };
    let refused =
        |shape: &SplitShape, ranks| TransformerSplit::new(shape, &Shares::equal(ranks).unwrap()).unwrap_err();
    let error = refused(&shape, 2);
    assert_eq!(
        error.to_string(),
        "key-value heads cannot be split over 2 ranks: 4, in pieces of 4; possible: 1"
    );
    let error = refused(&SplitShape { heads_block: 32, ..shape }, 4);
    assert_eq!(
        error.to_string(),
        "feed-forward elements cannot be split over 4 ranks: 768, in pieces of 256; possible: 1 to 3"
    );
    let plain = SplitShape { heads_block: 32, ff_block: 32, ..shape };
    let error = refused(&plain, 9);
    assert_eq!(
        error.to_string(),
        "query heads cannot be split over 9 ranks: 8, in pieces of 1; possible: 1 to 8"
    );
    assert_eq!(plain.legal_ranks().unwrap(), (1..=8).collect::<Vec<_>>());
    let error = refused(&SplitShape { n_vocab: 3, ..plain }, 4);
    assert!(
        matches!(error, Error::Indivisible { dimension: "the vocabulary", size: 3, unit: 1, ranks: 4, legal } if legal == [1, 2, 3])
    );
    for shape in [
        SplitShape { n_heads: 9, ..plain },
        SplitShape { head_dim: 0, ..plain },
        SplitShape { n_ff: 100, ..plain },
        SplitShape { n_heads: usize::MAX, n_kv_heads: 1, head_dim: 32, ..plain },
    ] {
        assert!(matches!(refused(&shape, 1), Error::Shape { .. }), "{shape:?}");
        assert!(shape.legal_ranks().is_err());
    }
}

#[test]
fn replicated_heads_go_to_ranks_by_their_shares() {
    let shape = SplitShape {
        n_heads: 8,
        n_kv_heads: 2,
        head_dim: 64,
        n_ff: 1024,
        n_vocab: 512,
        heads_block: 32,
        ff_block: 32,
    };
    let heads = |weights: &[u64]| {
        let split = TransformerSplit::new(&shape, &Shares::ratio(weights).unwrap()).unwrap();
        split.ranks().iter().map(|rank| (rank.kv_heads.start, rank.heads.len())).collect::<Vec<_>>()
    };
    assert_eq!(heads(&[1, 1, 1]), [(0, 2), (0, 2), (1, 4)]);
    assert_eq!(heads(&[2, 1, 1]), [(0, 4), (1, 2), (1, 2)]);
    assert_eq!(heads(&[3, 1, 2, 2]), [(0, 3), (0, 1), (1, 2), (1, 2)]);
    assert_eq!(heads(&[1; 5]), [(0, 2), (0, 1), (0, 1), (1, 2), (1, 2)]);
}

#[test]
fn parts_that_make_up_no_tensor_are_refused() {
    let new = |split, parts: &[Range<usize>]| TensorSplit::new(DType::Q8_0, 64, 64, split, parts.to_vec());
    for (split, parts, told) in [
        (Split::Column, &[0..10, 11..64][..], "rows 11 to 64 of rank 1: not what follows rows 0 to 10"),
        (Split::Column, &[0..10, 10..63], "rows 63 to 64 are nobody's"),
        (Split::Column, &[0..10, 10..10, 10..64], "rows 10 to 10 of rank 1: no part of 64 rows"),
        (Split::Column, &[0..65, 65..66], "rows 0 to 65 of rank 0: no part of 64 rows"),
        (Split::Column, &[0..40, 10..30, 30..64], "rows 10 to 30 of rank 1: not what follows rows 0 to 40"),
        (Split::Row, &[0..48, 48..64], "columns 0 to 48 of rank 0: no whole blocks of 32"),
        (Split::Row, &[0..64, 32..64], "columns 32 to 64 of rank 1: also of another rank, up to 64"),
        (
            Split::Replicated,
            &[0..64, 0..32],
            "rows 0 to 32 of rank 1: not all of 64 rows, which each rank has",
        ),
    ] {
        assert_eq!(new(split, parts).unwrap_err().to_string(), told);
    }
    assert!(matches!(new(Split::Row, &[]), Err(Error::Ranks { ranks: 0, .. })));
    let whole = 0..usize::MAX;
    assert!(matches!(
        TensorSplit::new(DType::F32, whole.end, 2, Split::Column, vec![whole]),
        Err(Error::Quant(_))
    ));
    let tensor = new(Split::Row, &[0..32, 32..64]).unwrap();
    assert!(matches!(tensor.bytes(2), Err(Error::NoRank { rank: 2, ranks: 2 })));
    let (from, mut to) = (vec![0; 64 * 68], vec![0; 64 * 34]);
    tensor.copy_shard(1, 0..64, &from, &mut to).unwrap();
    assert!(matches!(tensor.copy_shard(1, 0..63, &from, &mut to), Err(Error::Size { expected: 2142, .. })));
    assert!(matches!(tensor.copy_shard(1, 1..65, &from, &mut to), Err(Error::Size { .. })));
    assert!(matches!(tensor.copy_shard(1, 0..64, &from[1..], &mut to), Err(Error::Size { .. })));
}
