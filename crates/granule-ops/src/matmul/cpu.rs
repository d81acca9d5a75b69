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
/// Rows of quants that stand for one row of activations: the number in 8 bits, and what that leaves in 8 bits more.
pub(super) const TERMS: usize = 2;
/// Tokens whose products with a chunk of weights are summed up at a time; their terms fill a tile on the stack.
const TOKENS: usize = 32;
/// Elements of a row whose remainder is quantized at a time, on the stack.
const PIECE: usize = 16 * BLOCK;

/// Memory for quantized activations, handed in by the caller.
#[derive(Debug)]
pub struct QuantScratch<'a> {
    /// Quants, two for each element.
    pub quants: &'a mut [i8],
    /// Scales, two for each 32 elements.
    pub scales: &'a mut [f32],
    /// Scale times the sum of the quants, two for each 32 elements.
    pub sums: &'a mut [f32],
}

impl QuantScratch<'_> {
    /// How many quants, and how many scales (and sums), `elements` activations need.
    #[must_use]
    pub fn lengths(elements: usize) -> (usize, usize) {
        (TERMS * elements, TERMS * elements.div_ceil(BLOCK))
    }
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
        let (n_quants, n_scales) = QuantScratch::lengths(rows * cols);
        for (what, len, want) in [
            ("scratch for quants", scratch.quants.len(), n_quants),
            ("scratch for scales", scratch.scales.len(), n_scales),
            ("scratch for sums", scratch.sums.len(), n_scales),
        ] {
            if len < want {
                return Err(Error::Shape { what, got: len, want });
            }
        }
        let QuantScratch { quants, scales, sums } = scratch;
        let (quants, scales, sums) =
            (&mut quants[..n_quants], &mut scales[..n_scales], &mut sums[..n_scales]);
        {
            let (q, d, s) =
                (Disjoint::new(&mut *quants), Disjoint::new(&mut *scales), Disjoint::new(&mut *sums));
            threads.try_for_each_chunk(rows, 4, &|_, range| {
                for row in range {
                    let (q_row, d_row) = (row * TERMS * cols, row * TERMS * blocks);
                    // SAFETY: each row is in one chunk, and has its own quants, scales and sums.
                    let (q, d, s) = unsafe {
                        (
                            q.range(q_row..q_row + TERMS * cols),
                            d.range(d_row..d_row + TERMS * blocks),
                            s.range(d_row..d_row + TERMS * blocks),
                        )
                    };
                    quantize_terms(&x[row * cols..(row + 1) * cols], q, d, s)?;
                }
                Ok::<(), granule_quant::Error>(())
            })?;
        }
        let quantized = QuantizedMatrix::new(quants, scales, sums, TERMS * rows, cols)?;
        Ok(Self { x, rows, cols, quantized: Some(quantized) })
    }

    /// Tokens.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }
}

/// Quantizes a row, then what quantizing left of it; the first term's quants, scales and sums lie before the second's.
fn quantize_terms(
    x: &[f32],
    quants: &mut [i8],
    scales: &mut [f32],
    sums: &mut [f32],
) -> Result<(), granule_quant::Error> {
    let (q, q_rest) = quants.split_at_mut(x.len());
    let (d, d_rest) = scales.split_at_mut(x.len() / BLOCK);
    let (s, s_rest) = sums.split_at_mut(x.len() / BLOCK);
    quantize_row(x, q, d, s)?;
    let mut rest = [0f32; PIECE];
    for (i, x) in x.chunks(PIECE).enumerate() {
        let (at, block) = (i * PIECE, i * PIECE / BLOCK);
        let blocks = block..block + x.len() / BLOCK;
        let rest = &mut rest[..x.len()];
        for ((rest, x), (q, &d)) in rest
            .as_chunks_mut::<BLOCK>()
            .0
            .iter_mut()
            .zip(x.as_chunks::<BLOCK>().0)
            .zip(q[at..].as_chunks::<BLOCK>().0.iter().zip(&d[blocks.clone()]))
        {
            for ((rest, &x), &q) in rest.iter_mut().zip(x).zip(q) {
                *rest = x - d * f32::from(q);
            }
        }
        quantize_row(rest, &mut q_rest[at..at + x.len()], &mut d_rest[blocks.clone()], &mut s_rest[blocks])?;
    }
    Ok(())
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
        let k = self.weight.cols();
        let row_bytes = self.weight.row_bytes();
        let weights = &self.bytes[rows.start * row_bytes..rows.end * row_bytes];
        let dtype = self.weight.dtype();
        let Some(q) = x.quantized.filter(|_| dtype.is_quantized()) else {
            // SAFETY: `out` was checked to be tokens x weight rows, so row `rows.start` of column 0 and all that the
            // tile addresses from there lie in it; each chunk of weight rows is one item, so no other thread writes it.
            let tile = unsafe {
                Tile::from_raw_parts(self.out.at(rows.start), rows.len(), x.rows, self.weight.rows())
            };
            return Ok(Isa::best().gemm_f32(dtype, weights, k, x.x, tile)?);
        };
        if x.rows == 1 {
            self.multiply_quantized::<1>(&q, weights, rows)
        } else {
            self.multiply_quantized::<TOKENS>(&q, weights, rows)
        }
    }

    /// The products of `weights`, which are the weight rows `rows`, with all activations, `N` tokens at a time.
    fn multiply_quantized<const N: usize>(
        &self,
        x: &QuantizedMatrix<'_>,
        weights: &[u8],
        rows: Range<usize>,
    ) -> Result<(), Error> {
        let (n, k, dtype, width) = (rows.len(), x.k(), self.weight.dtype(), self.weight.rows());
        let tokens_of_x = x.rows() / TERMS;
        let mut terms = [[[0f32; MOST_ROWS]; TERMS]; N];
        let terms = terms.as_flattened_mut().as_flattened_mut();
        let row = x.as_row();
        for first in (0..tokens_of_x).step_by(N) {
            let tokens = N.min(tokens_of_x - first);
            let (some, blocks) = (
                first * TERMS * k..(first + tokens) * TERMS * k,
                first * TERMS * k / BLOCK..(first + tokens) * TERMS * k / BLOCK,
            );
            let q = QuantizedMatrix::new(
                &row.q[some],
                &row.d[blocks.clone()],
                &row.s[blocks],
                TERMS * tokens,
                k,
            )?;
            let terms = &mut terms[..n * TERMS * tokens];
            Isa::best().gemm_q8(dtype, weights, k, &q, Tile::new(terms, n, TERMS * tokens, n)?)?;
            for (token, terms) in terms.chunks_exact(TERMS * n).enumerate() {
                let at = (first + token) * width + rows.start;
                // SAFETY: each chunk of weight rows is one item, so no other thread has this part of the output.
                let out = unsafe { self.out.range(at..at + n) };
                let (value, rest) = terms.split_at(n);
                for ((out, &value), &rest) in out.iter_mut().zip(value).zip(rest) {
                    *out = value + rest;
                }
            }
        }
        Ok(())
    }
}
