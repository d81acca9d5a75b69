//! Products with several columns: weights are repacked, a panel at a time, so that a register holds the same four
//! elements of 8 rows, and sums never have to be added across lanes.
//!
//! ```text
//! register j of a block | row 0: 4j..4j+4 | row 1: 4j..4j+4 | ... | row 7: 4j..4j+4 |     j = 0..8
//! ```
//!
//! A panel is 8 rows by [`PANEL`] blocks. It fits the first-level cache together with the activations that meet it, and
//! is used for [`COLS`] columns before the next one is made.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::LANES;
use super::float::{F32, load_part, store_part};
use super::tile::{self, Quants};
use crate::x86::prefetch_line;
use crate::{QuantizedMatrix, gemm::Tile};

/// Blocks along k in a panel.
const PANEL: usize = 32;
/// Columns that a panel is used for.
const COLS: usize = 128;
/// Columns of the innermost kernel: their sums, integer and float, and what they are multiplied with fit the register
/// file.
const STEP: usize = 4;

/// One block of 8 rows.
#[derive(Clone, Copy)]
struct Block {
    /// Signed quants or nibbles, as drawn above.
    q: [__m256i; 8],
    /// Scale of each row.
    d: __m256,
    /// Minimum of each row; unset for types without.
    m: MaybeUninit<__m256>,
}

/// What the kernel needs of the activations of one block beside their quants, for each of [`STEP`] columns.
#[derive(Clone, Copy)]
struct Column {
    /// What is added to the integer sum: minus what raised quants add to it.
    start: [i32; STEP],
    d: [f32; STEP],
    s: [f32; STEP],
}

/// Fills `out` (weight rows x activation rows) with the product of quantized weights and activations; the lengths are
/// right and no extent is zero.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn gemm<Q: Quants>(w: &[u8], x: &QuantizedMatrix<'_>, out: &mut Tile<'_>) {
    let mut panel = [const { MaybeUninit::<Block>::uninit() }; PANEL];
    let mut columns = [const { [const { MaybeUninit::<Column>::uninit() }; PANEL] }; COLS / STEP];
    let row_bytes = w.len() / out.rows();
    let blocks = row_bytes / Q::BYTES;
    for c0 in (0..out.cols()).step_by(COLS) {
        let cols = COLS.min(out.cols() - c0);
        for b0 in (0..blocks).step_by(PANEL) {
            let n = PANEL.min(blocks - b0);
            for (g, columns) in columns.iter_mut().enumerate().take(cols.div_ceil(STEP)) {
                prepare::<Q>(x, c0 + g * STEP, b0, &mut columns[..n]);
            }
            for r0 in (0..out.rows()).step_by(LANES) {
                let mut rows = [w.as_ptr(); LANES];
                for (i, row) in rows.iter_mut().enumerate() {
                    // Rows that are not there repeat the last one; what comes of them is not stored.
                    let r = (r0 + i).min(out.rows() - 1);
                    *row = w[r * row_bytes + b0 * Q::BYTES..][..n * Q::BYTES].as_ptr();
                }
                for (b, block) in panel.iter_mut().enumerate().take(n) {
                    // The next rows' share, since 8 streams are more than the hardware follows.
                    for row in rows {
                        prefetch_line(row.wrapping_add(LANES * row_bytes + b * Q::BYTES));
                    }
                    // SAFETY: each row has `n` blocks from its pointer on.
                    block.write(unsafe { pack::<Q>(rows, b * Q::BYTES) });
                }
                // SAFETY: the first `n` blocks were just written.
                let panel = unsafe { written(&panel[..n]) };
                for (g, columns) in columns.iter().enumerate().take(cols.div_ceil(STEP)) {
                    // SAFETY: the first `n` of these groups of columns were written above.
                    let columns = unsafe { written(&columns[..n]) };
                    let mut part = Part { x, out: &mut *out, r: r0, c: c0 + g * STEP, b: b0 };
                    match cols - g * STEP {
                        STEP.. => part.multiply::<Q, STEP>(panel, columns, 0),
                        left => part.multiply_few::<Q>(panel, columns, left),
                    }
                }
            }
        }
    }
}

