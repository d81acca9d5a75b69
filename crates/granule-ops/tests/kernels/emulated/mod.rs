//! The kernels by themselves, on the host's processor: the same `.cu` files through a C++ compiler.

mod activate;
mod cublas;
mod library;
mod matmul;
mod matvec;
mod planes;
mod prefill;
mod ranks;
mod rope;
mod sample;
mod weights;

use std::sync::LazyLock;

use granule_kernels::{PIECE_BYTES, TILE_BLOCKS};
use granule_ops::RowShape;
use granule_ops::compare::Difference;
use granule_sim::emulator_build::Mode;
use proptest::prelude::*;

use self::library::{Allowed, Emulated, Param};
use crate::machine::{Machine, Placed};
use crate::random::Random;
use crate::{exhaustive, properties};

static PLAIN: LazyLock<Emulated> = LazyLock::new(|| Emulated::build(Mode::Plain));
static CHECKED: LazyLock<Emulated> = LazyLock::new(|| Emulated::build(Mode::Checked));

/// Runs kernels with grids and thread orders of all kinds; on the checked library, each access has to be inside the memory
/// that the kernel was given.
struct Emulator {
    library: &'static Emulated,
    checked: bool,
    seed: u64,
}

impl Emulator {
    fn plain(seed: u64) -> Emulator {
        Emulator { library: &PLAIN, checked: false, seed }
    }

    fn checked(seed: u64) -> Emulator {
        Emulator { library: &CHECKED, checked: true, seed }
    }

    fn launch(&self, name: &str, grid: [usize; 2], memories: &[Allowed], params: &[Param]) {
        let grid = [grid[0] as u32, grid[1] as u32, 1];
        let mut random = Random(!self.seed);
        // Seed 0 is the order of the threads' numbers.
        let order = if random.below(4) == 0 { 0 } else { random.next() };
        let done = self.library.launch(name, grid, order, params, self.checked.then_some(memories));
        done.unwrap_or_else(|why| panic!("grid {grid:?}, order {order}: {why}"));
    }

    /// A thread block for each piece of work, or fewer, or more.
    fn grid(&self, work: usize, salt: u64) -> usize {
        let mut random = Random(self.seed ^ salt);
        match random.below(4) {
            0 => 1 + random.below(work.max(1)),
            1 => 2 * work.max(1),
            _ => work.max(1),
        }
    }

    fn rows(&self, name: &str, params: &[Param], shape: &RowShape, memories: &[Allowed]) {
        let blocks = shape.cols() / 32;
        let work = [Param::U64(shape.rows() as u64), Param::U64(blocks as u64)];
        // The flag, if there is one, is behind the rows and blocks.
        let (shapes, flag) = params.split_at(params.len() - usize::from(name.starts_with("quantize")));
        let tiles = blocks.div_ceil(TILE_BLOCKS as usize);
        let grid = [self.grid(tiles, 1), self.grid(shape.rows(), 2)];
        self.launch(name, grid, memories, &[shapes, &work, flag].concat());
    }
}

fn pointer(bytes: &[u8]) -> Param {
    Param::U64(bytes.as_ptr().expose_provenance() as u64)
}

fn pointer_mut(bytes: &mut [u8]) -> Param {
    Param::U64(bytes.as_mut_ptr().expose_provenance() as u64)
}

/// A pointer, a stride, and for planar rows the planes.
fn rows_params(start: Param, shape: &RowShape) -> Vec<Param> {
    let mut params = vec![start, Param::U64(shape.stride() as u64)];
    params.extend(
        shape.planes().into_iter().flat_map(|p| [Param::U64(p.quants as u64), Param::U64(p.scales as u64)]),
    );
    params
}

fn allowed(Param::U64(start): Param, len: usize, write: bool) -> Allowed {
    Allowed { start, len: len as u64, write }
}

fn layout(shape: &RowShape) -> &'static str {
    if shape.planes().is_some() { "_planar" } else { "" }
}

impl Machine for Emulator {
    fn quantize(&self, from: &Placed, x: &RowShape, to: &mut Placed, y: &RowShape) -> u32 {
        let mut flag = [0u8; 4];
        let (source, target, word) =
            (pointer(from.bytes()), pointer_mut(to.bytes_mut()), pointer_mut(&mut flag));
        let memories =
            [allowed(source, x.bytes(), false), allowed(target, y.bytes(), true), allowed(word, 4, true)];
        let params = [rows_params(source, x), rows_params(target, y), vec![word]].concat();
        let name = format!("quantize{}_{}_{}", layout(y), y.dtype(), x.dtype());
        self.rows(&name, &params, x, &memories);
        u32::from_le_bytes(flag)
    }

    fn dequantize(&self, from: &Placed, x: &RowShape, to: &mut Placed, y: &RowShape) {
        let (source, target) = (pointer(from.bytes()), pointer_mut(to.bytes_mut()));
        let memories = [allowed(source, x.bytes(), false), allowed(target, y.bytes(), true)];
        let name = format!("dequantize{}_{}_{}", layout(x), x.dtype(), y.dtype());
        self.rows(&name, &[rows_params(source, x), rows_params(target, y)].concat(), x, &memories);
    }

