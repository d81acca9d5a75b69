//! Activations of a matrix product: 8-bit quants with scales and sums kept in f32.

use crate::error::check_len;
use crate::isa::by_isa;
use crate::{BLOCK_LEN, Error, Isa};

/// One row of activations (n elements, a multiple of 32) as [`quantize_row`] makes it.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedRow<'a> {
    /// n quants, each -127 to 127.
    pub q: &'a [i8],
    /// n/32 scales: `x' = d * q`.
    pub d: &'a [f32],
    /// n/32 sums: `d` times the sum of the block's quants.
    pub s: &'a [f32],
}

/// Rows of activations of one length, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedMatrix<'a> {
    q: &'a [i8],
    d: &'a [f32],
    s: &'a [f32],
    rows: usize,
    k: usize,
}

impl<'a> QuantizedMatrix<'a> {
    /// `rows` rows of `k` elements: `q` is rows x k, `d` and `s` are rows x k/32, all dense.
    ///
    /// # Errors
    /// [`Error::RowLength`] where `k` is not a multiple of 32, [`Error::Length`] where a slice has another length.
    pub fn new(q: &'a [i8], d: &'a [f32], s: &'a [f32], rows: usize, k: usize) -> Result<Self, Error> {
        let n = elements(rows, k)?;
        check_len("q", n, q.len())?;
        check_len("d", n / BLOCK_LEN, d.len())?;
        check_len("s", n / BLOCK_LEN, s.len())?;
        Ok(Self { q, d, s, rows, k })
    }

    /// Rows (tokens, columns of the product).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements in a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// All rows as one: what the slices hold.
    pub fn as_row(&self) -> QuantizedRow<'a> {
        QuantizedRow { q: self.q, d: self.d, s: self.s }
    }

    /// Row `c`; an empty one where there is no such row.
    pub fn row(&self, c: usize) -> QuantizedRow<'a> {
        let blocks = self.k / BLOCK_LEN;
        QuantizedRow {
            q: self.q.chunks_exact(self.k.max(1)).nth(c).unwrap_or_default(),
            d: self.d.chunks_exact(blocks.max(1)).nth(c).unwrap_or_default(),
            s: self.s.chunks_exact(blocks.max(1)).nth(c).unwrap_or_default(),
        }
    }
}

/// How many elements `rows` rows of whole blocks have.
fn elements(rows: usize, k: usize) -> Result<usize, Error> {
    let dtype = crate::DType::Q8_0;
    if !k.is_multiple_of(BLOCK_LEN) {
        return Err(Error::RowLength { dtype, len: k, block: BLOCK_LEN });
    }
    rows.checked_mul(k).ok_or(Error::TooLarge { dtype, len: k })
}

/// Quantizes a row of activations: the rule of [`BlockQ8_0`](crate::BlockQ8_0), with `d` left in f32.
///
/// `x` and `q` have n elements, `d` and `s` n/32. `s` is `d` times the exact sum of the block's quants, rounded once.
/// Several dense rows whose length is a multiple of 32 can be quantized as one.
///
/// # Errors
/// [`Error::RowLength`] where n is not a multiple of 32, [`Error::Length`] where lengths disagree,
/// [`Error::NotFinite`] for NaN and infinity. The outputs are then as they were.
pub fn quantize_row(x: &[f32], q: &mut [i8], d: &mut [f32], s: &mut [f32]) -> Result<(), Error> {
    Isa::best().quantize_row(x, q, d, s)
}

impl Isa {
    /// [`quantize_row`] by this path.
    ///
    /// # Errors
    /// As [`quantize_row`].
    pub fn quantize_row(self, x: &[f32], q: &mut [i8], d: &mut [f32], s: &mut [f32]) -> Result<(), Error> {
        // The lengths are those of one dense row, so the matrix constructor is the check.
        QuantizedMatrix::new(q, d, s, 1, x.len())?;
        self.check_finite(x)?;
        by_isa!(self, activation::quantize_row(x, q, d, s));
        Ok(())
    }
}

