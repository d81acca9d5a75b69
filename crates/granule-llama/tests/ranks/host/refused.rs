//! Splits that cannot be: a typed error that names the dimension and the numbers of ranks that can, and nothing held.

use std::path::Path;

use granule_device::LiveCounts;
use granule_llama::{Error, Placement};
use granule_quant::DType;
use granule_split::Shares;

use crate::support::make::{Made, Shape};
use crate::tales::{tales, tales_but, tales_of};
use crate::{banks, hosts, load};

/// What is said of this model in these shares: the dimension, its size, what of it stays together, and the numbers that are legal.
#[track_caller]
fn refusal(path: &Path, shares: &[u64], n_layers: usize) -> (&'static str, usize, usize, Vec<usize>) {
    let devices = hosts(shares.len());
    let placement = Placement::new().split(&banks(&devices), Shares::ratio(shares).unwrap(), n_layers);
    let refused = load(path, placement, 2).unwrap_err();
    for device in devices {
        assert_eq!(device.live(), LiveCounts::default(), "{refused}");
    }
    let text = refused.to_string();
    let Error::Split(granule_split::Error::Indivisible { dimension, size, unit, ranks, legal }) = refused
    else {
        panic!("{path:?} in {shares:?}: {refused}");
    };
    assert_eq!(ranks, shares.len());
    assert!(text.contains(dimension) && text.contains(&format!("{ranks} ranks")), "{text}");
    // As it is, or as "1 to 3".
    assert!(legal.last().is_some_and(|last| text.ends_with(&last.to_string())), "{text}");
    (dimension, size, unit, legal)
}

/// All query heads are one block of 256 of `attn_output`; of the feed-forward part there are three.
#[test]
fn blocks_of_256_on_the_tales() {
    let dir = tempfile::tempdir().unwrap();
    let wide: Vec<DType> = DType::ALL.iter().copied().filter(|dtype| dtype.block_len() == 256).collect();
    assert_eq!(wide.len(), 7);
    for dtype in wide {
        let path = tales_of(dtype, dir.path());
        for shares in [&[1, 1][..], &[3, 1], &[1, 1, 1], &[2, 1, 1], &[1, 1, 1, 1], &[1, 2, 3, 4]] {
            assert_eq!(refusal(&path, shares, 6), ("key-value heads", 2, 2, vec![1]), "{dtype}");
        }
        let path = tales_but(&["attn_output"], dtype, dir.path());
        for shares in [&[1, 1, 1, 1][..], &[1, 2, 3, 4]] {
            let found = refusal(&path, shares, 6);
            assert_eq!(found, ("feed-forward elements", 768, 256, vec![1, 2, 3]), "{dtype}");
        }
        let path = tales_but(&["ffn_down"], dtype, dir.path());
        assert_eq!(refusal(&path, &[1, 1], 6), ("key-value heads", 2, 2, vec![1]), "{dtype}");
    }
}

/// More ranks than there are query heads, for every type that has blocks of 32 or none.
#[test]
fn more_ranks_than_heads() {
    let dir = tempfile::tempdir().unwrap();
    for dtype in [DType::F32, DType::F16, DType::Q4_0, DType::Q8_0, DType::IQ4_NL] {
        let path = tales_of(dtype, dir.path());
        for ranks in [5, 8, 16] {
            let found = refusal(&path, &vec![1; ranks], 6);
            assert_eq!(found, ("query heads", 4, 1, vec![1, 2, 3, 4]), "{dtype}, {ranks} ranks");
        }
    }
}

/// Heads, blocks and widths of other shapes.
#[test]
fn other_shapes() {
    let dir = tempfile::tempdir().unwrap();
    let of = |shape: Shape, shares: &[u64]| {
        let n_layers = shape.n_layers;
        refusal(&Made::new(&shape).write(dir.path()), shares, n_layers)
    };
    let small = Shape { n_layers: 1, ..Shape::default() };
    // A query head for each key-value head: nothing to replicate them for.
    let each = Shape { n_heads: 4, n_kv_heads: 4, ..small.clone() };
    assert_eq!(of(each, &[1; 5]), ("key-value heads", 4, 1, vec![1, 2, 3, 4]));
    // Heads of 16 elements in blocks of 32: two stay together.
    let halves = Shape { n_heads: 4, n_kv_heads: 1, weights: vec![DType::Q8_0], ..small.clone() };
    assert_eq!(of(halves, &[1, 1, 1]), ("query heads", 4, 2, vec![1, 2]));
    // Blocks of 256 over eight heads of 64, two for each key-value head: two of those stay together.
    let blocks = Shape {
        n_embd: 512,
        n_heads: 8,
        n_kv_heads: 4,
        n_ff: 512,
        weights: vec![DType::Q4_K],
        ..small.clone()
    };
    assert_eq!(of(blocks.clone(), &[1, 1, 1]), ("key-value heads", 4, 2, vec![1, 2]));
    let narrow = Shape { n_ff: 256, ..blocks };
    assert_eq!(of(narrow, &[2, 1]), ("feed-forward elements", 256, 256, vec![1]));
    // A feed-forward part of three blocks of 32.
    let thirds = Shape {
        n_ff: 96,
        n_heads: 8,
        n_kv_heads: 8,
        head_dim: Some(32),
        weights: vec![DType::Q4_0],
        ..small
    };
    assert_eq!(of(thirds, &[1; 4]), ("feed-forward elements", 96, 32, vec![1, 2, 3]));
}

/// Shares that no ranks can have, and ranks that no shares are for.
#[test]
fn shares_and_ranks() {
    assert!(matches!(Shares::equal(17), Err(granule_split::Error::Ranks { ranks: 17, most: 16 })));
    assert!(matches!(Shares::equal(0), Err(granule_split::Error::Ranks { ranks: 0, .. })));
    assert!(matches!(Shares::ratio(&[1, 0]), Err(granule_split::Error::NoShare { rank: 1, ranks: 2 })));
    for (shares, ranks) in [(3, 2), (2, 3), (2, 1)] {
        let placement = Placement::new().split(&banks(&hosts(ranks)), Shares::equal(shares).unwrap(), 6);
        let refused = load(tales(), placement, 1).unwrap_err();
        assert!(
            matches!(refused, Error::SplitShares { shares: s, ranks: r } if (s, r) == (shares, ranks)),
            "{refused}"
        );
    }
    for n_layers in [5, 7] {
        let placement = Placement::new().split(&banks(&hosts(2)), Shares::equal(2).unwrap(), n_layers);
        assert!(matches!(load(tales(), placement, 1).unwrap_err(), Error::Placement { .. }));
    }
}
