//! Sums of rows of blocks with weights, by integer products, a tile at a time.
//!
//! `weight * d` of a tile, where every weight is at most 1, become 16-bit integers; two keys' values, widened to 16
//! bits and interleaved, meet two weights in `vpdpwssd`. At most 64 products of 16 by 8 bits: no sum overflows. Two blocks
//! of nibbles at a time fill registers; they stay 8 too large here too: that is 8 times the sum of the weights, taken off once.

use std::arch::x86_64::*;

use super::quants::{Q4_0, Quants, scales};
use super::{ATTEND_TILE, fetch, rows_at};
use crate::BLOCK_LEN;
use crate::attend::HeadRows;

/// The largest magnitude of a tile's integer weights: below 2^15, and whatever rounding adds too.
const WEIGHT_MAX: f32 = 32_766.0;

/// Sums of `R` query rows.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - `values` has a row; `weights`, `factors` and `sums` are those of `R` query rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) unsafe fn sums<Q: Quants, const R: usize>(
    values: &HeadRows<'_>,
    weights: &[f32],
    factors: &[[f32; 2]],
    sums: &mut [f32],
) {
    let blocks = values.head_dim / BLOCK_LEN;
    let mut b = 0;
    while b < blocks {
        // SAFETY: blocks of the rows; weights and sums of `R` query rows.
        unsafe {
            if Q::TWO_BLOCKS && b + 1 < blocks {
                let (first, second) = (scaled(values, b), scaled(values, b + 1));
                let tile = nibble_sums::<R>(values, b, &two_whole_weights(weights, &first.d, &second.d));
                add_block(sums, values.head_dim, b, tile.map(|tile| tile[0]), first.unit, factors);
                add_block(sums, values.head_dim, b + 1, tile.map(|tile| tile[1]), second.unit, factors);
                b += 2;
            } else {
                let block = scaled(values, b);
                let integers = whole_weights(weights, &block.d);
                let tile = tile_sums::<Q, R>(values, b, &integers).map(|tile| Q::in_order(tile));
                add_block(sums, values.head_dim, b, tile, block.unit, factors);
                b += 1;
            }
        }
    }
}

/// The scales of a block of all values in a unit in which their products with weights are whole numbers.
struct Scaled {
    d: [__m512; ATTEND_TILE / 16],
    unit: f32,
}

/// # Safety
/// - The CPU has this module's instructions.
/// - `values` has a row, with a block `b`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn scaled(values: &HeadRows<'_>, b: usize) -> Scaled {
    // SAFETY: the caller says so; a register's worth each.
    let d = unsafe {
        let d = scales(values, b);
        std::array::from_fn(|c| _mm512_loadu_ps(d.as_ptr().add(16 * c)))
    };
    let [d0, d1, d2, d3] = d.map(|d| _mm512_abs_ps(d));
    let max = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(d0, d1), _mm512_max_ps(d2, d3)));
    let inverse = _mm512_set1_ps(if max > 0.0 { WEIGHT_MAX / max } else { 0.0 });
    Scaled { d: d.map(|d| _mm512_mul_ps(d, inverse)), unit: max / WEIGHT_MAX }
}

/// The 16 products of a row's weights with scales from key `16 * c` on, as whole numbers.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - `weights` has a row `r` of a tile, `c` is below 4.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn products(weights: &[f32], r: usize, c: usize, d: &[__m512; ATTEND_TILE / 16]) -> __m512i {
    // SAFETY: the caller says so.
    let weights = unsafe { _mm512_loadu_ps(weights.as_ptr().add(r * ATTEND_TILE + 16 * c)) };
    _mm512_cvtps_epi32(_mm512_mul_ps(weights, d[c]))
}

