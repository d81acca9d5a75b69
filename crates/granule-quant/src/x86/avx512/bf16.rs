//! Products of several columns by `vdpbf16ps`: a register holds two elements of 16 rows.
//!
//! Weights are rounded and turned round a stretch of four panels at a time, which then lies in the first-level cache while
//! column after column meets it.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::pack::transpose;
use super::{LANES, first};
use crate::x86::prefetch_line;
use crate::{Bf16Matrix, DType, Tile};

/// Panels and columns of the innermost kernel: their sums take 24 registers.
const PANELS: usize = 4;
const STEP: usize = 6;
/// Pairs of elements along k in a stretch: 24 KiB of four panels.
const STRETCH: usize = 96;
/// Bytes of a row that memory is asked for ahead of what is rounded.
const AHEAD: usize = 512;
/// Elements that are rounded at a time.
const PIECE: usize = 32;

/// Pairs of elements of 16 rows.
type Panel = [MaybeUninit<__m512i>; STRETCH];

/// Fills `out` (weight rows x columns); the lengths are right, no extent is zero, and k is a multiple of [`PIECE`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
pub(crate) fn gemm(dtype: DType, w: &[u8], x: &Bf16Matrix<'_>, out: &mut Tile<'_>) {
    let mut panels = [const { [const { MaybeUninit::uninit() }; STRETCH] }; PANELS];
    let (row_bytes, pairs) = (w.len() / out.rows(), x.k() / 2);
    for at in (0..pairs).step_by(STRETCH) {
        let n = STRETCH.min(pairs - at);
        for r in (0..out.rows()).step_by(PANELS * LANES) {
            let count = (out.rows() - r).div_ceil(LANES).min(PANELS);
            for (p, panel) in panels.iter_mut().enumerate().take(count) {
                let mut rows = [w.as_ptr(); LANES];
                for (i, row) in rows.iter_mut().enumerate() {
                    // Rows that are not there repeat the last one; what comes of them is not stored.
                    let r = (r + p * LANES + i).min(out.rows() - 1);
                    *row = w[r * row_bytes + at * 4..][..n * 4].as_ptr();
                }
                // SAFETY: each row has `n` pairs of two bytes an element from its pointer on.
                unsafe { fill(dtype, rows, n, panel) };
            }
            let mut part = Part { panels: &panels, n, x, out: &mut *out, r, at };
            match count {
                4 => part.columns::<4>(),
                3 => part.columns::<3>(),
                2 => part.columns::<2>(),
                _ => part.columns::<1>(),
            }
        }
    }
}

/// Fills a panel with `n` pairs, whole pieces, of 16 rows.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - `4 * n` bytes at each of `rows` are readable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
unsafe fn fill(dtype: DType, rows: [*const u8; LANES], n: usize, panel: &mut Panel) {
    let mut rounded = [[0_u8; 2 * PIECE]; LANES];
    for (i, pairs) in panel[..n].chunks_exact_mut(PIECE / 2).enumerate() {
        let mut from = rows;
        for (row, rounded) in from.iter_mut().zip(&mut rounded) {
            *row = row.wrapping_add(i * 2 * PIECE);
            // Ahead, since 16 streams are more than the hardware follows.
            prefetch_line(row.wrapping_add(AHEAD));
            if dtype == DType::F16 {
                // SAFETY: a piece is readable at the row, and fits the array.
                unsafe {
                    let low = _mm512_cvtph_ps(_mm256_loadu_si256(row.cast()));
                    let high = _mm512_cvtph_ps(_mm256_loadu_si256(row.add(PIECE).cast()));
                    let both = _mm512_cvtne2ps_pbh(high, low);
                    rounded.as_mut_ptr().cast::<__m512bh>().write_unaligned(both);
                }
                *row = rounded.as_ptr();
            }
        }
        for (j, four) in pairs.chunks_exact_mut(4).enumerate() {
            // SAFETY: 16 bytes from there on belong to the piece.
            let turned = unsafe { transpose(from, 16 * j) };
            for (pair, turned) in four.iter_mut().zip(turned) {
                pair.write(turned);
            }
        }
    }
}

/// A stretch, and where its products go.
struct Part<'a, 'o, 'x> {
    /// The first `n` pairs of those that count are written.
    panels: &'a [Panel; PANELS],
    n: usize,
    x: &'a Bf16Matrix<'x>,
    out: &'a mut Tile<'o>,
    /// First row.
    r: usize,
    /// First pair; the first stretch sets the output, the others add to it.
    at: usize,
}

impl Part<'_, '_, '_> {
    /// Multiplies the first `P` panels with all columns.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    fn columns<const P: usize>(&mut self) {
        let mut c = 0;
        macro_rules! take {
            ($n:tt) => {
                while self.x.rows() - c >= $n {
                    self.multiply::<P, $n>(c);
                    c += $n;
                }
            };
        }
        take!(STEP);
        take!(4);
        take!(2);
        take!(1);
    }

    /// Multiplies the first `P` panels with `N` columns from `c` on.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")]
    #[inline]
    fn multiply<const P: usize, const N: usize>(&mut self, c: usize) {
        let k = self.x.k();
        let mut x = [self.x.bits().as_ptr(); N];
        for (i, x) in x.iter_mut().enumerate() {
            *x = self.x.bits()[(c + i) * k + 2 * self.at..][..2 * self.n].as_ptr();
        }
        let mut sums = [[_mm512_setzero_ps(); N]; P];
        for i in 0..self.n {
            let mut w = [_mm512_setzero_si512(); P];
            for (w, panel) in w.iter_mut().zip(self.panels) {
                // SAFETY: the pair is written.
                *w = unsafe { panel[i].assume_init() };
            }
            for (c, x) in x.iter().enumerate() {
                // SAFETY: pair `i` is one of the column's slice.
                let pair = _mm512_set1_epi32(unsafe { x.add(2 * i).cast::<i32>().read_unaligned() });
                for (sums, w) in sums.iter_mut().zip(w) {
                    // SAFETY: registers of one width, of which any bits are numbers.
                    let (w, pair) = unsafe {
                        (
                            std::mem::transmute::<__m512i, __m512bh>(w),
                            std::mem::transmute::<__m512i, __m512bh>(pair),
                        )
                    };
                    sums[c] = _mm512_dpbf16_ps(sums[c], w, pair);
                }
            }
        }
        for (p, sums) in sums.into_iter().enumerate() {
            for (i, sum) in sums.into_iter().enumerate() {
                let out = &mut self.out.column(c + i)[self.r + p * LANES..];
                let mask = first(out.len());
                // SAFETY: the mask covers elements of the slice.
                unsafe {
                    let before = if self.at > 0 {
                        _mm512_maskz_loadu_ps(mask, out.as_ptr())
                    } else {
                        _mm512_setzero_ps()
                    };
                    _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, _mm512_add_ps(before, sum));
                }
            }
        }
    }
}
