//! Packing weights and embedding in the emulator.

use granule_ops::pack_weights::WeightRows;
use granule_quant::{BLOCK_LEN, WeightPlanes};

use super::library::{Allowed, Param};
use super::{Emulator, allowed, pointer, pointer_mut};
use crate::machine::Placed;
use crate::planes::{self, Embedder, Packer};

/// Threads of a thread block.
const THREADS: usize = granule_kernels::THREADS as usize;

fn numbers<const N: usize>(numbers: [usize; N]) -> [Param; N] {
    numbers.map(|number| Param::U64(number as u64))
}

impl Emulator {
    fn threads(&self, name: &str, shape: [usize; 2], memories: &[Allowed], params: &[Param]) {
        let [rows, count] = shape;
        let grid = [self.grid(count.div_ceil(THREADS), 3), self.grid(rows, 4)];
        self.launch(name, grid, memories, params);
    }
}

impl Packer for Emulator {
    fn pack(&self, weights: &WeightRows, from: &[u8], past: usize, to: &mut [u8]) {
        let WeightRows { dtype, rows, cols, ref piece } = *weights;
        let (from, mut placed) = (Placed::of(from, past), Placed::of(to, 0));
        let (source, target) = (pointer(from.bytes()), pointer_mut(placed.bytes_mut()));
        let memories = [allowed(source, from.len(), false), allowed(target, placed.len(), true)];
        if dtype.is_quantized() {
            let at = WeightPlanes::of(dtype, rows, cols).unwrap();
            let of_row = cols / dtype.block_len();
            let work = numbers([at.high, at.scales, at.d, piece.start * of_row, piece.len() * of_row]);
            let params = [&[source, target], &work[..]].concat();
            let runs = piece.len() * cols / BLOCK_LEN;
            self.threads(&format!("pack_weights_{dtype}"), [1, runs], &memories, &params);
        } else {
            let bytes = dtype.row_bytes(cols).unwrap();
            let work = numbers([piece.start, piece.len(), bytes]);
            let params = [&[source, target], &work[..]].concat();
            self.threads("pack_weights_floats", [piece.len(), bytes.div_ceil(16)], &memories, &params);
        }
        to.copy_from_slice(placed.bytes());
    }
}

impl Embedder for Emulator {
    fn embed(&self, shape: &WeightRows, table: &[u8], ids: &[u32], out: &mut [f32]) {
        let WeightRows { dtype, rows, cols, .. } = *shape;
        let (table, ids_placed) = (Placed::of(table, 0), Placed::of(bytemuck::cast_slice(ids), 4));
        let mut placed = Placed::of(bytemuck::cast_slice(out), 0);
        let (source, words, target) =
            (pointer(table.bytes()), pointer(ids_placed.bytes()), pointer_mut(placed.bytes_mut()));
        let memories = [
            allowed(source, table.len(), false),
            allowed(words, ids_placed.len(), false),
            allowed(target, placed.len(), true),
        ];
        let at = WeightPlanes::of(dtype, rows, cols).unwrap();
        let planes = numbers([at.high, at.scales, at.d]);
        let (planes, of_row, each) =
            if dtype.is_quantized() { (&planes[..], cols / BLOCK_LEN, 4) } else { (&planes[..0], cols, 1) };
        let [rows, tokens, of_row] = numbers([rows, ids.len(), of_row]);
        let params = [&[source], planes, &[rows, words, target, tokens, of_row]].concat();
        self.threads(&format!("embed_{dtype}"), [ids.len(), cols / each], &memories, &params);
        out.copy_from_slice(bytemuck::cast_slice(placed.bytes()));
    }
}

#[test]
fn packing_stays_inside_and_is_the_hosts() {
    planes::packing_is_the_hosts(&Emulator::checked(1), 1);
    planes::floats_that_are_aligned_are_packed(&Emulator::checked(2));
    for seed in 2..8 {
        planes::packing_is_the_hosts(&Emulator::plain(seed), seed);
        planes::floats_that_are_aligned_are_packed(&Emulator::plain(seed));
    }
}

#[test]
fn every_point_is_packed() {
    planes::every_point_is_packed(&Emulator::plain(1));
}

#[test]
fn embedding_stays_inside_and_is_decoding() {
    planes::embedding_is_decoding(&Emulator::checked(1), 1);
    (2..6).for_each(|seed| planes::embedding_is_decoding(&Emulator::plain(seed), seed));
}
