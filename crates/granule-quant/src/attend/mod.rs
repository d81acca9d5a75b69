//! Attention's two products over rows of a KV cache at a stride, a tile of rows at a time: scores of query rows against
//! keys, and sums of values with weights.
//!
//! A *tile* is up to [`ATTEND_TILE`] rows of one KV head. A group of query rows that reads the head (its query heads, times
//! tokens) meets it in three calls: [`Isa::scores`], [`Isa::softmax_tile`], [`Isa::weighted_sums`]. Each tile gets a softmax
//! of its own, merged into what came before (Milakov and Gimelshein, 2018), so its weights are between 0 and 1 and its
//! largest is 1: which is what lets the quantized types weigh values with 16-bit integers.
//!
//! | rows | scores by AVX-512 | sums by AVX-512 |
//! | --- | --- | --- |
//! | `F32`, `F16`, `BF16` | f32 products of four keys with four queries | f32 |
//! | `Q8_0`, `Q4_0` | `vpdpbusd`: queries as two 8-bit terms, 15 bits and a sign for a row's largest element | `vpdpwssd`: a weight and its value's scale as one 16-bit integer for each tile and block |
//!
//! The other paths compute all types in f32. What the integers cost, and what all paths share, stands with each function.

pub(crate) mod portable;
pub(crate) mod portable_softmax;

use crate::error::check_len;
use crate::isa::by_isa;
use crate::{BLOCK_LEN, DType, Error, Isa, planar_bytes};

/// The most rows of one call.
pub const ATTEND_TILE: usize = 64;

/// Query rows that are prepared together.
pub(crate) const QUAD: usize = 4;

/// Rows of one head, of keys or of values, as they lie in a cache: row `i` has its quants `i * stride + quants` bytes behind
/// the start, its scales `i * stride + scales`.
#[derive(Clone, Copy, Debug)]
pub struct HeadRows<'a> {
    pub(crate) dtype: DType,
    pub(crate) head_dim: usize,
    pub(crate) bytes: &'a [u8],
    pub(crate) stride: usize,
    pub(crate) quants: usize,
    pub(crate) scales: usize,
    pub(crate) len: usize,
    pub(crate) ahead: Ahead,
}

/// Cache lines to ask for while a row is read: `lines` of them from `at` bytes behind the row's start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ahead {
    pub(crate) at: usize,
    pub(crate) lines: usize,
}

impl<'a> HeadRows<'a> {
    /// `len` rows of `head_dim` elements; `bytes` starts with the first row's first byte.
    ///
    /// # Errors
    /// [`Error::NotPlanar`] and [`Error::RowLength`] for what no row can be, [`Error::Length`] where the rows do not end
    /// in `bytes`.
    pub fn new(
        dtype: DType,
        head_dim: usize,
        bytes: &'a [u8],
        stride: usize,
        [quants, scales]: [usize; 2],
        len: usize,
    ) -> Result<Self, Error> {
        let planes = planar_bytes(dtype, head_dim)?;
        let end_of_row = quants.saturating_add(planes.quants).max(scales.saturating_add(planes.scales));
        let end = len.saturating_sub(1).saturating_mul(stride).saturating_add(end_of_row);
        if len > 0 && end > bytes.len() {
            return Err(Error::Length { what: "bytes", expected: end, got: bytes.len() });
        }
        Ok(Self { dtype, head_dim, bytes, stride, quants, scales, len, ahead: Ahead::default() })
    }

