//! Rows of blocks: integer products, with scales applied once for each block and tile.
//!
//! Scores: a query is `s * (256 * hi + lo)`, both terms signed bytes. A 128-bit lane belongs to a query: 16 bytes of a key go
//! to all four lanes, `vpdpbusd` leaves four partial sums a lane, and four keys are transposed at once, so that nothing is
//! summed across a register. Keys are unsigned bytes: nibbles are so already (and 8 too large), signed ones become so by
//! turning their highest bit (and are 128 too large); what that adds is the same for every key and taken off afterwards.

use std::arch::x86_64::*;

use super::{ATTEND_TILE, QUAD, fetch, rows_at, store_scores};
use crate::attend::{HeadRows, QUANT_BLOCK_WORDS};
use crate::x86::avx512::LANES;
use crate::{BLOCK_LEN, DType};

/// A quantized type, as its quants lie in a plane.
pub(super) trait Quants {
    /// Bytes of a block's quants.
    const BYTES: usize;
    /// How much too large the bytes are that [`Quants::bytes`] gives.
    const RAISED: i32;
    /// Whether sums take two blocks at a time: where a block of two rows is less than a register.
    const TWO_BLOCKS: bool;

    /// The quants of the block at `p`, raised to unsigned bytes: elements 0 to 15 and 16 to 31, each four times.
    ///
    /// # Safety
    /// - The CPU has this module's instructions.
    /// - The block's quants are readable at `p`.
    unsafe fn bytes(p: *const u8) -> [__m512i; 2];

    /// The quants of the blocks at `a` and `b` as pairs of 16 bits, in some order.
    ///
    /// # Safety
    /// - The CPU has this module's instructions.
    /// - The blocks' quants are readable there.
    unsafe fn pairs(a: *const u8, b: *const u8) -> [__m512i; 2];

    /// Sums over [`Quants::pairs`] in the order of the elements.
    ///
    /// # Safety
    /// - The CPU has this module's instructions.
    unsafe fn in_order(sums: [__m512i; 2]) -> [__m512i; 2];
}

/// [`DType::Q8_0`].
pub(super) struct Q8_0;
/// [`DType::Q4_0`].
pub(super) struct Q4_0;

// SAFETY (of every block below): the caller vouches for the bytes, and the loads ask for no alignment.

impl Quants for Q8_0 {
    const BYTES: usize = 32;
    const RAISED: i32 = 128;
    const TWO_BLOCKS: bool = false;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn bytes(p: *const u8) -> [__m512i; 2] {
        let sign = _mm512_set1_epi8(-128);
        // SAFETY: as above.
        let lanes = |at| _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(p.add(at).cast()) });
        [_mm512_xor_si512(lanes(0), sign), _mm512_xor_si512(lanes(16), sign)]
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn pairs(a: *const u8, b: *const u8) -> [__m512i; 2] {
        // SAFETY: as above.
        let [a, b] = [a, b].map(|p| _mm512_cvtepi8_epi16(unsafe { _mm256_loadu_si256(p.cast()) }));
        [_mm512_unpacklo_epi16(a, b), _mm512_unpackhi_epi16(a, b)]
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn in_order([lo, hi]: [__m512i; 2]) -> [__m512i; 2] {
        // Lane `j` of `lo` has elements 8j to 8j + 3, of `hi` the four behind them.
        let half = |first: i32| {
            let [a, b] = [first, first + 4];
            let (c, d) = (a + 16, b + 16);
            _mm512_setr_epi32(
                a,
                a + 1,
                a + 2,
                a + 3,
                c,
                c + 1,
                c + 2,
                c + 3,
                b,
                b + 1,
                b + 2,
                b + 3,
                d,
                d + 1,
                d + 2,
                d + 3,
            )
        };
        [_mm512_permutex2var_epi32(lo, half(0), hi), _mm512_permutex2var_epi32(lo, half(8), hi)]
    }
}

