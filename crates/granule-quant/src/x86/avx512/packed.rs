//! Products of packed weights ([`crate::packed`]): a register holds four elements of 16 rows, `vpdpbusd` multiplies them
//! with four elements of a column and adds to 16 sums, one for each row.
//!
//! With few columns codes go from memory through registers into the products. With many, the codes of a stretch of a panel
//! become bytes once, and lie in the first-level cache while column after column meets them.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use super::{LANES, first};
use crate::activation::FixedRow;
use crate::expand::{Expand, Minimum, Scales, Values, by_block};
use crate::packed::Unit;
use crate::x86::prefetch_line;
use crate::{BLOCK_LEN, DType, FixedMatrix, Tile};

/// Columns of the innermost kernel: their sums, integer and float, and eight registers of weights fit the register file.
const STEP: usize = 8;
/// More columns than this meet bytes that were made of codes once.
const FEW: usize = 8;
/// Runs whose codes are made bytes at a time.
const STRETCH: usize = 32;
/// Columns that a stretch is used for: their numbers of that stretch stay in the second-level cache.
const COLS: usize = 256;
/// Bytes that memory is asked for ahead of what is multiplied.
const AHEAD: usize = 4096;

/// A run of 16 rows, ready to be multiplied.
#[derive(Clone, Copy)]
struct Run {
    /// Unsigned bytes: codes, raised where they stand for negative numbers too.
    q: [__m512i; 8],
    /// Scale of each row, for each half.
    d: [MaybeUninit<__m512>; 2],
    /// What is subtracted, for each half.
    m: [MaybeUninit<__m512>; 2],
}

/// How many parts with scales of their own a run has.
const fn parts<B: Expand>() -> usize {
    match B::SCALES {
        Scales::One | Scales::Whole => 1,
        Scales::Halves => 2,
    }
}

const fn has_minimum<B: Expand>() -> bool {
    !matches!(B::MINIMUM, Minimum::None)
}

/// What bytes are more than the numbers that they stand for.
const fn raised<B: Expand>() -> u8 {
    match B::VALUES {
        Values::Less(offset) => offset,
        Values::Table(_) => 128,
    }
}

/// Fills `out` (weight rows x columns); the lengths are right and no extent is zero.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn gemm(dtype: DType, w: &[u8], x: &FixedMatrix<'_>, out: &mut Tile<'_>) {
    by_block!(dtype, products, (w, x, out), ());
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn products<B: Expand>(w: &[u8], x: &FixedMatrix<'_>, out: &mut Tile<'_>) {
    let panel = w.len() / out.rows().div_ceil(LANES);
    match (x.is_wide(), x.rows()) {
        (true, _) => {
            for (i, w) in w.chunks_exact(panel).enumerate() {
                for c in 0..x.rows() {
                    // SAFETY: the panel has as many runs as a row of `x`, which has low bytes.
                    let sums = unsafe { few::<B, 1, 2>(w, [x.row(c)]) };
                    store(sums, out, i * LANES, c, false);
                }
            }
        }
        (false, ..=FEW) => {
            for (i, w) in w.chunks_exact(panel).enumerate() {
                some::<B>(w, x, out, i * LANES);
            }
        }
        (false, _) => many::<B>(w, panel, x, out),
    }
}

/// Products of a panel with at most [`FEW`] columns.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn some<B: Expand>(w: &[u8], x: &FixedMatrix<'_>, out: &mut Tile<'_>, r: usize) {
    let mut c = 0;
    macro_rules! take {
        ($n:literal) => {
            while x.rows() - c >= $n {
                // SAFETY: the panel has as many runs as a row of `x`.
                let sums = unsafe { few::<B, $n, 1>(w, std::array::from_fn(|i| x.row(c + i))) };
                store(sums, out, r, c, false);
                c += $n;
            }
        };
    }
    take!(8);
    take!(4);
    take!(2);
    take!(1);
}

