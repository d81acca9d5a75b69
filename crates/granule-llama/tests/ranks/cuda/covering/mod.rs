//! The covering set over GPUs, a test for each row: the host's greedy tokens and logits, and nothing left behind. Whole layers before
//! those that are split are on the host, those behind on the first GPU, in a bank of their own.

mod wide;

use crate::covering::{Row, rows};
use crate::tales::{Told, WRITTEN};
use crate::{banks, context, host, load, whole};

use super::{gpus, nothing_is_left};

/// How far logits may be from the host's, in units of their root mean square, where keys and values are stored exactly: tokens alone
/// are computed with 16 bits of an activation in two terms, prompts with f16.
fn computed(row: &Row) -> f64 {
    if row.batch { 1e-2 } else { 2e-3 }
}

fn compute(row: &Row) {
    let dir = tempfile::tempdir().unwrap();
    let path = row.file(dir.path());
    let one = whole(&path);
    let (mut alone, mut exact) = (context(&one, row.options()), context(&one, row.exact()));
    let told = Told::new(&mut alone, &mut exact, row.batch, WRITTEN);
    let ranks = banks(&gpus(row.ranks()));
    let elsewhere = banks(&[host(), gpus(1).remove(0)]);
    let model = load(&path, row.placement(&ranks, [&elsewhere[0], &elsewhere[1]]), 1).unwrap();
    let mut there = context(&model, row.options());
    let mut first = Vec::new();
    told.holds(row, computed(row), |tokens| {
        let logits = there.eval(tokens).unwrap().to_vec();
        first.push(logits.clone());
        logits
    });
    // And once more, for as many bits.
    if row.batch {
        let mut again = context(&model, row.options());
        let mut steps = first.iter();
        told.holds(row, computed(row), |tokens| {
            let logits = again.eval(tokens).unwrap().to_vec();
            assert!(Some(&logits) == steps.next(), "{row:?}: other bits at the second time");
            logits
        });
    }
    drop((there, model, ranks, elsewhere));
    nothing_is_left();
}

macro_rules! tests {
    ($($name:ident $row:literal)*) => {
        /// The rows that have their tests here.
        pub(super) const ROWS: &[usize] = &[$($row),*];
        $(
            #[test]
            #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
            fn $name() {
                super::compute(&super::rows()[$row]);
            }
        )*
    };
}

/// What runs always.
mod short {
    tests! {
        row_000 0 row_001 1 row_002 2 row_003 3 row_004 4 row_005 5
        row_006 6 row_007 7 row_008 8 row_009 9 row_010 10 row_011 11
        row_012 12 row_013 13 row_014 14 row_015 15
    }
}

/// What runs where all is asked for.
mod rest {
    tests! {
        row_016 16 row_017 17 row_018 18 row_019 19 row_020 20 row_021 21
        row_022 22 row_023 23 row_024 24 row_025 25 row_026 26 row_027 27
        row_028 28 row_029 29 row_030 30 row_031 31 row_032 32 row_033 33
        row_034 34 row_035 35 row_036 36 row_037 37 row_038 38 row_039 39
        row_040 40 row_041 41 row_042 42 row_043 43 row_044 44 row_045 45
        row_046 46 row_047 47 row_048 48 row_049 49 row_050 50 row_051 51
        row_052 52 row_053 53 row_054 54 row_055 55 row_056 56 row_057 57
        row_058 58 row_059 59 row_060 60 row_061 61 row_062 62 row_063 63
        row_064 64 row_065 65 row_066 66 row_067 67 row_068 68 row_069 69
        row_070 70 row_071 71 row_072 72 row_073 73 row_074 74 row_075 75
        row_076 76 row_077 77 row_078 78 row_079 79 row_080 80 row_081 81
        row_082 82 row_083 83 row_084 84 row_085 85 row_086 86 row_087 87
        row_088 88 row_089 89 row_090 90 row_091 91 row_092 92 row_093 93
        row_094 94 row_095 95
    }
}

#[test]
fn every_row_has_a_test() {
    let tested = [short::ROWS, rest::ROWS].concat();
    assert_eq!(tested, (0..rows().len()).collect::<Vec<_>>());
    assert_eq!(short::ROWS.len(), crate::covering::SHORT);
}
