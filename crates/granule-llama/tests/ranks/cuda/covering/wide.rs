//! The model of a real one's shape over 2, 3 and 4 GPUs. With one layer and few tokens: what the simulated driver computes takes a
//! thousand times as long as what a GPU does. A part of the covering set, so that each runs once, and where all is asked for.

use granule_kv::KvType;
use granule_llama::Placement;

use super::super::{gpus, nothing_is_left};
use crate::tales::distance;
use crate::wide::{SHARES, made, shares};
use crate::{banks, context, load, options, tokens, whole};

/// How far logits of few tokens may be from the host's: tokens alone are computed with 16 bits of an activation in two terms.
const FEW: f64 = 2e-3;

/// The same three tokens, two at once and one behind them.
#[track_caller]
fn computes(which: usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = made(1, dir.path());
    let options = options(64, 8, KvType::F16, KvType::F16);
    let steps = [tokens([7, 100_000]), tokens([128_000])];
    let mut alone = context(&whole(&path), options);
    let want = steps.each_ref().map(|step| alone.eval(step).unwrap().to_vec());
    let of = SHARES[which];
    let model = load(&path, Placement::new().split(&banks(&gpus(of.len())), shares(of), 1), 1).unwrap();
    let mut ranks = context(&model, options);
    for (step, want) in steps.iter().zip(&want) {
        let far = distance(ranks.eval(step).unwrap(), want);
        assert!(far <= FEW, "{of:?}: {far}");
    }
    drop((ranks, model));
    nothing_is_left();
}

macro_rules! tests {
    ($($name:ident $which:literal)*) => {
        $(
            #[test]
            #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
            fn $name() {
                computes($which);
            }
        )*
    };
}

tests! { two_even_1 0 two_uneven_2 1 three_even_3 2 three_uneven_4 3 four_even_5 4 four_uneven_6 5 }