/// Puts sums of `N` columns from `c` on where rows from `r` on are, or adds them to what is there.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn store<const N: usize>(sums: [__m512; N], out: &mut Tile<'_>, r: usize, c: usize, add: bool) {
    for (i, sum) in sums.into_iter().enumerate() {
        let out = &mut out.column(c + i)[r..];
        let mask = first(out.len());
        // SAFETY: the mask covers elements of the slice.
        unsafe {
            let before = if add { _mm512_maskz_loadu_ps(mask, out.as_ptr()) } else { _mm512_setzero_ps() };
            _mm512_mask_storeu_ps(out.as_mut_ptr(), mask, _mm512_add_ps(before, sum));
        }
    }
}

/// Products of a panel with `N` columns of `TERMS` bytes a number.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - `w` is whole units, with as many runs as each of `x` has; with two terms, `x` have low bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn few<B: Expand, const N: usize, const TERMS: usize>(w: &[u8], x: [FixedRow<'_>; N]) -> [__m512; N] {
    let mut sums = [_mm512_setzero_ps(); N];
    let columns = Columns::<N>::new(&x, 0);
    for (u, unit) in w.chunks_exact(Unit::<B>::BYTES).enumerate() {
        // SAFETY: the unit is whole, and its runs are among those of `x`.
        unsafe {
            let unit = unit.as_ptr();
            let head = Head::load::<B>(unit);
            for i in 0..B::RUNS {
                let run = unit.add(Unit::<B>::RUNS + i * Unit::<B>::RUN);
                for line in (0..Unit::<B>::RUN).step_by(64) {
                    prefetch_line(run.wrapping_add(AHEAD + line));
                }
                let run = load::<B>(run, &head);
                multiply::<B, N, TERMS>(&run, &columns, u * B::RUNS + i, &mut sums);
            }
        }
    }
    sums
}

/// Products of panels with more columns.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn many<B: Expand>(w: &[u8], panel: usize, x: &FixedMatrix<'_>, out: &mut Tile<'_>) {
    let mut stretch = [const { MaybeUninit::<Run>::uninit() }; STRETCH];
    let units = STRETCH / B::RUNS;
    for c0 in (0..x.rows()).step_by(COLS) {
        let cols = c0..x.rows().min(c0 + COLS);
        for (b, at) in (0..panel).step_by(units * Unit::<B>::BYTES).enumerate() {
            let end = panel.min(at + units * Unit::<B>::BYTES);
            for (p, w) in w.chunks_exact(panel).enumerate() {
                let n = (end - at) / Unit::<B>::BYTES * B::RUNS;
                for (unit, runs) in
                    w[at..end].chunks_exact(Unit::<B>::BYTES).zip(stretch.chunks_exact_mut(B::RUNS))
                {
                    // SAFETY: the unit is whole.
                    unsafe {
                        let head = Head::load::<B>(unit.as_ptr());
                        for (i, run) in runs.iter_mut().enumerate() {
                            let at = unit.as_ptr().add(Unit::<B>::RUNS + i * Unit::<B>::RUN);
                            run.write(load::<B>(at, &head));
                        }
                    }
                }
                // SAFETY: the first `n` runs were just written, and `MaybeUninit<T>` has the layout of `T`.
                let runs = unsafe { std::slice::from_raw_parts(stretch.as_ptr().cast::<Run>(), n) };
                let mut part = Part { x, out, r: p * LANES, run: b * STRETCH };
                part.columns::<B>(runs, cols.clone());
            }
        }
    }
}

/// Where a stretch's products go.
struct Part<'a, 'o, 'x> {
    x: &'a FixedMatrix<'x>,
    out: &'a mut Tile<'o>,
    /// First row.
    r: usize,
    /// First run; the first stretch sets the output, the others add to it.
    run: usize,
}

