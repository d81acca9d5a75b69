//! Matrix products on the host.

use std::ops::Range;

use granule_quant::{Isa, QuantizedMatrix, Tile, quantize_row};

use crate::error::expect_len;
use crate::threads::Disjoint;
use crate::{Error, Matrix, Threads};

/// Weight rows that one thread takes at a time: at most this many, and never fewer than `FEWEST_ROWS`.
const MOST_ROWS: usize = 64;
const FEWEST_ROWS: usize = 16;
/// Elements of one quantization block.
const BLOCK: usize = 32;

/// Memory for quantized activations, handed in by the caller: for `n` elements `n` quants and `n / 32` of each factor.
#[derive(Debug)]
pub struct QuantScratch<'a> {
    /// Quants, one for each element.
    pub quants: &'a mut [i8],
    /// Scales, one for each 32 elements.
    pub scales: &'a mut [f32],
    /// Scale times the sum of the quants, one for each 32 elements.
    pub sums: &'a mut [f32],
}

/// The activations of a product: `rows` tokens of `cols` elements.
#[derive(Clone, Copy)]
pub struct Activations<'a> {
    x: &'a [f32],
    rows: usize,
    cols: usize,
    quantized: Option<QuantizedMatrix<'a>>,
}

impl<'a> Activations<'a> {
    /// Activations for float weights.
    ///
    /// # Errors
    /// [`Error::Shape`] if `x` is not `rows` x `cols` long.
    pub fn plain(x: &'a [f32], rows: usize, cols: usize) -> Result<Self, Error> {
        expect_len("activations", x.len(), rows * cols)?;
        Ok(Self { x, rows, cols, quantized: None })
    }

    /// Activations for weights of any type: also quantized, into `scratch`.
    ///
    /// # Errors
    /// [`Error::Shape`], and [`Error::Quant`] if `cols` is no multiple of 32 or a number is not finite.
    pub fn quantized(
        threads: &Threads,
        x: &'a [f32],
        rows: usize,
        cols: usize,
        scratch: QuantScratch<'a>,
    ) -> Result<Self, Error> {
        expect_len("activations", x.len(), rows * cols)?;
        granule_quant::DType::Q8_0.row_bytes(cols)?;
        let blocks = cols / BLOCK;
        for (what, len, want) in [
            ("scratch for quants", scratch.quants.len(), rows * cols),
            ("scratch for scales", scratch.scales.len(), rows * blocks),
            ("scratch for sums", scratch.sums.len(), rows * blocks),
        ] {
            if len < want {
                return Err(Error::Shape { what, got: len, want });
            }
        }
        let QuantScratch { quants, scales, sums } = scratch;
        if rows == 1 {
            quantize_row(x, &mut quants[..cols], &mut scales[..blocks], &mut sums[..blocks])?;
        } else {
            let (q, d, s) =
                (Disjoint::new(&mut *quants), Disjoint::new(&mut *scales), Disjoint::new(&mut *sums));
            threads.try_for_each_chunk(rows, 4, &|_, range| {
                let (some, block) =
                    (range.start * cols..range.end * cols, range.start * blocks..range.end * blocks);
                // SAFETY: the chunks of one call do not overlap, and rows have their own quants, scales and sums.
                let (q, d, s) = unsafe { (q.range(some.clone()), d.range(block.clone()), s.range(block)) };
                quantize_row(&x[some], q, d, s)
            })?;
        }
        let quants = &quants[..rows * cols];
        let quantized =
            QuantizedMatrix::new(quants, &scales[..rows * blocks], &sums[..rows * blocks], rows, cols)?;
        Ok(Self { x, rows, cols, quantized: Some(quantized) })
    }

    /// Tokens.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// Multiplies the same activations with each weight; beside each weight stands its output, tokens x `weight.rows()`.
///
/// # Errors
/// [`Error::Shape`] if a width or an output does not fit, [`Error::NotQuantized`] if a quantized weight meets plain
/// activations, [`Error::NotOnHost`]. Everything is checked before anything is written.
pub fn matmul(
    threads: &Threads,
    x: &Activations<'_>,
    products: &mut [(Matrix<'_>, &mut [f32])],
) -> Result<(), Error> {
    let total: usize = products.iter().map(|(weight, _)| weight.rows()).sum();
    // Enough chunks that a thread that is held up does not hold up the others.
    let chunk = (total / (threads.count() * 8)).next_multiple_of(16).clamp(FEWEST_ROWS, MOST_ROWS);
    let mut first_chunk = 0;
    let mut parts: [Option<Part<'_>>; MOST_PRODUCTS] = [const { None }; MOST_PRODUCTS];
    if products.len() > MOST_PRODUCTS {
        return Err(Error::Shape { what: "products of one call", got: products.len(), want: MOST_PRODUCTS });
    }
    for ((weight, out), part) in products.iter_mut().zip(&mut parts) {
        let weight = *weight;
        expect_len("columns of a weight", weight.cols(), x.cols)?;
        expect_len("output of a product", out.len(), x.rows * weight.rows())?;
        if weight.dtype().is_quantized() && x.quantized.is_none() {
            return Err(Error::NotQuantized { dtype: weight.dtype() });
        }
        let bytes = weight.host_bytes()?;
        let chunks = weight.rows().div_ceil(chunk);
        *part = Some(Part { weight, bytes, out: Disjoint::new(out), first_chunk });
        first_chunk += chunks;
    }
    threads.try_for_each_chunk(first_chunk, 1, &|_, items| {
        for item in items {
            if let Some(part) = parts.iter().flatten().rev().find(|p| p.first_chunk <= item) {
                let start = (item - part.first_chunk) * chunk;
                part.multiply(x, start..(start + chunk).min(part.weight.rows()))?;
            }
        }
        Ok(())
    })
}

/// Weights that one call takes: Q, K and V are the most that share their activations.
const MOST_PRODUCTS: usize = 4;

struct Part<'a> {
    weight: Matrix<'a>,
    bytes: &'a [u8],
    out: Disjoint<'a, f32>,
    first_chunk: usize,
}

impl Part<'_> {
    /// The products of the weight rows `rows` with all activations.
    fn multiply(&self, x: &Activations<'_>, rows: Range<usize>) -> Result<(), Error> {
        let (n, k) = (rows.len(), self.weight.cols());
        let row_bytes = self.weight.row_bytes();
        let weights = &self.bytes[rows.start * row_bytes..rows.end * row_bytes];
        let dtype = self.weight.dtype();
        // SAFETY: `out` was checked to be tokens x weight rows, so row `rows.start` of column 0 and all that the tile
        // addresses from there lie in it; each chunk of weight rows is one item, so no other thread writes these.
        let tile = unsafe { Tile::from_raw_parts(self.out.at(rows.start), n, x.rows, self.weight.rows()) };
        match &x.quantized {
            Some(q) if dtype.is_quantized() => Isa::best().gemm_q8(dtype, weights, k, q, tile)?,
            _ => Isa::best().gemm_f32(dtype, weights, k, x.x, tile)?,
        }
        Ok(())
    }
}
