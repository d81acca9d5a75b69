//! Weights in the order in which a GPU takes them: what is alike of all runs side by side, in planes. [`WeightPlanes`] has
//! the picture.

use std::ops::Range;

use half::f16;

use crate::error::check_len;
use crate::expand::{Expand, Scales, by_block};
use crate::packed::{bits_of_codes, has_minimum};
use crate::{BLOCK_LEN, DType, Error, decode};

/// What the start of a plane is a multiple of, in bytes from the tensor's.
const PLANE_ALIGN: usize = 256;
/// What the bytes of a row of floats are a multiple of.
const FLOAT_ALIGN: usize = 16;

/// Where the planes of a matrix of weights lie: bytes from its start. One that its type does not have is empty and begins
/// where the next one does.
///
/// A matrix of `rows` x `cols` has `cols / 32` runs of 32 elements a row: run `i` of row `r` is run `r * cols / 32 + i`. Its
/// blocks are numbered alike. Each plane begins at a multiple of 256 bytes from the tensor's start, and the whole is as long
/// as a multiple of 256.
///
/// ```text
/// quantized  | low, by run |  | high, by run |  | scales, by run |  | d, by block |  |
/// floats     | row 0 | 0.. | row 1 | 0.. | ...  |      rows padded with zeros to a multiple of 16 bytes
///
/// low        LOW words a run (2, 4 or 8), little-endian; high: HIGH words (none, 1 or 2) of the bits above
///            word p has, from the lowest bit on, LOW bits of each of code words p, p + LOW, p + 2 LOW, ...
///            code word n has the codes of elements 4 n to 4 n + 3, one a byte
/// scales     bytes of a run: scales, then minimums
///              one scale a run       | s |          with minimums  | s | t |
///              one each 16 elements  | s0 | s1 |    Q2_K           | s0, t0 | s1, t1 |   scale low, minimum high four bits
/// d          bytes of a block: | d: f16 | or, with minimums, | d: f16 | minimum: f16 |
///
/// for example nibbles, word p of 4:
///   bits    0 to 3   4 to 7       8 to 11      12 to 15       16 to 19     20 to 23       24 to 27     28 to 31
///   element 4 p      16 + 4 p     4 p + 1      16 + 4 p + 1   4 p + 2      16 + 4 p + 2   4 p + 3      16 + 4 p + 3
/// ```
///
/// | type | low | high | scales | d | bits an element |
/// | --- | ---: | ---: | ---: | ---: | ---: |
/// | `Q8_0` | 32 | 0 | 0 | 2 | 8.5 |
/// | `Q4_0`, `IQ4_NL` | 16 | 0 | 0 | 2 | 4.5 |
/// | `Q4_1` | 16 | 0 | 0 | 4 | 5 |
/// | `Q5_0` | 16 | 4 | 0 | 2 | 5.5 |
/// | `Q5_1` | 16 | 4 | 0 | 4 | 6 |
/// | `Q2_K` | 8 | 0 | 2 | 4 | 2.625 |
/// | `Q3_K` | 8 | 4 | 2 | 2 | 3.5625 |
/// | `Q4_K` | 16 | 0 | 2 | 4 | 4.625 |
/// | `Q5_K` | 16 | 4 | 2 | 4 | 5.625 |
/// | `Q6_K` | 16 | 8 | 2 | 2 | 6.5625 |
/// | `IQ4_XS` | 16 | 0 | 1 | 2 | 4.3125 |
/// | `IQ2_XXS` | 8 | 4 | 1 | 2 | 3.3125 |
///
/// Bytes of a run and, of `d`, of a block. What codes are is said with each type's block; one of `Q8_0` is its quant plus 128,
/// one of `IQ2_XXS` is 0, 1 or 2 for 8, 25 or 43, and 4 more for their negatives. A scale is the whole factor of `d`, as an i8
/// (`Q3_K` and `IQ4_XS`: `s - 32`; `IQ2_XXS`: `2 s + 1`, of `d / 8`), a minimum a u8. Nothing is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WeightPlanes {
    /// The low bits of the codes, or the floats: 0.
    pub low: usize,
    /// The high bits of the codes.
    pub high: usize,
    /// The scales and minimums of runs.
    pub scales: usize,
    /// The scales and minimums of blocks.
    pub d: usize,
    /// Bytes from a row to the next in `low`.
    pub low_stride: usize,
    /// Bytes of all: a multiple of 256.
    pub bytes: usize,
}

/// Bytes that a type has in each plane: of a run; of a block.
struct PlaneBytes {
    low: usize,
    high: usize,
    scales: usize,
    d: usize,
    runs: usize,
}

const fn plane_bytes<B: Expand>() -> PlaneBytes {
    let scales = scale_count::<B>();
    let minimums = if has_minimum::<B>() && !B::NARROW { scales } else { 0 };
    PlaneBytes {
        low: 4 * B::BITS.0,
        high: 4 * B::BITS.1,
        scales: scales + minimums,
        d: if has_minimum::<B>() { 4 } else { 2 },
        runs: B::RUNS,
    }
}