    fn relayout(&self, from: &Placed, x: &RowShape, to: &mut Placed, y: &RowShape) {
        let (source, target) = (pointer(from.bytes()), pointer_mut(to.bytes_mut()));
        let memories = [allowed(source, x.bytes(), false), allowed(target, y.bytes(), true)];
        let to_layout = if y.planes().is_some() { "planar" } else { "ggml" };
        let name = format!("relayout_{}_to_{to_layout}", x.dtype());
        self.rows(&name, &[rows_params(source, x), rows_params(target, y)].concat(), x, &memories);
    }

    fn fill(&self, to: &mut Placed, pattern: &[u8]) {
        let len = to.len();
        let target = pointer_mut(to.bytes_mut());
        let words: Vec<u8> = pattern.iter().copied().cycle().take(16).collect();
        let words = words.chunks(8).map(|word| Param::U64(u64::from_le_bytes(word.try_into().unwrap())));
        let params: Vec<_> = [target, Param::U64(len as u64)].into_iter().chain(words).collect();
        let grid = [self.grid(len.div_ceil(PIECE_BYTES as usize), 1), 1];
        self.launch("fill_bytes", grid, &[allowed(target, len, true)], &params);
    }

    fn compare(&self, a: &Placed, b: &Placed) -> Difference {
        let mut result = [0xa5u8; Difference::BYTES];
        let mut words: [u64; 2] = bytemuck::cast(result);
        let (a_at, b_at) = (pointer(a.bytes()), pointer(b.bytes()));
        let found = pointer_mut(bytemuck::cast_slice_mut(&mut words));
        let allow = [allowed(a_at, a.len(), false), allowed(b_at, b.len(), false), allowed(found, 16, true)];
        self.launch("compare_begin", [1, 1], &allow, &[found]);
        let grid = [self.grid(a.len().div_ceil(PIECE_BYTES as usize), 1), 1];
        self.launch("compare_bytes", grid, &allow, &[a_at, b_at, Param::U64(a.len() as u64), found]);
        result.copy_from_slice(bytemuck::cast_slice(&words));
        Difference::from_bytes(result)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn quantize_equals_the_reference(case in properties::case(300), seed: u64) {
        properties::quantize_equals_the_reference(&Emulator::plain(seed), &case);
    }

    #[test]
    fn dequantize_equals_the_reference(case in properties::case(300), seed: u64) {
        properties::dequantize_equals_the_reference(&Emulator::plain(seed), &case);
    }

    #[test]
    fn relayout_moves_every_byte(case in properties::case(300), seed: u64) {
        properties::relayout_moves_every_byte(&Emulator::plain(seed), &case);
    }

    #[test]
    fn fill_repeats_the_pattern(bytes in properties::bytes(), seed: u64) {
        properties::fill_repeats_the_pattern(&Emulator::plain(seed), bytes);
    }

    #[test]
    fn compare_counts_what_differs(bytes in properties::bytes(), seed: u64) {
        properties::compare_counts_what_differs(&Emulator::plain(seed), bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// No access outside the rows, no race, no missing barrier, nothing uninitialized: on short rows and on several tiles.
    #[test]
    fn every_access_is_inside_and_in_order(
        case in properties::case(129),
        bytes in properties::bytes(),
        seed: u64,
    ) {
        let machine = Emulator::checked(seed);
        properties::quantize_equals_the_reference(&machine, &case);
        properties::dequantize_equals_the_reference(&machine, &case);
        properties::relayout_moves_every_byte(&machine, &case);
        properties::fill_repeats_the_pattern(&machine, bytes);
        properties::compare_counts_what_differs(&machine, bytes);
    }
}

#[test]
fn every_block_there_is_dequantizes_to_the_reference() {
    exhaustive::every_scale_and_quant_dequantizes(&Emulator::plain(0), 1);
}

#[test]
fn every_scale_rounds_as_the_reference() {
    exhaustive::every_scale_rounds(&Emulator::plain(0), 1);
}

#[test]
fn every_half_is_read_as_the_reference() {
    exhaustive::every_half_is_read(&Emulator::plain(0), 1);
}

#[test]
fn an_access_outside_the_memory_is_found() {
    // The test of the test: memory that is said to be one byte shorter than it is.
    let mut to = Placed::new(64, 0);
    let target = pointer_mut(to.bytes_mut());
    let params = [target, Param::U64(64), Param::U64(0), Param::U64(0)];
    let run = |len| CHECKED.launch("fill_bytes", [1, 1, 1], 0, &params, Some(&[allowed(target, len, true)]));
    assert_eq!(run(64), Ok(()));
    let refused = run(63).unwrap_err();
    assert!(refused.contains("fill_bytes writes"), "{refused}");
}
