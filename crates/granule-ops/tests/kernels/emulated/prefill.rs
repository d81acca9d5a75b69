//! Attention on tensor cores in the emulator, against f64.

use granule_quant::DType;

use super::library::{Allowed, Emulated};
use super::{CHECKED, PLAIN};
use crate::prefill::{Prompt, Run, SINKS, Sequence, Shape, TYPES};

/// Rows of queries and tokens of a tile, elements of a head, as `attention_prefill.cu` has them.
const ROWS: usize = 128;
const KEYS: usize = 64;
const DIM: usize = 128;

fn type_number(dtype: DType) -> u32 {
    TYPES.iter().position(|&other| other == dtype).unwrap() as u32
}

/// Bytes of `struct AttentionPrefill`, `KvSequence` and so on: numbers behind each other.
#[derive(Default)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl Bytes {
    pub(super) fn u32(mut self, value: usize) -> Bytes {
        self.0.extend(u32::try_from(value).unwrap().to_le_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Bytes {
        self.0.extend(value.to_le_bytes());
        self
    }
}

pub(super) fn address<T>(x: &[T]) -> u64 {
    x.as_ptr().expose_provenance() as u64
}

fn shared_bytes(prompt: &Prompt) -> u32 {
    let tile = KEYS * DIM * 2;
    let raw = |dtype: DType| match dtype {
        DType::F16 => tile,
        dtype => KEYS * granule_quant::planar_bytes(dtype, prompt.shape.head_dim).unwrap().quants,
    };
    let (k, v) = (prompt.shape.k_type, prompt.shape.v_type);
    let converted = if k == DType::F16 && v == DType::F16 { 0 } else { tile };
    let head = (2 * ROWS + 8) * 4 + 2 * 256 * 2;
    (head + (ROWS * DIM * 2).max(converted + raw(k) + raw(v))) as u32
}

/// Runs the kernel; `seed` is the order of threads.
fn run(library: &Emulated, checked: bool, prompt: &Prompt, seed: u64) -> Vec<f32> {
    let shape = &prompt.shape;
    let mut sequences = Bytes::default();
    let mut segments = Bytes::default();
    let rope = prompt.rope();
    let (mut turns, mut first_segment, mut first_query) = (Vec::new(), 0, 0);
    for (sequence, memory) in shape.sequences.iter().zip(&prompt.memories) {
        let numbers = [first_segment, sequence.runs.len(), first_query, sequence.queries, sequence.rows(), 0];
        sequences = numbers.into_iter().fold(sequences.u64(address(memory)), Bytes::u32);
        let mut start = 0;
        for run in &sequence.runs {
            segments = segments.u32(run.row).u32(run.len).u32(start);
            segments.0.extend(run.turn.to_le_bytes());
            let at = turns.len();
            turns.resize(at + rope.dims(), 0f32);
            rope.turn(run.turn, &mut turns[at..]).unwrap();
            start += run.len;
        }
        first_segment += sequence.runs.len();
        first_query += sequence.queries;
    }
    let turned = shape.sequences.iter().flat_map(|s| &s.runs).any(|run| run.turn != 0);
    let mut out = vec![f32::NAN; prompt.q.len()];
    let out_at = out.as_mut_ptr().expose_provenance() as u64;
    let mut allowed = vec![
        (address(&sequences.0), sequences.0.len(), false),
        (address(&segments.0), segments.0.len(), false),
        (address(&prompt.q), prompt.q.len() * 4, false),
        (address(&turns), turns.len() * 4, false),
        (out_at, out.len() * 4, true),
    ];
    allowed.extend(prompt.memories.iter().map(|memory| (address(memory), memory.len() * 16, false)));
    let mut to =
        Bytes::default().u64(address(&sequences.0)).u64(address(&segments.0)).u64(address(&prompt.q));
    to = to.u64(if turned { address(&turns) } else { 0 });
    for which in 0..2 {
        let Some(folds) = &prompt.folds else {
            to = to.u64(0).u64(0).u64(0);
            continue;
        };
        for table in [folds[which].constants(), folds[which].scales(), folds[which].inverses()] {
            to = to.u64(address(table));
            allowed.push((address(table), size_of_val(table), false));
        }
    }
    to = to.u64(out_at).u64(prompt.row_stride as u64).u64(prompt.rows_at as u64);
    to = to.u32(prompt.sinks[0]).u32(prompt.sinks[1]);
    to = prompt.planes.iter().fold(to, |to, plane| to.u32(type_number(plane.dtype) as usize));
    to = prompt.planes.iter().fold(to, |to, plane| to.u32(plane.quants).u32(plane.scales));
    to = to.u32(shape.n_kv_heads).u32(shape.head_dim).u32(if shape.transform { SINKS } else { 0 });
    to = to.u32(prompt.rope_dims()).u32(shape.sequences.len()).u32(shape.n_heads());
    to.0.extend((prompt.scale * std::f32::consts::LOG2_E).to_le_bytes());
    to = to.u32(0);
    let longest = shape.sequences.iter().map(|s| (s.queries * shape.group).div_ceil(ROWS)).max().unwrap();
    let grid = [longest as u32, shape.n_kv_heads as u32, shape.sequences.len() as u32];
    let allowed: Vec<Allowed> =
        allowed.into_iter().map(|(start, len, write)| Allowed { start, len: len as u64, write }).collect();
    let shared = shared_bytes(prompt);
    let done = library.launch_struct(
        "attention_prefill",
        grid,
        shared,
        seed,
        &to.0,
        checked.then_some(&allowed[..]),
    );
    done.unwrap_or_else(|why| panic!("seed {seed}: {why}; {shape:?}"));
    out
}

/// Runs in the plain build and holds the result to f64; answers how much of the bound its errors take.
fn plain(shape: Shape, seed: u64) -> f64 {
    let prompt = Prompt::draw(shape, seed);
    prompt.check(&run(&PLAIN, false, &prompt, seed % 3))
}

/// Runs in the checked build: every access inside what the kernel was given and in order.
fn checked(shape: Shape, seed: u64) {
    let prompt = Prompt::draw(shape, seed);
    prompt.check(&run(&CHECKED, true, &prompt, seed));
}

#[test]
fn every_pair_of_types_at_both_head_dimensions() {
    for (i, (k, v)) in TYPES.iter().flat_map(|&k| TYPES.map(|v| (k, v))).enumerate() {
        for head_dim in [64, 128] {
            // The bound is for what rounding can do at worst; at random it does about a fiftieth of it.
            let worst = plain(Shape::new(k, v, head_dim), i as u64);
            assert!(worst < 0.1, "{k} {v} {head_dim}: {worst}");
        }
    }
}

#[test]
fn other_head_dimensions() {
    for (i, head_dim) in [8, 24, 32, 80, 96, 112].into_iter().enumerate() {
        let types = if head_dim % 32 == 0 { (DType::Q4_0, DType::Q8_0) } else { (DType::F16, DType::F32) };
        plain(Shape::new(types.0, types.1, head_dim), i as u64);
        plain(Shape { n_kv_heads: 3, group: 2, ..Shape::new(types.1, types.0, head_dim) }, i as u64);
    }
}

#[test]
fn every_group_and_lengths_around_tiles() {
    let types = [
        (DType::F16, DType::F16),
        (DType::Q8_0, DType::Q4_0),
        (DType::F16, DType::BF16),
        (DType::Q4_0, DType::F16),
    ];
    for (i, group) in [1, 3, 4, 8].into_iter().enumerate() {
        for (j, rows) in [1, 2, 63, 64, 65, 127, 128, 129].into_iter().enumerate() {
            let (k, v) = types[(i + j) % 4];
            // A prompt's end, up to all of it: what a tile of rows has, one less and one more.
            let queries = [rows, 1, (ROWS / group).min(rows), (ROWS / group + 1).min(rows)][(i + j / 2) % 4];
            let sequences = vec![Sequence::of(rows, queries)];
            let shape = Shape { group, n_kv_heads: 1 + j % 2, sequences, ..Shape::new(k, v, 64) };
            plain(shape, (i * 8 + j) as u64);
        }
    }
}

/// A sequence whose middle was removed and whose end moved twice, one that begins behind the sinks, one without queries'
/// worth of a tile, and one that is nothing but its query.
fn batch() -> Vec<Sequence> {
    let run = |row, len, turn| Run { row, len, turn };
    vec![
        Sequence {
            runs: vec![run(0, 37, 0), run(60, 65, -23), run(130, 1, -23), run(140, 9, 11)],
            queries: 12,
        },
        Sequence { runs: vec![run(2, 66, 0)], queries: 3 },
        Sequence { runs: vec![run(7, 0, 0), run(9, 5, 4)], queries: 5 },
        Sequence::of(1, 1),
    ]
}

#[test]
fn batches_of_sequences_in_segments_with_sinks_and_transforms() {
    for (i, (k, v)) in [
        (DType::Q4_0, DType::Q4_0),
        (DType::Q8_0, DType::Q4_0),
        (DType::F16, DType::Q4_0),
        (DType::Q4_0, DType::F16),
        (DType::F32, DType::BF16),
    ]
    .into_iter()
    .enumerate()
    {
        for transform in [false, true] {
            let head_dim = if i % 2 == 0 { 64 } else { 96 };
            let shape = Shape {
                n_kv_heads: 2,
                group: 2,
                sequences: batch(),
                transform,
                ..Shape::new(k, v, head_dim)
            };
            plain(shape, i as u64);
        }
    }
}

#[test]
fn no_value_is_lost_to_the_range_of_f16() {
    // Keys and values far beyond f16 and far below; larger tile by tile, so that each is measured anew; smaller again.
    let sizes: [fn(usize) -> (f32, f32); 7] = [
        |_| (1e30, 1e35),
        |_| (1e-20, 1e-12),
        |row| (1.0, 10f32.powi(row as i32 / 40 * 6)),
        |row| (10f32.powi(row as i32 / 64 * 7), 1e5),
        |row| (if row < 64 { 1e9 } else { 1.0 }, if row < 64 { 1.0 } else { 1e-5 }),
        // Beyond f32 with the power of two that the first tile had.
        |row| (if row < 64 { 1e-16 } else { 1e21 }, if row < 128 { 1.0 } else { 1e36 }),
        |row| (1.0, if row < 64 { 1e-16 } else { 1e21 }),
    ];
    for (i, sizes) in sizes.into_iter().enumerate() {
        for (k, v) in [(DType::F32, DType::F32), (DType::BF16, DType::F32), (DType::F16, DType::BF16)] {
            let most = (0..190).map(|row| (sizes)(row).0).fold(0.0, f32::max);
            if k == DType::F16 && most > 1e4 {
                continue;
            }
            let sequences = vec![Sequence::of(190, 7)];
            let mut prompt = Prompt::draw(Shape { sizes, sequences, ..Shape::new(k, v, 64) }, i as u64);
            // Scores of a size that leaves more than one key a weight.
            prompt.scale /= most;
            prompt.check(&run(&PLAIN, false, &prompt, 1));
        }
    }
    // Blocks of whatever scale f16 has: elements up to 8 million.
    for (k, v) in [(DType::Q8_0, DType::Q8_0), (DType::Q4_0, DType::Q8_0)] {
        let sizes = |_| (64.0 * 6e4 / 16.0, 64.0 * 6e4);
        let mut prompt = Prompt::draw(Shape { sizes, ..Shape::new(k, v, 64) }, 9);
        prompt.scale /= 64.0 * 6e4 / 16.0;
        prompt.check(&run(&PLAIN, false, &prompt, 0));
    }
}

#[test]
fn every_access_is_inside_and_in_order() {
    let pairs = [
        (DType::Q4_0, DType::Q8_0),
        (DType::F16, DType::F16),
        (DType::F32, DType::Q4_0),
        (DType::BF16, DType::F16),
        (DType::F16, DType::Q8_0),
    ];
    for (i, (k, v)) in pairs.into_iter().enumerate() {
        let sequences = vec![Sequence::of(129 + i, 5)];
        checked(Shape { n_kv_heads: 2, sequences, ..Shape::new(k, v, [64, 128][i % 2]) }, i as u64);
        let shape = Shape { sequences: batch(), transform: i % 2 == 0, group: 1, ..Shape::new(k, v, 32) };
        checked(shape, 10 + i as u64);
    }
    // Two tiles of rows, and one measured anew.
    let sizes = |row: usize| (1.0, 10f32.powi(row as i32 / 64 * 6));
    let sequences = vec![Sequence::of(130, 130)];
    checked(Shape { group: 1, sizes, sequences, ..Shape::new(DType::Q4_0, DType::F32, 32) }, 3);
}

#[test]
fn a_row_that_is_not_there_is_found() {
    // The test of the test: a table that says one row more than the memory has.
    let mut prompt = Prompt::draw(Shape::new(DType::Q8_0, DType::F16, 64), 1);
    prompt.memories[0].truncate((70 * prompt.row_stride - 64) / 16);
    let refused = std::panic::catch_unwind(|| run(&CHECKED, true, &prompt, 0)).unwrap_err();
    let said = refused.downcast_ref::<String>().unwrap();
    assert!(said.contains("reads 16 bytes"), "{said}");
}