impl Part<'_, '_, '_> {
    /// Multiplies `runs` with these columns.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn columns<B: Expand>(&mut self, runs: &[Run], cols: std::ops::Range<usize>) {
        let mut c = cols.start;
        macro_rules! take {
            ($n:tt) => {
                while cols.end - c >= $n {
                    // SAFETY: the runs are among those of the columns.
                    unsafe { self.multiply::<B, $n>(runs, c) };
                    c += $n;
                }
            };
        }
        take!(STEP);
        take!(4);
        take!(2);
        take!(1);
    }

    /// Multiplies `runs` with `N` columns from `c` on.
    ///
    /// # Safety
    /// - The CPU has this module's instructions.
    /// - There are `N` columns from `c` on, each with as many runs from `self.run` on as `runs` has.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn multiply<B: Expand, const N: usize>(&mut self, runs: &[Run], c: usize) {
        let x: [FixedRow<'_>; N] = std::array::from_fn(|i| self.x.row(c + i));
        let columns = Columns::<N>::new(&x, self.run);
        let mut sums = [_mm512_setzero_ps(); N];
        for (i, run) in runs.iter().enumerate() {
            // SAFETY: the caller vouches for the run.
            unsafe { multiply::<B, N, 1>(run, &columns, i, &mut sums) };
        }
        store(sums, self.out, self.r, c, self.run > 0);
    }
}

/// Where `N` columns lie from a certain run on.
struct Columns<const N: usize> {
    high: [*const i8; N],
    low: [*const i8; N],
    d: [*const f32; N],
    sums: [*const [i32; 2]; N],
}

impl<const N: usize> Columns<N> {
    #[inline(always)]
    fn new(x: &[FixedRow<'_>; N], run: usize) -> Self {
        Self {
            high: std::array::from_fn(|c| x[c].high[run * BLOCK_LEN..].as_ptr()),
            low: std::array::from_fn(|c| x[c].low.as_ptr().wrapping_add(run * BLOCK_LEN)),
            d: std::array::from_fn(|c| x[c].d[run..].as_ptr()),
            sums: std::array::from_fn(|c| x[c].sums[run..].as_ptr()),
        }
    }
}

/// The scales of a unit.
struct Head {
    d: __m512,
    minimum: __m512,
}

impl Head {
    /// # Safety
    /// - The CPU has this module's instructions.
    /// - A unit of `B` is readable at `unit`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn load<B: Expand>(unit: *const u8) -> Self {
        // SAFETY: the caller vouches for the unit, which starts with 16 halves, and with 16 more where it has minimums.
        unsafe {
            let d = _mm512_cvtph_ps(_mm256_loadu_si256(unit.cast()));
            let d = if B::UNIT == 1.0 { d } else { _mm512_mul_ps(d, _mm512_set1_ps(B::UNIT)) };
            let minimum = if has_minimum::<B>() {
                _mm512_cvtph_ps(_mm256_loadu_si256(unit.add(Unit::<B>::MINIMUM).cast()))
            } else {
                _mm512_setzero_ps()
            };
            Self { d, minimum }
        }
    }
}

/// Reads a run: codes as bytes, scales as floats.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - A run of `B` is readable at `p`; `head` is that of its unit.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn load<B: Expand>(p: *const u8, head: &Head) -> Run {
    let unset = [MaybeUninit::uninit(); 2];
    // SAFETY: the caller vouches for the run, whose planes come before its scales, and these before its minimums.
    unsafe {
        let mut run = Run { q: codes::<B>(p), d: unset, m: unset };
        if matches!(B::SCALES, Scales::One) {
            run.d[0].write(head.d);
            // Here a minimum is added.
            run.m[0].write(_mm512_sub_ps(_mm512_setzero_ps(), head.minimum));
            return run;
        }
        for h in 0..parts::<B>() {
            let s = _mm_loadu_si128(p.add(Unit::<B>::SCALES + h * LANES).cast());
            if B::NARROW {
                let both = _mm512_cvtepu8_epi32(s);
                let s = _mm512_and_si512(both, _mm512_set1_epi32(15));
                run.d[h].write(_mm512_mul_ps(head.d, _mm512_cvtepi32_ps(s)));
                let t = _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(both));
                run.m[h].write(_mm512_mul_ps(head.minimum, t));
            } else {
                run.d[h].write(_mm512_mul_ps(head.d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(s))));
                if has_minimum::<B>() {
                    let t = _mm_loadu_si128(p.add(Unit::<B>::MINIMUMS + h * LANES).cast());
                    let t = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(t));
                    run.m[h].write(_mm512_mul_ps(head.minimum, t));
                }
            }
        }
        run
    }
}

