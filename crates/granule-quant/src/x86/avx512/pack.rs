//! Products with several columns: weights are repacked, a panel at a time, so that a register holds the same four
//! elements of 16 rows, and one `vpdpbusd` adds four products to 16 sums that never have to be added across lanes.
//!
//! ```text
//! register j of a block | row 0: 4j..4j+4 | row 1: 4j..4j+4 | ... | row 15: 4j..4j+4 |     j = 0..8
//! ```
//!
//! A panel is 16 rows by [`PANEL`] blocks, raised to unsigned bytes. It fits the first-level cache together with the
//! activations that meet it, and is used for [`COLS`] columns before the next one is made.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::tile::Quants;
use super::{LANES, first};
use crate::x86::prefetch_line;
use crate::{QuantizedMatrix, gemm::Tile};

/// Blocks along k in a panel.
const PANEL: usize = 32;
/// Columns that a panel is used for.
const COLS: usize = 128;
/// Columns of the innermost kernel: their sums, integer and float, and a block's eight registers of weights fit the
/// register file.
const STEP: usize = 8;

/// One block of 16 rows.
#[derive(Clone, Copy)]
struct Block {
    /// Raised quants, as drawn above.
    q: [__m512i; 8],
    /// Scale of each row.
    d: __m512,
    /// Minimum of each row; unset for types without.
    m: MaybeUninit<__m512>,
}

/// What the kernel needs of the activations of one block beside their quants, for each of [`STEP`] columns.
#[derive(Clone, Copy)]
struct Column {
    /// Where the integer sum starts: minus what raised quants add to it.
    start: [i32; STEP],
    d: [f32; STEP],
    s: [f32; STEP],
}

/// Fills `out` (weight rows x activation rows) with the product of quantized weights and activations; the lengths are
/// right and no extent is zero.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
                    // The next rows' share, since 16 streams are more than the hardware follows.
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
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
            let sums =
                _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(Q::RAISED.cast_signed()), q);
            let half = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            let quarter = _mm_add_epi32(half, _mm_shuffle_epi32::<0b0000_1110>(half));
            let sum = _mm_cvtsi128_si32(_mm_add_epi32(quarter, _mm_shuffle_epi32::<0b0000_0001>(quarter)));
            column.start[i] = -sum;
        }
    }
}

/// Four dwords of the 16 rows as four registers: register `j` has dword `j` of every row, in the order of the rows.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - 16 bytes at `offset` from each of `rows` are readable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
pub(super) unsafe fn transpose(rows: [*const u8; LANES], offset: usize) -> [__m512i; 4] {
    let mut quads = [_mm512_setzero_si512(); 4];
    for (i, quad) in quads.iter_mut().enumerate() {
        // SAFETY: the caller vouches for the bytes.
        let row = |r: usize| unsafe { _mm_loadu_si128(rows[r].add(offset).cast()) };
        *quad = _mm512_castsi128_si512(row(i));
        *quad = _mm512_mask_broadcast_i32x4(*quad, 0x00f0, row(i + 4));
        *quad = _mm512_mask_broadcast_i32x4(*quad, 0x0f00, row(i + 8));
        *quad = _mm512_mask_broadcast_i32x4(*quad, 0xf000, row(i + 12));
    }
    let [a, b, c, d] = quads;
    let (ab_lo, ab_hi) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (cd_lo, cd_hi) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    [
        _mm512_unpacklo_epi64(ab_lo, cd_lo),
        _mm512_unpackhi_epi64(ab_lo, cd_lo),
        _mm512_unpacklo_epi64(ab_hi, cd_hi),
        _mm512_unpackhi_epi64(ab_hi, cd_hi),
    ]
}