impl Quants for Q4_0 {
    const BYTES: usize = 16;
    const RAISED: i32 = 8;
    const TWO_BLOCKS: bool = true;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn bytes(p: *const u8) -> [__m512i; 2] {
        let nibble = _mm512_set1_epi8(15);
        // SAFETY: as above.
        let bytes = _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(p.cast()) });
        let high = _mm512_srli_epi16::<4>(bytes);
        [_mm512_and_si512(bytes, nibble), _mm512_and_si512(high, nibble)]
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn pairs(a: *const u8, b: *const u8) -> [__m512i; 2] {
        // SAFETY: as above.
        let [a, b] = [a, b].map(|p| unsafe { _mm_loadu_si128(p.cast()) });
        let both = _mm256_set_m128i(_mm_unpackhi_epi8(a, b), _mm_unpacklo_epi8(a, b));
        let both = _mm512_cvtepu8_epi16(both);
        let (low, eight) = (_mm512_and_si512(both, _mm512_set1_epi16(15)), _mm512_set1_epi16(8));
        [_mm512_sub_epi16(low, eight), _mm512_sub_epi16(_mm512_srli_epi16::<4>(both), eight)]
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    #[inline]
    unsafe fn in_order(sums: [__m512i; 2]) -> [__m512i; 2] {
        sums
    }
}

/// The largest magnitude of a quantized query.
const QUERY_MAX: f32 = 127.0 * 256.0;

/// For each four queries and each block: hi of elements 0 to 15 (a lane for each query), hi of the others, lo of both, and
/// what their products with keys are too large by, in all of a lane; then the queries' scales.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn prepare(dtype: DType, head_dim: usize, q: &[f32], words: &mut [f32]) {
    let raised = if dtype == DType::Q4_0 { Q4_0::RAISED } else { Q8_0::RAISED };
    let blocks = head_dim / BLOCK_LEN;
    let quads = q.len().div_ceil(QUAD * head_dim).max(1);
    let of_quad = (words.len() / quads).max(1);
    words.fill(0.0);
    for (words, q) in words.chunks_exact_mut(of_quad).zip(q.chunks(QUAD * head_dim)) {
        let (quants, scales) = words.split_at_mut(blocks * QUANT_BLOCK_WORDS);
        for (lane, q) in q.chunks_exact(head_dim).enumerate() {
            let (chunks, quants) = (q.as_chunks::<LANES>().0, quants.as_chunks_mut::<QUANT_BLOCK_WORDS>().0);
            // SAFETY: a chunk has a register's elements.
            let load = |chunk: &[f32; LANES]| unsafe { _mm512_loadu_ps(chunk.as_ptr()) };
            let (mut max, mut unordered) = (_mm512_setzero_ps(), 0);
            for x in chunks.iter().map(load) {
                max = _mm512_max_ps(max, _mm512_abs_ps(x));
                unordered |= _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            }
            let max = _mm512_reduce_max_ps(max);
            // Of an element that is infinite or no number nothing is left but that.
            let finite = unordered == 0 && max.is_finite();
            scales[lane * 4..][..4].fill(if finite { max / QUERY_MAX } else { f32::NAN });
            let inverse = _mm512_set1_ps(if max > 0.0 { QUERY_MAX / max } else { 0.0 });
            for (words, halves) in quants.iter_mut().zip(chunks.as_chunks::<2>().0) {
                let mut sum = _mm512_setzero_si512();
                let (terms, sums) = words.split_at_mut(64);
                let terms: &mut [[i8; 16]] = bytemuck::cast_slice_mut(terms);
                for (half, x) in halves.iter().map(load).enumerate() {
                    let x = _mm512_cvtps_epi32(_mm512_mul_ps(x, inverse));
                    let hi = _mm512_srai_epi32::<8>(_mm512_add_epi32(x, _mm512_set1_epi32(128)));
                    let lo = _mm512_sub_epi32(x, _mm512_slli_epi32::<8>(hi));
                    for (term, at) in [(hi, 4 * half + lane), (lo, 8 + 4 * half + lane)] {
                        // SAFETY: a term is 16 bytes.
                        unsafe {
                            _mm_storeu_si128(terms[at].as_mut_ptr().cast(), _mm512_cvtepi32_epi8(term));
                        }
                    }
                    sum = _mm512_add_epi32(sum, x);
                }
                let sum = _mm512_reduce_add_epi32(sum).wrapping_mul(-raised);
                bytemuck::cast_slice_mut(sums)[lane * 4..][..4].fill(sum);
            }
        }
    }
}

