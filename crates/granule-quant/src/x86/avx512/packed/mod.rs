//! Products of packed weights ([`crate::packed`]): a register holds four elements of 16 rows, `vpdpbusd` multiplies them
//! with four elements of a column and adds to 16 sums, one for each row.
//!
//! With few columns codes go from memory through registers into the products. With many, the codes of a stretch of a panel
//! become bytes once, and lie in the first-level cache while column after column meets them.

mod load;

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use self::load::{Head, Run, load, parts, raised};
use super::{LANES, first};
use crate::expand::{Expand, by_block};
use crate::packed::{Unit, has_minimum};
use crate::x86::prefetch_l2;
use crate::{BLOCK_LEN, DType, FixedMatrix, Tile};

/// Panels and columns of the innermost kernel: a load is worth a cycle, as a product is, so each register of weights meets
/// six of activations and each of these two of weights. Sums, integer and float, take 24 registers.
const PAIR: usize = 2;
const STEP: usize = 6;
/// More columns than this meet bytes that were made of codes once.
const FEW: usize = 8;
/// Runs whose codes are made bytes at a time: those of two panels and what meets them fit the first-level cache.
const STRETCH: usize = 16;
/// Columns that a stretch is used for: their numbers of that stretch stay in the second-level cache.
const COLS: usize = 256;
/// Bytes that memory is asked for ahead of what is multiplied, in the second-level cache: 4,608 and 7,168 gave 0.96 of what this
/// does, 8,192 gave 0.93.
const AHEAD: usize = 6144;

/// Fills `out` (weight rows x columns); the lengths are right and no extent is zero.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(crate) fn gemm(dtype: DType, w: &[u8], x: &FixedMatrix<'_>, out: &mut Tile<'_>) {
    by_block!(dtype, products, (w, x, out), ());
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn products<B: Expand>(w: &[u8], x: &FixedMatrix<'_>, out: &mut Tile<'_>) {
    let panel = w.len() / out.rows().div_ceil(LANES);
    if !x.is_wide() && x.rows() > FEW {
        return many::<B>(w, panel, x, out);
    }
    for (i, w) in w.chunks_exact(panel).enumerate() {
        if x.is_wide() {
            some::<B, 2>(w, x, out, i * LANES);
        } else {
            some::<B, 1>(w, x, out, i * LANES);
        }
    }
}

/// Products of a panel with some columns, of `TERMS` bytes a number.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn some<B: Expand, const TERMS: usize>(w: &[u8], x: &FixedMatrix<'_>, out: &mut Tile<'_>, r: usize) {
    let mut c = 0;
    macro_rules! take {
        ($n:literal) => {
            while x.rows() - c >= $n {
                // SAFETY: the panel has as many runs as a row of `x`, and two terms are those of `x`.
                let sums = unsafe { few::<B, $n, TERMS>(w, x, c) };
                store(sums, out, r, c, false);
                c += $n;
            }
        };
    }
    // Those of two terms take twice the registers.
    if TERMS == 1 {
        take!(8);
    }
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

/// Products of a panel with `N` columns from `c` on, of `TERMS` bytes a number.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - `w` is whole units, with as many runs as the columns, which `x` has; with two terms, these have low bytes.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn few<B: Expand, const N: usize, const TERMS: usize>(
    w: &[u8],
    x: &FixedMatrix<'_>,
    c: usize,
) -> [__m512; N] {
    let mut sums = [[_mm512_setzero_ps(); N]];
    let columns = Columns::new(x, c, 0, &[]);
    for (u, unit) in w.chunks_exact(Unit::<B>::BYTES).enumerate() {
        // SAFETY: the unit is whole, and its runs are among those of `x`.
        unsafe {
            let unit = unit.as_ptr();
            ask_ahead(unit, Unit::<B>::RUNS);
            let head = Head::load::<B>(unit);
            for i in 0..B::RUNS {
                let run = unit.add(Unit::<B>::RUNS + i * Unit::<B>::RUN);
                ask_ahead(run, Unit::<B>::RUN);
                let run = load::<B>(run, &head);
                multiply::<B, 1, N, TERMS, false>([&run], &columns, u * B::RUNS + i, &mut sums);
            }
        }
    }
    let [sums] = sums;
    sums
}

/// Asks memory, while these bytes of a unit are read, for as many of what comes later.
#[inline(always)]
fn ask_ahead(at: *const u8, bytes: usize) {
    (0..bytes).step_by(64).for_each(|line| prefetch_l2(at.wrapping_add(AHEAD + line)));
}