/// A tile's weights, key by key.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - `weights` are those of `R` query rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn whole_weights<const R: usize>(
    weights: &[f32],
    d: &[__m512; ATTEND_TILE / 16],
) -> [[i16; ATTEND_TILE]; R] {
    let mut integers = [[0i16; ATTEND_TILE]; R];
    for (r, integers) in integers.iter_mut().enumerate() {
        for c in 0..ATTEND_TILE / 16 {
            // SAFETY: the caller vouches for the row; 16 of its 64 keys.
            unsafe {
                let whole = _mm512_cvtepi32_epi16(products(weights, r, c, d));
                _mm256_storeu_si256(integers.as_mut_ptr().add(16 * c).cast(), whole);
            }
        }
    }
    integers
}

/// A tile's weights for two blocks: of each two keys first the one block's, then the other's.
///
/// # Safety
/// As [`whole_weights`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn two_whole_weights<const R: usize>(
    weights: &[f32],
    first: &[__m512; ATTEND_TILE / 16],
    second: &[__m512; ATTEND_TILE / 16],
) -> [[i16; 2 * ATTEND_TILE]; R] {
    let mut integers = [[0i16; 2 * ATTEND_TILE]; R];
    for (r, integers) in integers.iter_mut().enumerate() {
        for c in 0..ATTEND_TILE / 16 {
            // SAFETY: the caller vouches for the row; 16 of its 64 keys, twice.
            unsafe {
                let (x, y) = (products(weights, r, c, first), products(weights, r, c, second));
                let four_and_four = _mm512_packs_epi32(x, y);
                let two_and_two = _mm512_shuffle_epi32::<0b11_01_10_00>(four_and_four);
                _mm512_storeu_si512(integers.as_mut_ptr().add(32 * c).cast(), two_and_two);
            }
        }
    }
    integers
}

/// Adds the sums of block `b` over a tile, in `unit`s, to those of all rows of `sums`.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - `factors` and `sums` are those of `R` query rows of `head_dim` elements, which has a block `b`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn add_block<const R: usize>(
    sums: &mut [f32],
    head_dim: usize,
    b: usize,
    tile: [[__m512i; 2]; R],
    unit: f32,
    factors: &[[f32; 2]],
) {
    for (r, tile) in tile.into_iter().enumerate() {
        let (grow, shrink) = (_mm512_set1_ps(factors[r][0] * unit), _mm512_set1_ps(factors[r][1]));
        for (c, tile) in tile.into_iter().enumerate() {
            // SAFETY: half of a block of the row, the caller says.
            unsafe {
                let p = sums.as_mut_ptr().add(r * head_dim + b * BLOCK_LEN + c * 16);
                let before = _mm512_mul_ps(_mm512_loadu_ps(p), shrink);
                _mm512_storeu_ps(p, _mm512_fmadd_ps(_mm512_cvtepi32_ps(tile), grow, before));
            }
        }
    }
}