/// Reads the codes of a run as unsigned bytes: register `j` has elements `4 j` to `4 j + 3` of each row.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - The planes of a run of `B` are readable at `p`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn codes<B: Expand>(p: *const u8) -> [__m512i; 8] {
    let (low, high) = B::BITS;
    // SAFETY: the caller vouches for the planes.
    let plane = |i: usize| unsafe { _mm512_loadu_si512(p.add(64 * i).cast()) };
    let mut q = [_mm512_setzero_si512(); 8];
    for (j, q) in q.iter_mut().enumerate() {
        *q = field(plane(j % low), j / low * low, low, 0);
        if high > 0 {
            *q = _mm512_or_si512(*q, field(plane(low + j % high), j / high * high, high, low));
        }
        if let Values::Table(table) = B::VALUES {
            // SAFETY: the table has 16 bytes.
            let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
            let raised = _mm_xor_si128(table, _mm_set1_epi8(-128));
            *q = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(raised), *q);
        }
    }
    q
}

/// Bits `from` to `from + n` of each byte, moved to `to` and on.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn field(plane: __m512i, from: usize, n: usize, to: usize) -> __m512i {
    if n == 8 {
        return plane;
    }
    let count = |n: usize| _mm_cvtsi32_si128(n as i32);
    let moved = if from > to {
        _mm512_srl_epi16(plane, count(from - to))
    } else if to > from {
        _mm512_sll_epi16(plane, count(to - from))
    } else {
        plane
    };
    let mask = ((1_u32 << n) - 1) << to;
    _mm512_and_si512(moved, _mm512_set1_epi8((mask as u8).cast_signed()))
}

/// Adds the products of a run with run `i` of `N` columns, of `TERMS` bytes a number, to `sums`.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - `run` is as [`load`] of the same type makes it; each column has run `i`, with two terms low bytes too.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn multiply<B: Expand, const N: usize, const TERMS: usize>(
    run: &Run,
    x: &Columns<N>,
    i: usize,
    sums: &mut [__m512; N],
) {
    let parts = parts::<B>();
    let mut scaled = [_mm512_setzero_ps(); N];
    // SAFETY: every pointer stays in run `i`, and `load` has set the scales of all parts, and the minimums where there are any.
    unsafe {
        for part in 0..parts {
            let mut products = [[_mm512_setzero_si512(); TERMS]; N];
            for j in part * 8 / parts..(part + 1) * 8 / parts {
                let four = |p: *const i8| {
                    _mm512_set1_epi32(p.add(i * BLOCK_LEN + j * 4).cast::<i32>().read_unaligned())
                };
                for c in 0..N {
                    products[c][0] = _mm512_dpbusd_epi32(products[c][0], run.q[j], four(x.high[c]));
                    if TERMS == 2 {
                        products[c][1] = _mm512_dpbusd_epi32(products[c][1], run.q[j], four(x.low[c]));
                    }
                }
            }
            for c in 0..N {
                let mut product = products[c][0];
                if TERMS == 2 {
                    product = _mm512_add_epi32(_mm512_slli_epi32::<8>(product), products[c][1]);
                }
                let [whole, first_half] = *x.sums[c].add(i);
                let sum = _mm512_set1_epi32(match (parts, part) {
                    (1, _) => whole,
                    (_, 0) => first_half,
                    _ => whole - first_half,
                });
                if raised::<B>() > 0 {
                    let zeros = const { raised::<B>().trailing_zeros() };
                    product = _mm512_sub_epi32(product, _mm512_sll_epi32(sum, _mm_cvtsi32_si128(zeros as i32)));
                }
                let d = run.d[part].assume_init();
                scaled[c] = if part == 0 {
                    _mm512_mul_ps(_mm512_cvtepi32_ps(product), d)
                } else {
                    _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), d, scaled[c])
                };
                if has_minimum::<B>() {
                    let m = run.m[part].assume_init();
                    scaled[c] = _mm512_fnmadd_ps(m, _mm512_cvtepi32_ps(sum), scaled[c]);
                }
            }
        }
        for c in 0..N {
            sums[c] = _mm512_fmadd_ps(scaled[c], _mm512_set1_ps(*x.d[c].add(i)), sums[c]);
        }
    }
}