/// Scales of a run in the plane of scales; minimums, where there are any, are as many.
const fn scale_count<B: Expand>() -> usize {
    match B::SCALES {
        Scales::One => 0,
        Scales::Whole => 1,
        Scales::Halves => 2,
    }
}

impl WeightPlanes {
    /// The planes of `rows` x `cols` elements.
    ///
    /// # Errors
    /// [`Error::RowLength`] where `cols` is not a whole number of blocks, [`Error::TooLarge`].
    pub fn of(dtype: DType, rows: usize, cols: usize) -> Result<WeightPlanes, Error> {
        let too_large = Error::TooLarge { dtype, len: cols };
        let row = dtype.row_bytes(cols)?;
        let bytes: Option<PlaneBytes> = by_block!(dtype, some_plane_bytes, (), None);
        // Bytes of a row in each plane; of blocks, none has more than `row`.
        let rows_of = match bytes {
            Some(a) => {
                let (runs, blocks) = (cols / BLOCK_LEN, cols / BLOCK_LEN / a.runs);
                [a.low * runs, a.high * runs, a.scales * runs, a.d * blocks]
            }
            None => [row.checked_next_multiple_of(FLOAT_ALIGN).ok_or(too_large.clone())?, 0, 0, 0],
        };
        let mut at = [0; 5];
        for (i, bytes) in rows_of.into_iter().enumerate() {
            let plane = rows.checked_mul(bytes).and_then(|n| n.checked_next_multiple_of(PLANE_ALIGN));
            let end = plane.and_then(|n| n.checked_add(at[i]));
            at[i + 1] = end.ok_or(too_large.clone())?;
        }
        let [low, high, scales, d, bytes] = at;
        Ok(WeightPlanes { low, high, scales, d, low_stride: rows_of[0], bytes })
    }
}

fn some_plane_bytes<B: Expand>() -> Option<PlaneBytes> {
    Some(plane_bytes::<B>())
}

/// Lays `rows` x `cols` weights out in planes: `ggml` is dense rows as in a file, at any address, `planes` has
/// [`WeightPlanes::bytes`] of them. What lies between planes stays as it is.
///
/// ```
/// use granule_quant::{DType, WeightPlanes, decode_planes, encode, pack_planes};
///
/// let mut ggml = [0; 2 * 36];
/// encode(DType::Q4_0, &[0.5; 2 * 64], &mut ggml)?;
/// let mut planes = vec![0; WeightPlanes::of(DType::Q4_0, 2, 64)?.bytes];
/// pack_planes(DType::Q4_0, 2, 64, &ggml, &mut planes)?;
/// let mut row = [0.0; 64];
/// decode_planes(DType::Q4_0, 2, 64, &planes, 1, &mut row)?;
/// assert_eq!(row, [0.5; 64]);
/// # Ok::<(), granule_quant::Error>(())
/// ```
///
/// # Errors
/// Those of [`WeightPlanes::of`], [`Error::Length`] where lengths disagree. `planes` is then as it was.
pub fn pack_planes(
    dtype: DType,
    rows: usize,
    cols: usize,
    ggml: &[u8],
    planes: &mut [u8],
) -> Result<(), Error> {
    pack_planes_rows(dtype, rows, cols, 0..rows, ggml, planes)
}

/// [`pack_planes`] of the rows `piece` of a matrix: `ggml` has these, `planes` is the whole matrix, whose other rows stay
/// as they are.
///
/// # Errors
/// Those of [`pack_planes`], and [`Error::Length`] where `piece` goes beyond the rows that there are.
pub fn pack_planes_rows(
    dtype: DType,
    rows: usize,
    cols: usize,
    piece: Range<usize>,
    ggml: &[u8],
    planes: &mut [u8],
) -> Result<(), Error> {
    let at = WeightPlanes::of(dtype, rows, cols)?;
    check_len("planes", at.bytes, planes.len())?;
    if piece.start > piece.end || piece.end > rows {
        return Err(Error::Length { what: "rows", expected: rows, got: piece.end.max(piece.start) });
    }
    let row = dtype.row_bytes(cols)?;
    // No more than `planes` has.
    check_len("ggml", row * piece.len(), ggml.len())?;
    if row == 0 {
        return Ok(());
    }
    if dtype.is_quantized() {
        let first = piece.start * (cols / dtype.block_len());
        by_block!(dtype, pack_blocks, (&at, first, ggml, planes), ());
    } else {
        let padded = planes[piece.start * at.low_stride..].chunks_exact_mut(at.low_stride);
        for (from, to) in ggml.chunks_exact(row).zip(padded) {
            to[..row].copy_from_slice(from);
            to[row..].fill(0);
        }
    }
    Ok(())
}