/// Scores of four queries against all keys.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - `keys` has a row; `words` are those of four queries; `scores` has four rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn scores<Q: Quants>(keys: &HeadRows<'_>, words: &[f32], scores: &mut [f32]) {
    let blocks = keys.head_dim / BLOCK_LEN;
    let mut partial = [_mm512_setzero_ps(); ATTEND_TILE / 4];
    // SAFETY: blocks of rows that there are, and their words.
    unsafe {
        let of_rows = _mm512_loadu_ps(words.as_ptr().add(blocks * QUANT_BLOCK_WORDS));
        for b in 0..blocks {
            let word = words.as_ptr().add(b * QUANT_BLOCK_WORDS);
            let load = |i: usize| _mm512_loadu_si512(word.add(16 * i).cast());
            let (hi, lo, raised) = ([load(0), load(1)], [load(2), load(3)], load(4));
            let d = scales(keys, b);
            let mut start = keys.bytes.as_ptr().add(keys.quants + b * Q::BYTES);
            for (group, partial) in partial[..keys.len.div_ceil(4)].iter_mut().enumerate() {
                let rows: [*const u8; 4] = rows_at(start, keys.stride, keys.len - group * 4);
                if b == 0 {
                    fetch::<4>(keys, start);
                }
                start = start.wrapping_add(keys.stride.wrapping_mul(4));
                let sums = rows.map(|row| {
                    let [x, y] = Q::bytes(row);
                    let sum = _mm512_dpbusd_epi32(_mm512_setzero_si512(), x, hi[0]);
                    let sum = _mm512_slli_epi32::<8>(_mm512_dpbusd_epi32(sum, y, hi[1]));
                    _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sum, x, lo[0]), y, lo[1])
                });
                let sums = _mm512_cvtepi32_ps(_mm512_add_epi32(transposed_sum(sums), raised));
                let d = _mm512_broadcast_f32x4(_mm_loadu_ps(d.as_ptr().add(group * 4)));
                *partial = _mm512_fmadd_ps(sums, d, *partial);
            }
        }
        for (group, sums) in partial[..keys.len.div_ceil(4)].iter().enumerate() {
            store_scores(scores, group * 4, _mm512_mul_ps(*sums, of_rows));
        }
    }
}

/// As the floats' [`transposed_sum`](super::transposed_sum).
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn transposed_sum([a, b, c, d]: [__m512i; 4]) -> __m512i {
    let ab = _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let cd = _mm512_add_epi32(_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
    _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd))
}

/// The scales of block `b` of all rows, then zeros.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - The rows have such a block.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
pub(super) unsafe fn scales(rows: &HeadRows<'_>, b: usize) -> [f32; ATTEND_TILE] {
    let (mut halves, mut scales) = ([0u16; ATTEND_TILE], [0f32; ATTEND_TILE]);
    // SAFETY: two bytes of each row; the arrays have four registers' worth.
    unsafe {
        let mut p = rows.bytes.as_ptr().add(rows.scales + 2 * b);
        for half in &mut halves[..rows.len] {
            *half = p.cast::<u16>().read_unaligned();
            p = p.wrapping_add(rows.stride);
        }
        for c in (0..ATTEND_TILE).step_by(16) {
            let x = _mm512_cvtph_ps(_mm256_loadu_si256(halves.as_ptr().add(c).cast()));
            _mm512_storeu_ps(scales.as_mut_ptr().add(c), x);
        }
    }
    scales
}
