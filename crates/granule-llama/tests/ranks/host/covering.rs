//! All of the covering set, a test for each type of weights: one device's greedy tokens and logits, the same bits whenever and with how
//! many threads they are computed, and nothing left behind.

use granule_device::LiveCounts;
use granule_llama::Context;
use granule_quant::DType;

use crate::covering::{Row, rows};
use crate::tales::{Told, WRITTEN};
use crate::{banks, context, hosts, load, whole};

/// What sums in another order move a logit by, in units of the root mean square of all.
const ORDER: f64 = 2e-3;

fn compute(row: &Row) {
    let dir = tempfile::tempdir().unwrap();
    let path = row.file(dir.path());
    let one = whole(&path);
    let (mut alone, mut exact) = (context(&one, row.options()), context(&one, row.exact()));
    let devices = hosts(row.ranks() + 2);
    let ranks = |threads: usize| -> Context {
        let banks = banks(&devices);
        let (split, whole) = banks.split_at(row.ranks());
        let model = load(&path, row.placement(split, [&whole[0], &whole[1]]), threads).unwrap();
        let found: Vec<_> = model.stages().filter_map(|stage| stage.rank).map(|rank| rank.rank).collect();
        assert_eq!(found, (0..row.ranks()).collect::<Vec<_>>(), "{row:?}");
        context(&model, row.options())
    };
    // As many threads as ranks or fewer are one for each.
    let mut all = [ranks(1), ranks(2 * row.ranks()), ranks(3 * row.ranks() + 1)];
    Told::new(&mut alone, &mut exact, row.batch, WRITTEN).holds(row, ORDER, |tokens| {
        let [one, others @ ..] = &mut all;
        let logits = one.eval(tokens).unwrap();
        for other in others {
            let same =
                other.eval(tokens).unwrap().iter().zip(logits).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{row:?}: other bits with other threads");
        }
        logits.to_vec()
    });
    drop(all);
    for device in devices {
        assert_eq!(device.live(), LiveCounts::default(), "{row:?}");
    }
}

macro_rules! tests {
    ($($name:ident $weights:ident)*) => {
        /// The types that have their tests here.
        const TESTED: &[DType] = &[$(DType::$weights),*];
        $(
            #[test]
            fn $name() {
                let rows = rows().into_iter().filter(|row| row.weights == DType::$weights);
                rows.for_each(|row| compute(&row));
            }
        )*
    };
}

tests! {
    f32 F32 f16 F16 bf16 BF16 q4_0 Q4_0 q4_1 Q4_1 q5_0 Q5_0 q5_1 Q5_1 q8_0 Q8_0 q2_k Q2_K q3_k Q3_K q4_k Q4_K q5_k Q5_K q6_k Q6_K
    iq4_nl IQ4_NL iq4_xs IQ4_XS iq2_xxs IQ2_XXS
}

#[test]
fn every_type_has_a_test() {
    assert!(DType::ALL.iter().all(|dtype| TESTED.contains(dtype)));
}