/// Products of panels with more columns.
///
/// Not inlined: what lies on its stack is 88 KiB, each page of which is touched on entry, also by calls with few columns.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline(never)]
fn many<B: Expand>(w: &[u8], panel: usize, x: &FixedMatrix<'_>, out: &mut Tile<'_>) {
    let mut stretches = [const { [const { MaybeUninit::<Run>::uninit() }; STRETCH] }; PAIR];
    let mut sums = [const { MaybeUninit::<StretchSums>::uninit() }; COLS];
    let step = STRETCH / B::RUNS * Unit::<B>::BYTES;
    for c0 in (0..x.rows()).step_by(COLS) {
        let cols = COLS.min(x.rows() - c0);
        for (b, at) in (0..panel).step_by(step).enumerate() {
            let end = panel.min(at + step);
            let (run, n) = (b * STRETCH, (end - at) / Unit::<B>::BYTES * B::RUNS);
            for (c, sums) in sums.iter_mut().enumerate().take(cols) {
                sums.write(StretchSums::new::<B>(&x.sums(c0 + c)[run..][..n]));
            }
            // SAFETY: the first `cols` were just written.
            let sums = unsafe { written(&sums[..cols]) };
            for (p, pair) in w.chunks(PAIR * panel).enumerate() {
                // The same stretch of the next pair, or the next one of the first pair.
                let after = (p + 1) * PAIR * panel;
                let next = w.as_ptr().wrapping_add(if after < w.len() { after + at } else { end });
                let next = [next, next.wrapping_add(panel)];
                let part = Part { x, first: c0, run, sums, next, bytes: end - at };
                let mut runs = [&[][..]; PAIR];
                let panels = pair.chunks_exact(panel).map(|w| &w[at..end]);
                for ((runs, stretch), w) in runs.iter_mut().zip(&mut stretches).zip(panels) {
                    *runs = expand::<B>(w, stretch);
                }
                match runs {
                    [only, []] => part.multiply_all::<B, 1>([only], out, p * PAIR * LANES),
                    both => part.multiply_all::<B, PAIR>(both, out, p * PAIR * LANES),
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

/// Makes bytes of the codes of whole units, which fit the stretch.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn expand<'a, B: Expand>(w: &[u8], stretch: &'a mut [MaybeUninit<Run>; STRETCH]) -> &'a [Run] {
    let mut n = 0;
    for (unit, runs) in w.chunks_exact(Unit::<B>::BYTES).zip(stretch.chunks_exact_mut(B::RUNS)) {
        n += B::RUNS;
        // SAFETY: the unit is whole.
        unsafe {
            let head = Head::load::<B>(unit.as_ptr());
            for (i, run) in runs.iter_mut().enumerate() {
                run.write(load::<B>(unit.as_ptr().add(Unit::<B>::RUNS + i * Unit::<B>::RUN), &head));
            }
        }
    }
    // SAFETY: the first `n` were just written.
    unsafe { written(&stretch[..n]) }
}

/// What a stretch of panels is multiplied with.
struct Part<'a, 'x> {
    x: &'a FixedMatrix<'x>,
    /// First column.
    first: usize,
    /// First run; the first stretch sets the output, the others add to it.
    run: usize,
    /// Of each column.
    sums: &'a [StretchSums],
    /// Where the stretches lie that are multiplied after this one, if there are any.
    next: [*const u8; PAIR],
    /// Bytes of each.
    bytes: usize,
}

impl Part<'_, '_> {
    /// Multiplies stretches of the same runs of `P` panels, the first of which has rows from `r` on, with all columns.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn multiply_all<B: Expand, const P: usize>(&self, runs: [&[Run]; P], out: &mut Tile<'_>, r: usize) {
        let mut c = 0;
        macro_rules! take {
            ($n:tt) => {
                while self.sums.len() - c >= $n {
                    self.ask_for_next(c..c + $n);
                    let sums = self.multiply::<B, P, $n>(runs, c);
                    for (p, sums) in sums.into_iter().enumerate() {
                        store(sums, out, r + p * LANES, self.first + c, self.run > 0);
                    }
                    c += $n;
                }
            };
        }
        take!(STEP);
        take!(4);
        take!(2);
        take!(1);
    }

    /// Asks memory for what is multiplied next, as large a part of it as these columns are of all.
    #[inline(always)]
    fn ask_for_next(&self, columns: Range<usize>) {
        let at = |c: usize| self.bytes * c / self.sums.len();
        for line in (at(columns.start)..at(columns.end)).step_by(64) {
            self.next.iter().for_each(|next| prefetch_l2(next.wrapping_add(line)));
        }
    }

    /// Multiplies stretches of the same runs of `P` panels with `N` columns from `c` on.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    fn multiply<B: Expand, const P: usize, const N: usize>(
        &self,
        runs: [&[Run]; P],
        c: usize,
    ) -> [[__m512; N]; P] {
        let columns = Columns::new(self.x, self.first + c, self.run, &self.sums[c..]);
        let mut sums = [[_mm512_setzero_ps(); N]; P];
        let n = runs.iter().map(|runs| runs.len()).min().unwrap_or(0);
        for i in 0..n {
            // Not by `map`, into which code for these instructions is not inlined.
            let mut run = [&runs[0][i]; P];
            for (run, runs) in run.iter_mut().zip(runs) {
                *run = &runs[i];
            }
            // SAFETY: the run is among those of the columns: a stretch has no more of them than rows have.
            unsafe { multiply::<B, P, N, 1, true>(run, &columns, i, &mut sums) };
        }
        sums
    }
}

/// Sums of a stretch of a column, as the type of the weights wants them, for each part of a run.
#[derive(Clone, Copy)]
struct StretchSums {
    /// Where integer products start: what raised bytes add to them, taken off.
    start: [MaybeUninit<[i32; STRETCH]>; 2],
    /// The sums themselves.
    sum: [MaybeUninit<[f32; STRETCH]>; 2],
}

impl StretchSums {
    /// From the sums of at most [`STRETCH`] runs and of their first halves.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    fn new<B: Expand>(sums: &[[i32; 2]]) -> Self {
        let mut of = Self { start: [MaybeUninit::uninit(); 2], sum: [MaybeUninit::uninit(); 2] };
        let flat = sums.as_flattened();
        let load = |at: usize| {
            let mask = first(flat.len().saturating_sub(at));
            // SAFETY: the mask covers elements of the slice.
            unsafe { _mm512_maskz_loadu_epi32(mask, flat.as_ptr().wrapping_add(at)) }
        };
        let (low, high) = (load(0), load(LANES));
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let whole = _mm512_permutex2var_epi32(low, even, high);
        let firsts = _mm512_permutex2var_epi32(low, _mm512_add_epi32(even, _mm512_set1_epi32(1)), high);
        let of_parts = match parts::<B>() {
            1 => [whole, whole],
            _ => [firsts, _mm512_sub_epi32(whole, firsts)],
        };
        for (part, sums) in of_parts.into_iter().enumerate().take(parts::<B>()) {
            let zero = _mm512_setzero_si512();
            let start = _mm512_sub_epi32(zero, _mm512_sll_epi32(sums, shift::<B>()));
            // SAFETY: both arrays have 16 elements.
            unsafe {
                if raised::<B>() > 0 {
                    _mm512_storeu_si512(of.start[part].as_mut_ptr().cast(), start);
                }
                if has_minimum::<B>() {
                    _mm512_storeu_ps(of.sum[part].as_mut_ptr().cast(), _mm512_cvtepi32_ps(sums));
                }
            }
        }
        of
    }
}

/// How many bits a sum is shifted by to become what raised bytes add to products.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn shift<B: Expand>() -> __m128i {
    _mm_cvtsi32_si128(const { raised::<B>().trailing_zeros() % 8 }.cast_signed())
}