    /// Rows `first..first + n`, cut to those that there are.
    #[must_use]
    pub fn rows(&self, first: usize, n: usize) -> HeadRows<'a> {
        let first = first.min(self.len);
        let bytes = self.bytes.get(first * self.stride..).unwrap_or_default();
        HeadRows { bytes, len: n.min(self.len - first), ahead: Ahead::default(), ..*self }
    }

    /// The same rows; while each is read, `lines` cache lines from `at` bytes behind its start are fetched. They need not be
    /// mapped. Rows that lie pages apart are not foreseen by the hardware.
    #[must_use]
    pub fn fetching(self, at: usize, lines: usize) -> HeadRows<'a> {
        HeadRows { ahead: Ahead { at, lines }, ..self }
    }

    /// Element type.
    #[must_use]
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// How many rows.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Decodes the rows into `out` (len x head_dim).
    ///
    /// # Errors
    /// [`Error::Length`] where `out` has another length.
    pub fn decode(&self, isa: Isa, out: &mut [f32]) -> Result<(), Error> {
        check_len("out", self.len * self.head_dim, out.len())?;
        let planes = planar_bytes(self.dtype, self.head_dim)?;
        for (i, out) in out.chunks_exact_mut(self.head_dim.max(1)).enumerate() {
            let quants = &self.bytes[i * self.stride + self.quants..][..planes.quants];
            let scales = &self.bytes[i * self.stride + self.scales..][..planes.scales];
            isa.decode_planar(self.dtype, quants, scales, out)?;
        }
        Ok(())
    }

    /// The `n` elements of row `i` from element `d` on, both whole blocks: quants and scales.
    pub(crate) fn part(&self, i: usize, d: usize, n: usize) -> (&'a [u8], &'a [u8]) {
        let (block, bytes) = (self.dtype.block_len(), self.dtype.block_bytes());
        let scale = if self.dtype.is_quantized() { 2 } else { 0 };
        let bytes_of = |elements: usize| elements / block * (bytes - scale);
        let (row, first) = (&self.bytes[i * self.stride..], d / block);
        let quants = &row[self.quants + bytes_of(d)..][..bytes_of(n)];
        let scales = &row[self.scales + first * scale..][..n / block * scale];
        (quants, scales)
    }
}

/// Asks for `lines` cache lines from `at` bytes behind the start of each of `n` rows, which need not be mapped, in the
/// second-level cache. For rows that will be read next and that nothing has fetched; a no-op where the CPU has no such hint.
pub fn fetch_rows(bytes: &[u8], stride: usize, n: usize, at: usize, lines: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    for row in 0..n {
        let row = bytes.as_ptr().wrapping_add(row.wrapping_mul(stride).wrapping_add(at));
        (0..lines).for_each(|line| crate::x86::prefetch_l2(row.wrapping_add(64 * line)));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = (bytes, stride, n, at, lines);
}

/// The softmax of a group of query rows as it stands after some tiles: one number for each row.
#[derive(Debug)]
pub struct RunningSoftmax<'a> {
    /// Largest score so far; `f32::MIN` before the first tile.
    pub max: &'a mut [f32],
    /// Sum of `exp(score - max)`; 0 before the first tile.
    pub total: &'a mut [f32],
    /// For [`Isa::weighted_sums`]: what this tile's sums and those so far are to be multiplied with.
    pub factors: &'a mut [[f32; 2]],
}

/// How a tile's scores become weights.
#[derive(Clone, Copy, Debug)]
pub struct TileShape {
    /// Query rows.
    pub rows: usize,
    /// Keys of the tile.
    pub keys: usize,
    /// Keys of the tile that query row 0 sees, counted from the first; negative where the first is beyond it.
    pub seen: isize,
    /// Query rows (the heads of a token) after which one key more is seen.
    pub group: usize,
    /// Factor on the scores.
    pub scale: f32,
}

/// f32 words that the prepared queries of `rows` rows take.
#[must_use]
pub fn query_words(dtype: DType, head_dim: usize, rows: usize) -> usize {
    let quads = rows.div_ceil(QUAD);
    let floats = QUAD * head_dim.next_multiple_of(16);
    let quants = if dtype.is_quantized() { head_dim / BLOCK_LEN * QUANT_BLOCK_WORDS + 16 } else { 0 };
    quads * floats.max(quants)
}

/// f32 words of a block of four quantized queries: four registers of quants, one of sums.
pub(crate) const QUANT_BLOCK_WORDS: usize = 5 * 16;

