//! The model of a real one's shape over ranks on the host, in an even and an uneven split of each number of them.

use granule_kv::KvType;

use crate::tales::Told;
use crate::wide::{SHARES, made, shares};
use crate::{banks, context, hosts, load, options, whole};
use granule_llama::Placement;

/// What sums in another order move a logit by.
const ORDER: f64 = 2e-3;
/// One that makes hidden states and one that takes them, of the real model's 16.
const LAYERS: usize = 2;

#[test]
fn a_model_of_1b_says_what_one_device_says() {
    let dir = tempfile::tempdir().unwrap();
    let path = made(LAYERS, dir.path());
    let one = whole(&path);
    let options = options(96, 64, KvType::F16, KvType::F16);
    let told = Told::new(&mut context(&one, options), &mut context(&one, options), true, 6);
    for of in SHARES {
        let devices = hosts(of.len());
        let model =
            load(&path, Placement::new().split(&banks(&devices), shares(of), LAYERS), of.len()).unwrap();
        let mut ranks = context(&model, options);
        told.holds(&of, ORDER, |tokens| ranks.eval(tokens).unwrap().to_vec());
        let heads: Vec<usize> = model.stages().map(|stage| stage.rank.unwrap().kv_heads.len()).collect();
        let expected: &[usize] = match of {
            [1, 1] => &[4, 4],
            [3, 1] => &[6, 2],
            [1, 1, 1] => &[3, 3, 2],
            [1, 2, 5] => &[1, 2, 5],
            [1, 1, 1, 1] => &[2, 2, 2, 2],
            _ => &[4, 1, 2, 1],
        };
        assert_eq!(heads, expected, "{of:?}");
    }
}