/// Where `N` columns lie.
struct Columns<const N: usize> {
    high: [*const i8; N],
    low: [*const i8; N],
    d: [*const f32; N],
    sums: [*const [i32; 2]; N],
    /// Where the sums are prepared.
    prepared: [*const StretchSums; N],
}

impl<const N: usize> Columns<N> {
    /// Columns from `c` on, from run `run` on, and what is prepared of them.
    #[inline(always)]
    fn new(x: &FixedMatrix<'_>, c: usize, run: usize, prepared: &[StretchSums]) -> Self {
        let mut columns = Self {
            high: [x.high.as_ptr(); N],
            low: [x.low.as_ptr(); N],
            d: [x.d.as_ptr(); N],
            sums: [x.sums.as_ptr(); N],
            prepared: [prepared.as_ptr(); N],
        };
        for i in 0..N {
            let first = (c + i) * (x.k() / BLOCK_LEN) + run;
            columns.high[i] = columns.high[i].wrapping_add(first * BLOCK_LEN);
            columns.low[i] = columns.low[i].wrapping_add(first * BLOCK_LEN);
            columns.d[i] = columns.d[i].wrapping_add(first);
            columns.sums[i] = columns.sums[i].wrapping_add(first);
            columns.prepared[i] = columns.prepared[i].wrapping_add(i);
        }
        columns
    }

