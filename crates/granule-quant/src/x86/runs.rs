//! Products of the types that are expanded ([`crate::expand`]): a piece of a weight row becomes signed bytes and meets
//! every column before the next piece does. Registers have 256 bits, a run each, in every instruction set; what multiplies bytes
//! and what sums a register up is a set's own.

/// `gemm` and `dot` in functions with these features; `$fours` sums four products of unsigned with signed bytes each, none of
/// the signed ones -128, `$sum` all lanes.
macro_rules! products_of_runs {
    ($features:literal, $fours:path, $sum:path) => {
        use std::arch::x86_64::*;

        use $crate::expand::{Expand, Minimum, PIECE, Run, expand};
        use $crate::{BLOCK_LEN, QuantizedMatrix, QuantizedRow, gemm::Tile};

        /// Columns that a piece is used for.
        const COLS: usize = 64;
        /// Columns of one token: its two terms.
        const FEW: usize = 2;

        /// One row with one column, under way.
        #[derive(Clone, Copy)]
        struct Sums {
            /// Eight sums; the low four are of the first halves of runs.
            products: __m256,
            /// Minimums, in the lowest lane.
            minimums: __m128,
        }

        /// Fills `out` (weight rows x activation rows); the lengths are right and no extent is zero.
        #[target_feature(enable = $features)]
        pub(super) fn gemm<B: Expand>(w: &[u8], x: &QuantizedMatrix<'_>, out: &mut Tile<'_>) {
            // The sums of many columns are not to be cleared where there are those of one token.
            if out.cols() <= FEW { columns::<B, FEW>(w, x, out) } else { columns::<B, COLS>(w, x, out) }
        }

        /// As [`gemm`], `N` columns at a time.
        #[target_feature(enable = $features)]
        fn columns<B: Expand, const N: usize>(w: &[u8], x: &QuantizedMatrix<'_>, out: &mut Tile<'_>) {
            let row_bytes = w.len() / out.rows();
            for c in (0..out.cols()).step_by(N) {
                let cols = N.min(out.cols() - c);
                let mut columns = [QuantizedRow { q: &[], d: &[], s: &[] }; N];
                for (i, column) in columns[..cols].iter_mut().enumerate() {
                    *column = x.row(c + i);
                }
                for (r, row) in w.chunks_exact(row_bytes).enumerate() {
                    let sums = products::<B, N>(row, &columns[..cols]);
                    for (i, &sum) in sums[..cols].iter().enumerate() {
                        out.column(c + i)[r] = sum;
                    }
                }
            }
        }

        /// Dot product of a weight row with a row of activations of the same length.
        #[target_feature(enable = $features)]
        pub(super) fn dot<B: Expand>(row: &[u8], x: QuantizedRow<'_>) -> [f32; 1] {
            products::<B, 1>(row, &[x])
        }

        /// Dot products of a weight row with each of `x`, which are as long and `N` at most.
        #[target_feature(enable = $features)]
        fn products<B: Expand, const N: usize>(row: &[u8], x: &[QuantizedRow<'_>]) -> [f32; N] {
            let zero = Sums { products: _mm256_setzero_ps(), minimums: _mm_setzero_ps() };
            let mut sums = [zero; N];
            let mut runs = [Run::ZERO; PIECE];
            for (i, blocks) in row.chunks(PIECE / B::RUNS * size_of::<B>()).enumerate() {
                let runs = &mut runs[..blocks.len() / size_of::<B>() * B::RUNS];
                expand::<B>(blocks, runs);
                for (sums, x) in sums.iter_mut().zip(x) {
                    add::<B>(runs, x, i * PIECE, sums);
                }
            }
            sums.map(|sums| $sum(_mm256_add_ps(sums.products, _mm256_zextps128_ps256(sums.minimums))))
        }

        /// Adds the products of runs with blocks `first` and on of `x`.
        #[target_feature(enable = $features)]
        #[inline]
        fn add<B: Expand>(runs: &[Run], x: &QuantizedRow<'_>, first: usize, sums: &mut Sums) {
            let q = &x.q.as_chunks::<BLOCK_LEN>().0[first..];
            for (run, (q, (&d, s))) in runs.iter().zip(q.iter().zip(x.d[first..].iter().zip(&x.s[first..]))) {
                // SAFETY: both are 32 bytes; no alignment is asked for.
                let (w, q) = unsafe {
                    (_mm256_loadu_si256(run.q.as_ptr().cast()), _mm256_loadu_si256(q.as_ptr().cast()))
                };
                let d = _mm256_set1_ps(d);
                let products = _mm256_cvtepi32_ps($fours(_mm256_abs_epi8(w), _mm256_sign_epi8(q, w)));
                sums.products = _mm256_fmadd_ps(products, _mm256_mul_ps(halves(run.d), d), sums.products);
                match B::MINIMUM {
                    Minimum::None => {}
                    Minimum::Whole => {
                        let (m, s) = (_mm_set_ss(run.m[0]), _mm_set_ss(*s));
                        sums.minimums = _mm_fmadd_ss(m, s, sums.minimums);
                    }
                    Minimum::Halves => {
                        let total = _mm256_cvtepi32_ps($fours(_mm256_set1_epi8(1), q));
                        sums.products =
                            _mm256_fmadd_ps(total, _mm256_mul_ps(halves(run.m), d), sums.products);
                    }
                }
            }
        }

        /// The first number in the low four lanes, the second in the high four.
        #[target_feature(enable = $features)]
        #[inline]
        fn halves([low, high]: [f32; 2]) -> __m256 {
            _mm256_set_m128(_mm_set1_ps(high), _mm_set1_ps(low))
        }
    };
}
pub(super) use products_of_runs;