impl Isa {
    /// Brings queries into the form that [`Isa::scores`] takes against keys of this type: `q` is rows x head_dim, `words`
    /// is [`query_words`] long.
    ///
    /// # Errors
    /// [`Error::NotPlanar`], [`Error::RowLength`], [`Error::Length`].
    pub fn prepare_queries(
        self,
        dtype: DType,
        head_dim: usize,
        q: &[f32],
        words: &mut [f32],
    ) -> Result<(), Error> {
        planar_bytes(dtype, head_dim)?;
        let rows = q.len() / head_dim.max(1);
        check_len("q", rows * head_dim, q.len())?;
        check_len("words", query_words(dtype, head_dim, rows), words.len())?;
        if head_dim == 0 {
            return Ok(());
        }
        by_isa!(self, attend::prepare(dtype, head_dim, q, words));
        Ok(())
    }

    /// Scores of `rows` prepared queries against a tile of keys: `scores[row * ATTEND_TILE + key]` is their dot product.
    /// `scores` has room for a multiple of four rows; what is behind the last key of a row is left undefined.
    ///
    /// With `t` the sum of the magnitudes of the products, `n` the head dimension: within `(n + 8) * 2^-23 * t` of the
    /// exact sum of products with the decoded keys where f32 is used; where queries are quantized, `1.01 * 2^-16 * max|q| *
    /// sum|k'|` more (half of a step, of which there are 127 * 256).
    ///
    /// The caller has checked the shapes: where they do not fit, the scores are NaN (and a debug assertion fails).
    pub fn scores(self, keys: &HeadRows<'_>, words: &[f32], rows: usize, scores: &mut [f32]) {
        let fits = words.len() == query_words(keys.dtype, keys.head_dim, rows)
            && scores.len() >= rows.next_multiple_of(QUAD) * ATTEND_TILE
            && keys.len <= ATTEND_TILE;
        if !fits {
            debug_assert!(false, "scores: {} keys, {rows} rows", keys.len);
            scores.fill(f32::NAN);
            return;
        }
        by_isa!(self, attend::scores(keys, words, rows, scores));
    }

    /// Turns scores (rows x [`ATTEND_TILE`]) into weights `exp(scale * score + add[row] - top)` with the row's largest of
    /// this tile as `top`, 0 for keys that the row does not see, and merges the tile into the running softmax.
    ///
    /// The exponential is within `2^-22` of the exact one, relatively; below `-87` it stays `1.6e-38`.
    ///
    /// The caller has checked the shapes: where they do not fit, the scores are NaN (and a debug assertion fails).
    pub fn softmax_tile(
        self,
        shape: TileShape,
        add: &[f32],
        scores: &mut [f32],
        running: &mut RunningSoftmax<'_>,
    ) {
        let n = shape.rows;
        let lengths = [add.len(), running.max.len(), running.total.len(), running.factors.len()];
        if scores.len() < n * ATTEND_TILE || shape.group == 0 || lengths.iter().any(|&len| len < n) {
            debug_assert!(false, "softmax_tile: {n} rows, {} scores, {lengths:?}", scores.len());
            scores.fill(f32::NAN);
            return;
        }
        by_isa!(self, attend::softmax(shape, add, scores, running));
    }

    /// `sums[row] = factors[row][0] * sum of weights[row][key] * value[key] + factors[row][1] * sums[row]` over a tile of
    /// values: `weights` is rows x [`ATTEND_TILE`], each at most 1 and 0 behind the last row; `sums` is rows x head_dim.
    ///
    /// In f32, within `(len + 8) * 2^-23 * t` of the exact sum with the decoded values, `t` the sum of the magnitudes; where
    /// weights are integers, each block is within `1.01 * 2^-16 * max|d| * sum|q|` more (half of a step, of which there are
    /// 32,766), over the tile's values `d * q` of an element.
    ///
    /// The caller has checked the shapes: where they do not fit, the sums are NaN (and a debug assertion fails).
    pub fn weighted_sums(
        self,
        values: &HeadRows<'_>,
        weights: &[f32],
        factors: &[[f32; 2]],
        sums: &mut [f32],
    ) {
        let rows = factors.len();
        let fits = weights.len() >= rows * ATTEND_TILE
            && sums.len() == rows * values.head_dim
            && values.len <= ATTEND_TILE;
        if !fits {
            debug_assert!(false, "weighted_sums: {} values, {rows} rows", values.len);
            sums.fill(f32::NAN);
            return;
        }
        by_isa!(self, attend::sums(values, weights, factors, sums));
    }
}