/// The integer sums of blocks `b` and `b + 1` of nibbles over all values, in the order of the elements; of each two keys
/// `weights` has the one block's, then the other's, and so have registers: 32 bits of the one, 32 of the other.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - `values` has a row, with both blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn nibble_sums<const R: usize>(
    values: &HeadRows<'_>,
    b: usize,
    weights: &[[i16; 2 * ATTEND_TILE]; R],
) -> [[[__m512i; 2]; 2]; R] {
    let mut sums: [[__m512i; 4]; R] = std::array::from_fn(|r| [raised_by(&weights[r]); 4]);
    let nibble = _mm512_set1_epi16(15);
    let mut start = values.bytes.as_ptr().wrapping_add(values.quants + b * Q4_0::BYTES);
    for key in (0..values.len).step_by(2) {
        let rows: [*const u8; 2] = rows_at(start, values.stride, values.len - key);
        if b == 0 {
            fetch::<2>(values, start);
        }
        start = start.wrapping_add(values.stride.wrapping_mul(2));
        // SAFETY: the blocks' quants; two pairs of weights, 0 where there is no second row.
        unsafe {
            // Bytes 0 to 7 of both blocks in the lower half, 8 to 15 in the upper.
            let halves =
                |p: *const u8| _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_loadu_si256(p.cast()));
            let [x, y] = rows.map(halves);
            // Pairs of the two rows, of the one block and of the other.
            let (first, second) = (_mm256_unpacklo_epi8(x, y), _mm256_unpackhi_epi8(x, y));
            let low = _mm512_cvtepu8_epi16(_mm256_unpacklo_epi16(first, second));
            let high = _mm512_cvtepu8_epi16(_mm256_unpackhi_epi16(first, second));
            let pairs = [
                _mm512_and_si512(low, nibble),
                _mm512_and_si512(high, nibble),
                _mm512_srli_epi16::<4>(low),
                _mm512_srli_epi16::<4>(high),
            ];
            for (sums, weights) in sums.iter_mut().zip(weights) {
                let both = weights.as_ptr().add(2 * key).cast::<i64>().read_unaligned();
                let both = _mm512_set1_epi64(both);
                for (sum, pair) in sums.iter_mut().zip(pairs) {
                    *sum = _mm512_dpwssd_epi32(*sum, pair, both);
                }
            }
        }
    }
    // Elements 0 to 3 and 8 to 11 of both blocks, then 4 to 7 and 12 to 15.
    let first = _mm512_setr_epi32(0, 2, 4, 6, 16, 18, 20, 22, 8, 10, 12, 14, 24, 26, 28, 30);
    let second = _mm512_add_epi32(first, _mm512_set1_epi32(1));
    sums.map(|[a, b, c, d]| {
        [first, second].map(|of| [_mm512_permutex2var_epi32(a, of, b), _mm512_permutex2var_epi32(c, of, d)])
    })
}

/// What is to be added to each sum of a row for nibbles being raised, as [`nibble_sums`] has them in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
fn raised_by(weights: &[i16; 2 * ATTEND_TILE]) -> __m512i {
    let less = _mm512_set1_epi16(-Q4_0::RAISED as i16);
    let mut sum = _mm512_setzero_si512();
    for part in weights.as_chunks::<32>().0 {
        // SAFETY: a register's worth.
        sum = _mm512_dpwssd_epi32(sum, unsafe { _mm512_loadu_si512(part.as_ptr().cast()) }, less);
    }
    // Over all lanes of a block, in each of them.
    let sum = _mm512_add_epi32(sum, _mm512_shuffle_epi32::<0b01_00_11_10>(sum));
    let sum = _mm512_add_epi32(sum, _mm512_shuffle_i64x2::<0b01_00_11_10>(sum, sum));
    _mm512_add_epi32(sum, _mm512_shuffle_i64x2::<0b10_11_00_01>(sum, sum))
}

/// The integer sums of one block over all values.
///
/// # Safety
/// - The CPU has this module's instructions.
/// - `values` has a row, with a block `b`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
#[inline]
unsafe fn tile_sums<Q: Quants, const R: usize>(
    values: &HeadRows<'_>,
    b: usize,
    weights: &[[i16; ATTEND_TILE]; R],
) -> [[__m512i; 2]; R] {
    let mut sums = [[_mm512_setzero_si512(); 2]; R];
    let mut start = values.bytes.as_ptr().wrapping_add(values.quants + b * Q::BYTES);
    for key in (0..values.len).step_by(2) {
        let rows: [*const u8; 2] = rows_at(start, values.stride, values.len - key);
        if b == 0 {
            fetch::<2>(values, start);
        }
        start = start.wrapping_add(values.stride.wrapping_mul(2));
        // SAFETY: the block's quants; a pair of weights, 0 where there is no second row.
        unsafe {
            let pairs = Q::pairs(rows[0], rows[1]);
            for (sums, weights) in sums.iter_mut().zip(weights) {
                let two = _mm512_set1_epi32(weights.as_ptr().add(key).cast::<i32>().read_unaligned());
                sums[0] = _mm512_dpwssd_epi32(sums[0], pairs[0], two);
                sums[1] = _mm512_dpwssd_epi32(sums[1], pairs[1], two);
            }
        }
    }
    sums
}
