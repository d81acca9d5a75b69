//! The covering set, a test for each row: the host's greedy tokens and logits, whatever the types, wherever the layers are, however
//! the steps are given; and nothing left behind.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;

use granule_bank::{Bank, BankOptions};
use granule_device::{Device, LiveCounts, cuda_devices};
use granule_kv::KvType;
use granule_llama::{Context, ContextOptions, LoadOptions, Model, Placement, Precision};
use granule_quant::DType;

use super::{distance, load_on, options};
use crate::covering::{Row, Split, product, rows};
use crate::tales::{LAYERS, Told, WRITTEN, tales_of};

/// How far logits may be from the host's, in units of their root mean square, where keys and values are stored exactly: tokens alone
/// are computed with 16 bits of an activation in two terms, prompts with f16.
fn computed(row: &Row) -> f64 {
    if row.batch { 1e-2 } else { 2e-3 }
}

/// How far logits may be where both attend to the same bytes, but for the token's own.
const SAME_BYTES: f64 = 1e-2;

/// The model of a row on the host, and where the row has it.
struct Models {
    /// What they are models of.
    of: (DType, Split, usize),
    host: Arc<Model>,
    there: Arc<Model>,
}

impl Models {
    fn of(row: &Row) -> Models {
        let dir = tempfile::tempdir().unwrap();
        let path = tales_of(row.weights, dir.path());
        let host = load_on(Device::host().unwrap(), &path);
        Models { of: (row.weights, row.split, row.boundary), host, there: placed(row, &path) }
    }

    fn are_of(&self, row: &Row) -> bool {
        self.of == (row.weights, row.split, row.boundary)
    }

    /// The row's configuration beside the host's, step by step, both with the host's tokens; and once more from the host's state.
    #[track_caller]
    fn compute(&self, row: &Row) {
        let Row { graphs, transform: kv_transform, .. } = *row;
        let options = ContextOptions { graphs, kv_transform, ..options(64, 32, row.k, row.v) };
        let mut host = Context::new(Arc::clone(&self.host), options).unwrap();
        let mut there = Context::new(Arc::clone(&self.there), options).unwrap();
        let exact = ContextOptions { type_k: KvType::F16, type_v: KvType::F16, ..options };
        let mut exact = Context::new(Arc::clone(&self.host), exact).unwrap();
        let told = Told::new(&mut host, &mut exact, row.batch, WRITTEN);
        told.holds(row, computed(row), |tokens| there.eval(tokens).unwrap().to_vec());
        // The host's rows, and the tables of its transform: then nothing was rounded to different sides.
        let state = tempfile::NamedTempFile::new().unwrap();
        host.save_state(state.path()).unwrap();
        there.load_state(state.path()).unwrap();
        let far = distance(there.eval(&[told.next]).unwrap(), host.eval(&[told.next]).unwrap());
        assert!(far <= SAME_BYTES, "{row:?}: with the host's rows logits are {far} off");
    }
}

/// The row's model where the row has it.
fn placed(row: &Row, path: &Path) -> Arc<Model> {
    let [before, behind] = row.split.devices().map(|device| Bank::new(device, BankOptions::new()).unwrap());
    let placement = Placement::new().layers(&before, row.boundary).layers(&behind, LAYERS - row.boundary);
    let threads = NonZeroUsize::new(1);
    let precision = Precision::Precise;
    let options = LoadOptions { placement: Some(placement), threads, precision, ..LoadOptions::default() };
    let model = Model::load(path, options).unwrap();
    let stages = [(before, 0..row.boundary), (behind, row.boundary..LAYERS)];
    let stages = stages.iter().filter(|(_, layers)| !layers.is_empty());
    let stages = stages.map(|(bank, layers)| (bank.device().name().to_owned(), layers.clone()));
    assert!(model.stages().map(|stage| (stage.device.to_owned(), stage.layers)).eq(stages));
    model
}

impl Split {
    /// The devices before and behind the boundary. Where there is one GPU, it is both: with two banks, which have nothing in common.
    fn devices(self) -> [Device; 2] {
        let host = || Device::host().unwrap();
        let gpu = |n: usize| Device::cuda(n.min(cuda_devices().unwrap().len() - 1)).unwrap();
        match self {
            Split::HostThenGpu => [host(), gpu(0)],
            Split::GpuThenHost => [gpu(0), host()],
            Split::GpuThenGpu => [gpu(0), gpu(1)],
        }
    }
}

/// Computes some rows; nothing is left of them.
#[track_caller]
fn compute<'a>(rows: impl IntoIterator<Item = &'a Row>) {
    let mut models: Option<Models> = None;
    for row in rows {
        let same = models.take().filter(|models| models.are_of(row));
        models.insert(same.unwrap_or_else(|| Models::of(row))).compute(row);
    }
    drop(models);
    for gpu in 0..cuda_devices().unwrap().len() {
        assert_eq!(Device::cuda(gpu).unwrap().live(), LiveCounts::default());
    }
}

macro_rules! tests {
    ($($name:ident $row:literal)*) => {
        /// The rows that have their tests here.
        pub(crate) const ROWS: &[usize] = &[$($row),*];
        $(
            #[test]
            #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
            fn $name() {
                super::compute(&super::rows()[$row..=$row]);
            }
        )*
    };
}

/// What runs always.
pub(crate) mod short {
    tests! {
        row_000 0 row_001 1 row_002 2 row_003 3 row_004 4 row_005 5
        row_006 6 row_007 7 row_008 8 row_009 9 row_010 10 row_011 11
        row_012 12 row_013 13 row_014 14 row_015 15
    }
}

/// What runs where all is asked for.
pub(crate) mod rest {
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
        row_094 94 row_095 95 row_096 96 row_097 97 row_098 98 row_099 99
        row_100 100 row_101 101 row_102 102 row_103 103 row_104 104 row_105 105
        row_106 106 row_107 107 row_108 108 row_109 109 row_110 110 row_111 111
    }
}

/// One of GRANULE_PRODUCT_ONE_OF configurations of part GRANULE_PRODUCT_PART ("3/20") of the product; `cargo xtask test --product`
/// says which.
#[test]
#[ignore = "takes days; cargo xtask test --product runs it"]
fn product_part() {
    let told = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let part = told("GRANULE_PRODUCT_PART");
    let (part, parts) = part.split_once('/').unwrap();
    let (part, parts): (usize, usize) = (part.parse().unwrap(), parts.parse().unwrap());
    let one_of: u64 = told("GRANULE_PRODUCT_ONE_OF").parse().unwrap();
    let all = product();
    // Spread, so that every value has its share.
    let taken = |i: usize| ((i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).is_multiple_of(one_of);
    let range = part * all.len() / parts..(part + 1) * all.len() / parts;
    compute(range.filter(|&i| taken(i)).map(|i| &all[i]));
}