/// The elements of a slice all of which are written.
///
/// # Safety
/// - Every element of `slice` has been written.
unsafe fn written<T>(slice: &[MaybeUninit<T>]) -> &[T] {
    // SAFETY: `MaybeUninit<T>` has the layout of `T`, and the caller vouches for the values.
    unsafe { std::slice::from_raw_parts(slice.as_ptr().cast(), slice.len()) }
}

/// As [`written`].
///
/// # Safety
/// - Every element of `slice` has been written.
unsafe fn written_mut<T>(slice: &mut [MaybeUninit<T>]) -> &mut [T] {
    // SAFETY: as in `written`, and the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(slice.as_mut_ptr().cast(), slice.len()) }
}

/// Blocks `b` and on of columns `c` to `c + STEP`; zeros for columns that are not there.
#[target_feature(enable = "avx2,fma,f16c")]
fn prepare<Q: Quants>(x: &QuantizedMatrix<'_>, c: usize, b: usize, columns: &mut [MaybeUninit<Column>]) {
    let zeros = Column { start: [0; STEP], d: [0.0; STEP], s: [0.0; STEP] };
    for column in &mut *columns {
        column.write(zeros);
    }
    // SAFETY: all of them were just written.
    let columns = unsafe { written_mut(columns) };
    for i in 0..STEP.min(x.rows() - c) {
        let row = x.row(c + i);
        for ((column, &d), &s) in columns.iter_mut().zip(&row.d[b..]).zip(&row.s[b..]) {
            (column.d[i], column.s[i]) = (d, s);
        }
        if Q::RAISED == 0 {
            continue;
        }
        for (column, q) in columns.iter_mut().zip(&row.q.as_chunks::<32>().0[b..]) {
            // SAFETY: 32 bytes are readable; no alignment is asked for.
            let q = unsafe { _mm256_loadu_si256(q.as_ptr().cast()) };
            let sum = super::sum_i32(tile::pairs(_mm256_maddubs_epi16(_mm256_set1_epi8(Q::RAISED), q)));
            column.start[i] = -sum;
        }
    }
}

/// Four dwords of the 8 rows as four registers: register `j` has dword `j` of every row, in the order of the rows.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - 16 bytes at `offset` from each of `rows` are readable.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn transpose(rows: [*const u8; LANES], offset: usize) -> [__m256i; 4] {
    let mut quads = [_mm256_setzero_si256(); 4];
    for (i, quad) in quads.iter_mut().enumerate() {
        // SAFETY: the caller vouches for the bytes.
        let row = |r: usize| unsafe { _mm_loadu_si128(rows[r].add(offset).cast()) };
        *quad = _mm256_set_m128i(row(i + 4), row(i));
    }
    let [a, b, c, d] = quads;
    let (ab_lo, ab_hi) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let (cd_lo, cd_hi) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
    [
        _mm256_unpacklo_epi64(ab_lo, cd_lo),
        _mm256_unpackhi_epi64(ab_lo, cd_lo),
        _mm256_unpacklo_epi64(ab_hi, cd_hi),
        _mm256_unpackhi_epi64(ab_hi, cd_hi),
    ]
}

/// The f16 numbers `offset` bytes behind each of `rows`.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - Two bytes at `offset` from each of `rows` are readable.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn gather_f16(rows: [*const u8; LANES], offset: usize) -> __m256 {
    let mut bits = [0_u16; LANES];
    for (bits, row) in bits.iter_mut().zip(rows) {
        // SAFETY: the caller vouches for the bytes.
        *bits = unsafe { row.add(offset).cast::<u16>().read_unaligned() };
    }
    // SAFETY: the array has 16 bytes.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(bits.as_ptr().cast()) })
}

/// Packs the block that lies `offset` bytes behind each of `rows`.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - A block's bytes at `offset` from each of `rows` are readable.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn pack<Q: Quants>(rows: [*const u8; LANES], offset: usize) -> Block {
    // SAFETY: scale, minimum and quants lie in the block as its type says.
    unsafe {
        let d = gather_f16(rows, offset);
        let mut m = MaybeUninit::uninit();
        let mut quants = offset + 2;
        if Q::MIN {
            m.write(gather_f16(rows, offset + 2));
            quants += 2;
        }
        let lo = transpose(rows, quants);
        let (lo, hi) = if Q::NIBBLES {
            let mask = _mm256_set1_epi8(15);
            let hi = lo.map(|q| _mm256_and_si256(_mm256_srli_epi16::<4>(q), mask));
            (lo.map(|q| _mm256_and_si256(q, mask)), hi)
        } else {
            (lo, transpose(rows, quants + 16))
        };
        Block { q: [lo[0], lo[1], lo[2], lo[3], hi[0], hi[1], hi[2], hi[3]], d, m }
    }
}