/// The f16 numbers `offset` bytes behind each of `rows`.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - Two bytes at `offset` from each of `rows` are readable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn gather_f16(rows: [*const u8; LANES], offset: usize) -> __m512 {
    let mut bits = [0_u16; LANES];
    for (bits, row) in bits.iter_mut().zip(rows) {
        // SAFETY: the caller vouches for the bytes.
        *bits = unsafe { row.add(offset).cast::<u16>().read_unaligned() };
    }
    // SAFETY: the array has 32 bytes.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(bits.as_ptr().cast()) })
}

/// Packs the block that lies `offset` bytes behind each of `rows`.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - A block's bytes at `offset` from each of `rows` are readable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
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
        let q = if Q::NIBBLES {
            let mask = _mm512_set1_epi8(15);
            let hi = lo.map(|q| _mm512_and_si512(_mm512_srli_epi16::<4>(q), mask));
            let lo = lo.map(|q| _mm512_and_si512(q, mask));
            [lo[0], lo[1], lo[2], lo[3], hi[0], hi[1], hi[2], hi[3]]
        } else {
            let hi = transpose(rows, quants + 16);
            let raise = |q| _mm512_xor_si512(q, _mm512_set1_epi8(Q::RAISED.cast_signed()));
            let (lo, hi) = (lo.map(raise), hi.map(raise));
            [lo[0], lo[1], lo[2], lo[3], hi[0], hi[1], hi[2], hi[3]]
        };
        Block { q, d, m }
    }
}

/// One panel's share of 16 rows of the output.
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
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn multiply_few<Q: Quants>(&mut self, panel: &[Block], columns: &[Column], n: usize) {
        let mut at = 0;
        if n & 4 != 0 {
            self.multiply::<Q, 4>(panel, columns, at);
            at += 4;
        }
        if n & 2 != 0 {
            self.multiply::<Q, 2>(panel, columns, at);
            at += 2;
        }
        if n & 1 != 0 {
            self.multiply::<Q, 1>(panel, columns, at);
        }
    }

    /// Multiplies the panel with columns `at` to `at + N` of its group.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn multiply<Q: Quants, const N: usize>(&mut self, panel: &[Block], columns: &[Column], at: usize) {
        let mut q = [self.x.as_row().q.as_ptr(); N];
        for (i, q) in q.iter_mut().enumerate() {
            *q = self.x.row(self.c + at + i).q[self.b * 32..][..panel.len() * 32].as_ptr();
        }
        let mut sums = [_mm512_setzero_ps(); N];
        for (b, (block, column)) in panel.iter().zip(columns).enumerate() {
            let mut products = [_mm512_setzero_si512(); N];
            for (product, &start) in products.iter_mut().zip(&column.start[at..]) {
                *product = _mm512_set1_epi32(start);
            }
            for j in 0..8 {
                for c in 0..N {
                    // SAFETY: block `b` is below `panel.len()`, and it has 32 bytes of the column's slice.
                    let four = unsafe { q[c].add(b * 32 + j * 4).cast::<i32>().read_unaligned() };
                    products[c] = _mm512_dpbusd_epi32(products[c], block.q[j], _mm512_set1_epi32(four));
                }
            }
            for c in 0..N {
                let scale = _mm512_mul_ps(block.d, _mm512_set1_ps(column.d[at + c]));
                sums[c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[c]), scale, sums[c]);
                if Q::MIN {
                    // SAFETY: `pack` has set the minimum of a type that has one.
                    let m = unsafe { block.m.assume_init() };
                    sums[c] = _mm512_fmadd_ps(m, _mm512_set1_ps(column.s[at + c]), sums[c]);
                }
            }
        }
        for (c, sum) in sums.into_iter().enumerate() {
            let out = &mut self.out.column(self.c + at + c)[self.r..];
            let mask = first(out.len());
            // SAFETY: the mask covers elements of the slice.
            unsafe {
                let before =
                    if self.b == 0 { _mm512_setzero_ps() } else { _mm512_maskz_loadu_ps(mask, out.as_ptr()) };
                _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, _mm512_add_ps(before, sum));
            }
        }
    }
}
