//! What has to be true of the set.

use std::collections::HashSet;
use std::ops::Range;

use granule_split::{Shares, SplitShape, TransformerSplit};

use super::{Row, SHARES, SHORT, product, rows};

/// The values of a row's factors, as texts; the last one says whether a transform is made.
fn values(row: &Row) -> [String; 8] {
    let Row { weights, shares, layers, k, v, batch, transform } = row;
    let made = if row.is_transformed() { "made" } else { "not made" };
    [
        format!("weights {weights}"),
        format!("shares {shares:?}"),
        format!("layers {}", layers.name()),
        format!("k {k}"),
        format!("v {v}"),
        format!("batch {batch}"),
        format!("transform {transform}"),
        format!("a transform is {made}"),
    ]
}

/// All pairs of values of two factors that some of these rows have.
fn pairs<'a>(rows: impl IntoIterator<Item = &'a Row>) -> HashSet<[String; 2]> {
    let mut pairs = HashSet::new();
    for row in rows {
        let values = values(row);
        for (i, one) in values.iter().enumerate() {
            pairs.extend(values[i + 1..].iter().map(|other| [one.clone(), other.clone()]));
        }
    }
    pairs
}

#[test]
fn every_two_values_of_every_two_factors_meet() {
    let (set, all) = (rows(), product());
    assert_eq!(set.len(), 16 * SHARES.len());
    assert_eq!(set.iter().collect::<HashSet<_>>().len(), set.len(), "a row twice");
    assert_eq!(all.len(), 16 * SHARES.len() * 4 * 5 * 5 * 2 * 2);
    let (met, there_are) = (pairs(&set), pairs(&all));
    let missing: Vec<_> = there_are.difference(&met).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn the_short_set_has_every_value() {
    let set = rows();
    let each = |rows: &[Row]| rows.iter().flat_map(values).collect::<HashSet<_>>();
    assert_eq!(each(&set[..SHORT]), each(&product()));
}

/// The shares are such that the heads go to 2, 3 and 4 ranks in every way there is: a head to each of two; to three, one of the two
/// heads twice; to four, both. And of each number of ranks some have the same of all that can be cut finer, and some do not.
#[test]
fn shares_make_every_split_of_groups_of_heads() {
    let shape = SplitShape {
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 64,
        n_ff: 768,
        n_vocab: 1024,
        heads_block: 32,
        ff_block: 32,
    };
    let found: HashSet<Vec<Range<usize>>> = SHARES
        .iter()
        .map(|shares| {
            let split = TransformerSplit::new(&shape, &Shares::ratio(shares).unwrap()).unwrap();
            let groups = split.ranks().iter().map(|rank| rank.kv_heads.clone());
            groups.collect()
        })
        .collect();
    let all = [&[0, 1][..], &[0, 0, 1], &[0, 1, 1], &[0, 0, 1, 1]];
    let all = all.map(|heads| heads.iter().map(|&head| head..head + 1).collect::<Vec<_>>());
    assert_eq!(found, HashSet::from(all));
    for ranks in 2..=4 {
        let of = SHARES.iter().filter(|shares| shares.len() == ranks);
        let even: HashSet<bool> = of.map(|shares| Shares::ratio(shares).unwrap().is_equal()).collect();
        assert_eq!(even.len(), 2, "{ranks} ranks");
    }
}