/// One panel's share of 8 rows of the output.
struct Part<'a, 'o, 'x> {
    x: &'a QuantizedMatrix<'x>,
    out: &'a mut Tile<'o>,
    /// First row.
    r: usize,
    /// First column.
    c: usize,
    /// First block along k; the first panel sets the output, the others add to it.
    b: usize,
}

impl Part<'_, '_, '_> {
    /// Multiplies the panel with the first `n` of the columns, fewer than [`STEP`].
    #[target_feature(enable = "avx2,fma,f16c")]
    fn multiply_few<Q: Quants>(&mut self, panel: &[Block], columns: &[Column], n: usize) {
        if n & 2 != 0 {
            self.multiply::<Q, 2>(panel, columns, 0);
        }
        if n & 1 != 0 {
            self.multiply::<Q, 1>(panel, columns, n - 1);
        }
    }

    /// Multiplies the panel with columns `at` to `at + N` of its group.
    #[target_feature(enable = "avx2,fma,f16c")]
    fn multiply<Q: Quants, const N: usize>(&mut self, panel: &[Block], columns: &[Column], at: usize) {
        let mut q = [self.x.as_row().q.as_ptr(); N];
        for (i, q) in q.iter_mut().enumerate() {
            *q = self.x.row(self.c + at + i).q[self.b * 32..][..panel.len() * 32].as_ptr();
        }
        let mut sums = [_mm256_setzero_ps(); N];
        for (b, (block, column)) in panel.iter().zip(columns).enumerate() {
            // SAFETY: block `b` is below `panel.len()`, and 32 bytes of each column are readable from there.
            let products = unsafe { products::<Q, N>(&block.q, q.map(|q| q.add(b * 32))) };
            for c in 0..N {
                let product = _mm256_add_epi32(products[c], _mm256_set1_epi32(column.start[at + c]));
                let scale = _mm256_mul_ps(block.d, _mm256_set1_ps(column.d[at + c]));
                sums[c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), scale, sums[c]);
                if Q::MIN {
                    // SAFETY: `pack` has set the minimum of a type that has one.
                    let m = unsafe { block.m.assume_init() };
                    sums[c] = _mm256_fmadd_ps(m, _mm256_set1_ps(column.s[at + c]), sums[c]);
                }
            }
        }
        for (c, sum) in sums.into_iter().enumerate() {
            let out = &mut self.out.column(self.c + at + c)[self.r..];
            let out = bytemuck::cast_slice_mut(out.split_at_mut(LANES.min(out.len())).0);
            let before = if self.b == 0 { _mm256_setzero_ps() } else { load_part::<F32>(out) };
            store_part::<F32>(out, _mm256_add_ps(before, sum));
        }
    }
}

/// Products of the block's rows with the 32 quants at each of `x`.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - 32 bytes at each of `x` are readable.
#[target_feature(enable = "avx2,fma,f16c")]
#[inline]
unsafe fn products<Q: Quants, const N: usize>(q: &[__m256i; 8], x: [*const i8; N]) -> [__m256i; N] {
    let mut sums = [_mm256_setzero_si256(); N];
    for (j, &q) in q.iter().enumerate() {
        for c in 0..N {
            // SAFETY: `j` is below 8, so the four bytes are among the 32.
            let x = _mm256_set1_epi32(unsafe { x[c].add(j * 4).cast::<i32>().read_unaligned() });
            sums[c] = if Q::NIBBLES {
                // At most 2 * 15 * 127 in each of eight steps: it fits 16 bits.
                _mm256_add_epi16(sums[c], _mm256_maddubs_epi16(q, x))
            } else {
                _mm256_add_epi32(sums[c], tile::pairs(tile::signed_products(q, x)))
            };
        }
    }
    if Q::NIBBLES { sums.map(|sum| tile::pairs(sum)) } else { sums }
}