/// Packs blocks from number `first` on.
fn pack_blocks<B: Expand>(at: &WeightPlanes, first: usize, ggml: &[u8], planes: &mut [u8]) {
    let bytes = plane_bytes::<B>();
    for (i, block) in ggml.chunks_exact(size_of::<B>()).enumerate() {
        let (b, block) = (first + i, bytemuck::pod_read_unaligned::<B>(block));
        let d = &mut planes[at.d + b * bytes.d..][..bytes.d];
        d[..2].copy_from_slice(&block.d().to_le_bytes());
        if has_minimum::<B>() {
            d[2..].copy_from_slice(&block.minimum().to_le_bytes());
        }
        for i in 0..B::RUNS {
            let (run, codes) = (b * B::RUNS + i, bytemuck::cast(block.codes(i)));
            set_bits(&codes, 0, &mut planes[at.low + run * bytes.low..][..bytes.low]);
            set_bits(&codes, B::BITS.0, &mut planes[at.high + run * bytes.high..][..bytes.high]);
            let to = &mut planes[at.scales + run * bytes.scales..][..bytes.scales];
            let (s, t) = (block.scales(i).map(i8::cast_unsigned), block.minimums(i));
            if B::NARROW {
                to.copy_from_slice(&[s[0] | t[0] << 4, s[1] | t[1] << 4]);
            } else {
                let (scales, minimums) = to.split_at_mut(scale_count::<B>());
                scales.copy_from_slice(&s[..scales.len()]);
                minimums.copy_from_slice(&t[..minimums.len()]);
            }
        }
    }
}

/// Fills the words of a run with bits `from` and on of its codes, as many of each as there are words.
fn set_bits(codes: &[u32; BLOCK_LEN / 4], from: usize, words: &mut [u8]) {
    let words = words.as_chunks_mut().0;
    let bits = words.len();
    for (p, word) in words.iter_mut().enumerate() {
        *word = bits_of_codes(codes, from, bits, p).to_le_bytes();
    }
}

/// Decodes row `row` of a matrix in planes: the numbers of [`decode`] of its ggml bytes. For tests and tools.
///
/// # Errors
/// Those of [`WeightPlanes::of`], [`Error::Length`] where lengths disagree or there is no such row. `dst` is then as it was.
pub fn decode_planes(
    dtype: DType,
    rows: usize,
    cols: usize,
    planes: &[u8],
    row: usize,
    dst: &mut [f32],
) -> Result<(), Error> {
    let at = WeightPlanes::of(dtype, rows, cols)?;
    check_len("planes", at.bytes, planes.len())?;
    check_len("dst", cols, dst.len())?;
    if row >= rows {
        return Err(Error::Length { what: "rows", expected: rows, got: row });
    }
    if !dtype.is_quantized() {
        return decode(dtype, &planes[row * at.low_stride..][..dtype.row_bytes(cols)?], dst);
    }
    by_block!(dtype, decode_runs, (&at, row * (cols / BLOCK_LEN), planes, dst), ());
    Ok(())
}

/// Decodes runs from number `first` on.
fn decode_runs<B: Expand>(at: &WeightPlanes, first: usize, planes: &[u8], dst: &mut [f32]) {
    let bytes = plane_bytes::<B>();
    for (i, x) in dst.as_chunks_mut::<BLOCK_LEN>().0.iter_mut().enumerate() {
        let run = first + i;
        let low = &planes[at.low + run * bytes.low..][..bytes.low];
        let high = &planes[at.high + run * bytes.high..][..bytes.high];
        let codes: [u32; BLOCK_LEN / 4] =
            std::array::from_fn(|n| bits_of_word(low, n) | bits_of_word(high, n) << B::BITS.0);
        let (mut scales, mut minimums) = ([1; 2], [0; 2]);
        let of_run = &planes[at.scales + run * bytes.scales..][..bytes.scales];
        if B::NARROW {
            scales = [of_run[0] & 15, of_run[1] & 15];
            minimums = [of_run[0] >> 4, of_run[1] >> 4];
        } else if let Some(last) = scale_count::<B>().checked_sub(1) {
            scales = [of_run[0], of_run[last]];
            if has_minimum::<B>() {
                minimums = [of_run[last + 1], of_run[2 * last + 1]];
            }
        }
        let d = &planes[at.d + run / B::RUNS * bytes.d..][..bytes.d];
        let half = |i: usize| d.as_chunks().0.get(i).map_or(f16::ZERO, |&bits| f16::from_le_bytes(bits));
        let scales = scales.map(u8::cast_signed);
        B::run_of(bytemuck::cast(codes), [half(0), half(1)], scales, minimums).values(x);
    }
}

/// The bits that code word `n` has among the words of a run.
fn bits_of_word(words: &[u8], n: usize) -> u32 {
    let words = words.as_chunks().0;
    let bits = words.len();
    if bits == 0 {
        return 0;
    }
    let mask = u32::from_ne_bytes([((1_u32 << bits) - 1) as u8; 4]);
    u32::from_le_bytes(words[n % bits]) >> (n / bits * bits) & mask
}