    /// Where the products of this part of run `i` with column `c` start, and the sum that minimums are multiplied by.
    ///
    /// # Safety
    /// - The CPU has this module's instructions.
    /// - Column `c` has run `i`; where `PREPARED`, its sums are prepared from the first run on.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn sums<B: Expand, const PREPARED: bool>(
        &self,
        c: usize,
        i: usize,
        part: usize,
    ) -> (__m512i, __m512) {
        let (mut start, mut sum) = (_mm512_setzero_si512(), _mm512_setzero_ps());
        // SAFETY: the caller vouches for the run; what is read of prepared sums is what the same type has set.
        unsafe {
            if PREPARED {
                let of = &*self.prepared[c];
                if raised::<B>() > 0 {
                    start = _mm512_set1_epi32(*of.start[part].as_ptr().cast::<i32>().add(i));
                }
                if has_minimum::<B>() {
                    sum = _mm512_set1_ps(*of.sum[part].as_ptr().cast::<f32>().add(i));
                }
            } else {
                let [whole, first_half] = *self.sums[c].add(i);
                let number = _mm512_set1_epi32(match (parts::<B>(), part) {
                    (1, _) => whole,
                    (_, 0) => first_half,
                    _ => whole.wrapping_sub(first_half),
                });
                if raised::<B>() > 0 {
                    start = _mm512_sub_epi32(start, _mm512_sll_epi32(number, shift::<B>()));
                }
                if has_minimum::<B>() {
                    sum = _mm512_cvtepi32_ps(number);
                }
            }
        }
        (start, sum)
    }
}

/// Adds the products of a run of `P` panels with run `i` of `N` columns, of `TERMS` bytes a number, to `sums`.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - Each of `runs` is as [`load`] of the same type makes it; each column has run `i`, with two terms low bytes too; where
///   `PREPARED`, their sums are.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn multiply<B: Expand, const P: usize, const N: usize, const TERMS: usize, const PREPARED: bool>(
    runs: [&Run; P],
    x: &Columns<N>,
    i: usize,
    sums: &mut [[__m512; N]; P],
) {
    let parts = parts::<B>();
    let mut scaled = [[_mm512_setzero_ps(); N]; P];
    // SAFETY: every pointer stays in run `i`, and `load` has set the scales of all parts, and the minimums where there are any.
    unsafe {
        for part in 0..parts {
            let mut products = [[[_mm512_setzero_si512(); TERMS]; N]; P];
            let mut minimums = [_mm512_setzero_ps(); N];
            for (c, minimum) in minimums.iter_mut().enumerate() {
                let (start, sum) = x.sums::<B, PREPARED>(c, i, part);
                *minimum = sum;
                (0..P).for_each(|p| products[p][c][TERMS - 1] = start);
            }
            for j in part * 8 / parts..(part + 1) * 8 / parts {
                let four = |p: *const i8| {
                    _mm512_set1_epi32(p.add(i * BLOCK_LEN + j * 4).cast::<i32>().read_unaligned())
                };
                for (c, (&high, &low)) in x.high.iter().zip(&x.low).enumerate() {
                    let high = four(high);
                    for p in 0..P {
                        products[p][c][0] = _mm512_dpbusd_epi32(products[p][c][0], runs[p].q[j], high);
                    }
                    if TERMS == 2 {
                        let low = four(low);
                        for p in 0..P {
                            products[p][c][1] = _mm512_dpbusd_epi32(products[p][c][1], runs[p].q[j], low);
                        }
                    }
                }
            }
            for c in 0..N {
                for p in 0..P {
                    let mut product = products[p][c][0];
                    if TERMS == 2 {
                        product = _mm512_add_epi32(_mm512_slli_epi32::<8>(product), products[p][c][1]);
                    }
                    let (product, d) = (_mm512_cvtepi32_ps(product), runs[p].d[part].assume_init());
                    let scaled = &mut scaled[p][c];
                    *scaled = if part == 0 {
                        _mm512_mul_ps(product, d)
                    } else {
                        _mm512_fmadd_ps(product, d, *scaled)
                    };
                    if has_minimum::<B>() {
                        let m = runs[p].m[part].assume_init();
                        *scaled = _mm512_fnmadd_ps(m, minimums[c], *scaled);
                    }
                }
            }
        }
        for c in 0..N {
            let d = _mm512_set1_ps(*x.d[c].add(i));
            for p in 0..P {
                sums[p][c] = _mm512_fmadd_ps(scaled[p][c], d, sums[p][c]);
            }
        }
    }
}