/// Rows of activations as fixed-point numbers, which packed weights meet: 32 elements have a scale, and 8 or 16 bits each.
///
/// With 8 bits products take half the time; with 16 their error is that of f32 sums.
#[derive(Clone, Copy, Debug)]
pub struct FixedMatrix<'a> {
    /// The numbers, or where there are low bytes what these leave, in units of 256.
    pub(crate) high: &'a [i8],
    /// Low bytes, signed; none where numbers have 8 bits.
    pub(crate) low: &'a [i8],
    /// Scale of each 32.
    pub(crate) d: &'a [f32],
    /// Sum of each 32 numbers, and of the first 16 of them.
    pub(crate) sums: &'a [[i32; 2]],
    rows: usize,
    k: usize,
}

impl<'a> FixedMatrix<'a> {
    /// `rows` rows of `k` elements as [`quantize_fixed`] makes them: `high` is rows x k, `low` as long or empty, `d` and `sums`
    /// are rows x k/32, all dense.
    ///
    /// # Errors
    /// [`Error::RowLength`] where `k` is not a multiple of 32, [`Error::Length`] where a slice has another length.
    pub fn new(
        high: &'a [i8],
        low: &'a [i8],
        d: &'a [f32],
        sums: &'a [[i32; 2]],
        rows: usize,
        k: usize,
    ) -> Result<Self, Error> {
        let n = elements(rows, k)?;
        check_len("high", n, high.len())?;
        if !low.is_empty() {
            check_len("low", n, low.len())?;
        }
        check_len("d", n / BLOCK_LEN, d.len())?;
        check_len("sums", n / BLOCK_LEN, sums.len())?;
        Ok(Self { high, low, d, sums, rows, k })
    }

    /// Rows (tokens, columns of the product).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements in a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Whether numbers have 16 bits.
    pub fn is_wide(&self) -> bool {
        !self.low.is_empty()
    }

    /// The sums of row `c`.
    pub(crate) fn sums(&self, c: usize) -> &'a [[i32; 2]] {
        let blocks = self.k / BLOCK_LEN;
        &self.sums[c * blocks..][..blocks]
    }
}

/// Turns a row of activations into fixed-point numbers: `x' = d * (256 * high + low)`, or `d * high` where `low` is empty.
///
/// `x` and `high` have n elements, `low` n or none, `d` and `sums` n/32. `d = max|x| / 127`, or `max|x| / 32512`; a number is `x`
/// times the inverse of `d`, rounded half away from zero, and 0 where that inverse is not finite. The low byte is the number's,
/// as a signed one. `sums` has the sum of each 32 numbers and of their first 16. Several dense rows whose length is a
/// multiple of 32 can be turned as one.
///
/// # Errors
/// [`Error::RowLength`] where n is not a multiple of 32, [`Error::Length`] where lengths disagree, [`Error::NotFinite`] for NaN
/// and infinity. The outputs are then as they were.
pub fn quantize_fixed(
    x: &[f32],
    high: &mut [i8],
    low: &mut [i8],
    d: &mut [f32],
    sums: &mut [[i32; 2]],
) -> Result<(), Error> {
    Isa::best().quantize_fixed(x, high, low, d, sums)
}

impl Isa {
    /// [`quantize_fixed`] by this path.
    ///
    /// # Errors
    /// As [`quantize_fixed`].
    pub fn quantize_fixed(
        self,
        x: &[f32],
        high: &mut [i8],
        low: &mut [i8],
        d: &mut [f32],
        sums: &mut [[i32; 2]],
    ) -> Result<(), Error> {
        // The lengths are those of one dense row, so the matrix constructor is the check.
        FixedMatrix::new(high, low, d, sums, 1, x.len())?;
        self.check_finite(x)?;
        self.fixed_points(x, high, low, d, sums);
        Ok(())
    }
}
