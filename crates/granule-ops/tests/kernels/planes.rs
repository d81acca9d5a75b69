//! Weights into planes, and rows out of them: what the kernels have to give, said by the host's codec of granule-quant.

use granule_ops::pack_weights::WeightRows;
use granule_quant::{DType, WeightPlanes, decode, pack_planes, pack_planes_rows};

use crate::random::Random;

/// What bytes are before anything is packed.
const UNTOUCHED: u8 = 0xa5;

/// What packs weights.
pub(crate) trait Packer {
    /// `from` begins `past` (even) bytes past a multiple of 16.
    fn pack(&self, weights: &WeightRows, from: &[u8], past: usize, to: &mut [u8]);
}

/// What reads rows of them.
pub(crate) trait Embedder {
    fn embed(&self, shape: &WeightRows, table: &[u8], ids: &[u32], out: &mut [f32]);
}

/// Rows and columns, a run, a block or a row at a time and more than a thread block has threads; and pieces of the rows.
fn shapes(dtype: DType) -> Vec<WeightRows> {
    let columns = match dtype {
        DType::F32 | DType::F16 | DType::BF16 => [1, 7, 8, 531],
        _ if dtype.block_len() == 32 => [32, 96, 160, 32 * 101],
        _ => [256, 256, 512, 256 * 13],
    };
    let [a, b, c, d] = columns;
    let of = |rows, cols, piece| WeightRows { dtype, rows, cols, piece };
    vec![
        of(1, a, 0..1),
        of(5, b, 2..3),
        of(7, c, 3..7),
        of(3, d, 0..3),
        of(4, d, 1..4),
        of(9, b, 0..9),
        of(2, c, 1..1),
        of(3, 0, 0..3),
    ]
}

/// Any bytes.
fn bytes(n: usize, random: &mut Random) -> Vec<u8> {
    (0..n).map(|_| random.next() as u8).collect()
}

fn row_bytes(shape: &WeightRows) -> usize {
    shape.dtype.row_bytes(shape.cols).unwrap()
}

fn check_pack(machine: &impl Packer, shape: &WeightRows, from: &[u8], past: usize) {
    let WeightRows { dtype, rows, cols, ref piece } = *shape;
    let mut expected = vec![UNTOUCHED; WeightPlanes::of(dtype, rows, cols).unwrap().bytes];
    let mut got = expected.clone();
    pack_planes_rows(dtype, rows, cols, piece.clone(), from, &mut expected).unwrap();
    machine.pack(shape, from, past, &mut got);
    let differs = got.iter().zip(&expected).position(|(got, expected)| got != expected);
    assert_eq!(differs, None, "{shape:?}, from {past}: {:?}", WeightPlanes::of(dtype, rows, cols));
}

/// Every type, odd numbers of rows, pieces of rows, at even addresses.
pub(crate) fn packing_is_the_hosts(machine: &impl Packer, seed: u64) {
    let mut random = Random(seed);
    for &dtype in DType::ALL {
        for (i, shape) in shapes(dtype).into_iter().enumerate() {
            let from = bytes(shape.piece.len() * row_bytes(&shape), &mut random);
            check_pack(machine, &shape, &from, 2 * ((i as u64 + seed) % 8) as usize);
        }
    }
}

/// Rows that begin at multiples of 16 and such that do not, as long as pieces of 16 bytes.
pub(crate) fn floats_that_are_aligned_are_packed(machine: &impl Packer) {
    for (dtype, cols) in [(DType::F32, 64), (DType::F16, 64), (DType::BF16, 24)] {
        for past in [0, 2] {
            let shape = WeightRows::all(dtype, 5, cols);
            let from = bytes(5 * row_bytes(&shape), &mut Random(3));
            check_pack(machine, &shape, &from, past);
        }
    }
}

/// `IQ2_XXS`: each of the 256 points, with signs of all kinds.
pub(crate) fn every_point_is_packed(machine: &impl Packer) {
    let shape = WeightRows::all(DType::IQ2_XXS, 4, 4 * 256);
    let mut from = bytes(4 * row_bytes(&shape), &mut Random(5));
    for (i, block) in from.chunks_mut(66).enumerate() {
        for (k, run) in block[2..].chunks_mut(8).enumerate() {
            // 16 blocks of 32 points: each twice.
            (0..4).for_each(|n| run[n] = (32 * i + 4 * k + n) as u8);
        }
    }
    check_pack(machine, &shape, &from, 0);
}

/// Rows in any order, more than once, and such as there are not.
pub(crate) fn embedding_is_decoding(machine: &impl Embedder, seed: u64) {
    let mut random = Random(!seed);
    for &dtype in DType::ALL {
        for mut shape in shapes(dtype) {
            let WeightRows { rows, cols, .. } = shape;
            shape.piece = 0..rows;
            let ggml = bytes(rows * row_bytes(&shape), &mut random);
            let mut table = vec![UNTOUCHED; WeightPlanes::of(dtype, rows, cols).unwrap().bytes];
            pack_planes(dtype, rows, cols, &ggml, &mut table).unwrap();
            let mut ids: Vec<u32> = (0..random.below(6)).map(|_| random.below(rows) as u32).collect();
            ids.extend([rows as u32, rows as u32 - 1, u32::MAX]);
            let mut out = vec![1.0; ids.len() * cols];
            machine.embed(&shape, &table, &ids, &mut out);
            let mut expected = vec![f32::NAN; cols];
            for (i, &id) in ids.iter().enumerate() {
                expected.fill(f32::NAN);
                if let Some(row) = ggml.chunks(row_bytes(&shape).max(1)).nth(id as usize) {
                    decode(dtype, row, &mut expected).unwrap();
                }
                let got = &out[i * cols..][..cols];
                let differs = got.iter().zip(&expected).position(|(got, expected)| {
                    got.to_bits() != expected.to_bits() && !(got.is_nan() && expected.is_nan())
                });
                assert_eq!(differs, None, "{shape:?}, id {id}");
            }
        }
    }
}
