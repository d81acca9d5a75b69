//! Matrix products on the host.

use std::ops::Range;

use granule_quant::{
    Bf16Matrix, DType, FixedMatrix, Isa, PANEL_ROWS, QuantizedMatrix, Tile, quantize_fixed, quantize_row,
};

use crate::error::expect_len;
use crate::threads::Disjoint;
use crate::{Error, Matrix, Threads};

/// Weight rows that one thread takes at a time: at most this many, and never fewer than `FEWEST_ROWS`.
const MOST_ROWS: usize = 64;
const FEWEST_ROWS: usize = PANEL_ROWS;
/// About as many bytes of weights, as they lie in a file, one thread takes at a time where memory is the limit, but no fewer than
/// `FEWEST_ROWS`: at the end of a product threads wait for one another by half the time that such a piece takes.
const PIECE_BYTES: usize = 64 << 10;
/// Up to this many tokens packed weights go from memory straight into the products, as `granule-quant` has it.
const FEW_TOKENS: usize = 8;
/// Elements of one quantization block.
const BLOCK: usize = 32;
/// Rows of quants that stand for a token's activations where these have 16 bits: the number in 8 bits, and what that leaves in 8
/// bits more.
const TERMS: usize = 2;
/// Tokens whose products with a chunk of weights are summed up at a time, where they have two terms.
const TOKENS: usize = 16;
/// Fewer tokens than this are not worth the rounding of the weights.
const BF16_FROM: usize = 8;
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

/// How exactly activations meet quantized weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// A lone token with 16 bits, several with 8, and many that meet `F16` and `BF16` weights in bf16.
    #[default]
    Fast,
    /// Always with 16 bits, and in f32: results depend on how many tokens a step has by the order of sums only, with packed
    /// weights not even by that.
    Precise,
}

impl Precision {
    /// Whether the activations of this many tokens have 16 bits.
    fn is_wide(self, rows: usize) -> bool {
        rows == 1 || self == Self::Precise
    }
}

/// The activations of a product: `rows` tokens of `cols` elements.
#[derive(Clone, Copy)]
pub struct Activations<'a> {
    x: &'a [f32],
    rows: usize,
    cols: usize,
    quantized: Option<Quantized<'a>>,
}

/// Quantized activations, as weights want them.
#[derive(Clone, Copy)]
enum Quantized<'a> {
    /// For rows as in a file; of a lone token both terms.
    Rows(QuantizedMatrix<'a>),
    /// For packed weights.
    Fixed(FixedMatrix<'a>),
    /// For `F16` and `BF16` weights.
    Bf16(Bf16Matrix<'a>),
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

    /// Activations for weights of any type in the ggml layout: also quantized, into `scratch`.
    ///
    /// # Errors
    /// [`Error::Shape`], and [`Error::Quant`] if `cols` is no multiple of 32 or a number is not finite.
    pub fn quantized(
        threads: &Threads,
        x: &'a [f32],
        rows: usize,
        cols: usize,
        precision: Precision,
        scratch: QuantScratch<'a>,
    ) -> Result<Self, Error> {
        let QuantScratch { quants, scales, sums } = scratch.cut(x, rows, cols)?;
        let terms = if precision.is_wide(rows) { TERMS } else { 1 };
        let (n, blocks) = (terms * cols, terms * cols / BLOCK);
        let (quants, scales, sums) =
            (&mut quants[..rows * n], &mut scales[..rows * blocks], &mut sums[..rows * blocks]);
        {
            let (q, d, s) =
                (Disjoint::new(&mut *quants), Disjoint::new(&mut *scales), Disjoint::new(&mut *sums));
            threads.try_for_each_chunk(rows, 4, &|_, range| {
                for row in range {
                    let (of_q, of_d) = (row * n..(row + 1) * n, row * blocks..(row + 1) * blocks);
                    // SAFETY: each row is in one chunk, and has its own quants, scales and sums.
                    let (q, d, s) = unsafe { (q.range(of_q), d.range(of_d.clone()), s.range(of_d)) };
                    let x = &x[row * cols..(row + 1) * cols];
                    if terms == 1 { quantize_row(x, q, d, s)? } else { quantize_terms(x, q, d, s)? }
                }
                Ok::<(), granule_quant::Error>(())
            })?;
        }
        let quantized = QuantizedMatrix::new(quants, scales, sums, terms * rows, cols)?;
        Ok(Self { x, rows, cols, quantized: Some(Quantized::Rows(quantized)) })
    }

    /// Activations for packed weights, and for float ones: also as fixed-point numbers, in `scratch`.
    ///
    /// # Errors
    /// As [`Activations::quantized`].
    pub fn fixed(
        threads: &Threads,
        x: &'a [f32],
        rows: usize,
        cols: usize,
        precision: Precision,
        scratch: QuantScratch<'a>,
    ) -> Result<Self, Error> {
        let QuantScratch { quants, scales, sums } = scratch.cut(x, rows, cols)?;
        let (high, low) = quants.split_at_mut(rows * cols);
        let low = if precision.is_wide(rows) { low } else { &mut [] };
        let blocks = cols / BLOCK;
        let scales = &mut scales[..rows * blocks];
        let sums: &mut [[i32; 2]] = bytemuck::cast_slice_mut(&mut sums[..2 * rows * blocks]);
        {
            let (h, l) = (Disjoint::new(&mut *high), Disjoint::new(&mut *low));
            let (d, s) = (Disjoint::new(&mut *scales), Disjoint::new(&mut *sums));
            threads.try_for_each_chunk(rows, 4, &|_, range| {
                for row in range {
                    let (of_q, of_d) = (row * cols..(row + 1) * cols, row * blocks..(row + 1) * blocks);
                    // SAFETY: each row is in one chunk, and has its own numbers, scales and sums.
                    let (h, l, d, s) = unsafe {
                        (h.range(of_q.clone()), l.range(of_q.clone()), d.range(of_d.clone()), s.range(of_d))
                    };
                    quantize_fixed(&x[of_q], h, l, d, s)?;
                }
                Ok::<(), granule_quant::Error>(())
            })?;
        }
        let fixed = FixedMatrix::new(high, low, scales, sums, rows, cols)?;
        Ok(Self { x, rows, cols, quantized: Some(Quantized::Fixed(fixed)) })
    }

    /// Activations for float weights, of which those of `F16` and `BF16` meet them in bf16: faster where there are several tokens
    /// and [`Activations::bf16_pays`] says so, and less precise. `scratch` holds them.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Quant`] if `cols` is no multiple of 32 or a number is not finite, [`Error::Alignment`] where
    /// the scratch for quants begins at an odd address.
    pub fn bf16(
        threads: &Threads,
        x: &'a [f32],
        rows: usize,
        cols: usize,
        scratch: QuantScratch<'a>,
    ) -> Result<Self, Error> {
        let QuantScratch { quants, .. } = scratch.cut(x, rows, cols)?;
        let at = quants.as_ptr().addr() as u64;
        let bits: &mut [u16] = bytemuck::try_cast_slice_mut(quants).map_err(|_| Error::Alignment {
            what: "scratch for quants",
            must: 2,
            got: at,
        })?;
        threads.try_zip_chunks(x, 4 * cols, bits, 4 * cols, &|x, bits| Isa::best().round_bf16(x, bits))?;
        let bf16 = Bf16Matrix::new(bits, rows, cols)?;
        Ok(Self { x, rows, cols, quantized: Some(Quantized::Bf16(bf16)) })
    }

    /// Whether products of `rows` tokens with a weight of this type and width are faster in bf16.
    #[must_use]
    pub fn bf16_pays(dtype: DType, rows: usize, cols: usize) -> bool {
        rows >= BF16_FROM && Isa::best().has_bf16_products(dtype, cols)
    }

    /// Tokens.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }
}

impl<'a> QuantScratch<'a> {
    /// As much of it as `rows` x `cols` activations need, which `x` has to be.
    fn cut(self, x: &[f32], rows: usize, cols: usize) -> Result<Self, Error> {
        expect_len("activations", x.len(), rows * cols)?;
        DType::Q8_0.row_bytes(cols)?;
        let (n_quants, n_scales) = Self::lengths(rows * cols);
        for (what, len, want) in [
            ("scratch for quants", self.quants.len(), n_quants),
            ("scratch for scales", self.scales.len(), n_scales),
            ("scratch for sums", self.sums.len(), n_scales),
        ] {
            if len < want {
                return Err(Error::Shape { what, got: len, want });
            }
        }
        Ok(Self {
            quants: &mut self.quants[..n_quants],
            scales: &mut self.scales[..n_scales],
            sums: &mut self.sums[..n_scales],
        })
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
/// activations, [`Error::Packed`] if it meets those for the other layout, [`Error::NotOnHost`]. Everything is checked before
/// anything is written.
pub fn matmul(
    threads: &Threads,
    x: &Activations<'_>,
    products: &mut [(Matrix<'_>, &mut [f32])],
) -> Result<(), Error> {
    let total: usize = products.iter().map(|(weight, _)| weight.rows()).sum();
    let widest = products.iter().map(|(weight, _)| weight.row_bytes()).max().unwrap_or(0);
    let most = if x.rows <= FEW_TOKENS { PIECE_BYTES / widest.max(1) } else { MOST_ROWS };
    let most = (most / PANEL_ROWS * PANEL_ROWS).clamp(FEWEST_ROWS, MOST_ROWS);
    // Enough chunks that a thread that is held up does not hold up the others.
    let chunk = (total / (threads.count() * 8)).next_multiple_of(PANEL_ROWS).clamp(FEWEST_ROWS, most);
    let mut first_chunk = 0;
    let mut parts: [Option<Part<'_>>; MOST_PRODUCTS] = [const { None }; MOST_PRODUCTS];
    if products.len() > MOST_PRODUCTS {
        return Err(Error::Shape { what: "products of one call", got: products.len(), want: MOST_PRODUCTS });
    }
    for ((weight, out), part) in products.iter_mut().zip(&mut parts) {
        let weight = *weight;
        expect_len("columns of a weight", weight.cols(), x.cols)?;
        expect_len("output of a product", out.len(), x.rows * weight.rows())?;
        let (dtype, packed) = (weight.dtype(), weight.packing().is_some());
        if dtype.is_quantized() {
            match x.quantized {
                None | Some(Quantized::Bf16(_)) => return Err(Error::NotQuantized { dtype }),
                Some(Quantized::Rows(_)) if packed => return Err(Error::Packed { dtype, packed }),
                Some(Quantized::Fixed(_)) if !packed => return Err(Error::Packed { dtype, packed }),
                Some(_) => {}
            }
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
    /// The products of the weight rows `rows`, which begin with a panel, with all activations.
    fn multiply(&self, x: &Activations<'_>, rows: Range<usize>) -> Result<(), Error> {
        let (k, dtype, isa) = (self.weight.cols(), self.weight.dtype(), Isa::best());
        // SAFETY: `out` was checked to be tokens x weight rows, so row `rows.start` of column 0 and all that the tile
        // addresses from there lie in it; each chunk of weight rows is one item, so no other thread writes it.
        let tile =
            unsafe { Tile::from_raw_parts(self.out.at(rows.start), rows.len(), x.rows, self.weight.rows()) };
        if let (Some(packing), Some(Quantized::Fixed(x))) = (self.weight.packing(), x.quantized) {
            let at = packing.bytes(rows.start, k)?;
            let weights = &self.bytes[at..at + packing.bytes(rows.len(), k)?];
            return Ok(packing.gemm(weights, k, &x, tile)?);
        }
        let row_bytes = self.weight.row_bytes();
        let weights = &self.bytes[rows.start * row_bytes..rows.end * row_bytes];
        match x.quantized {
            Some(Quantized::Rows(q)) if dtype.is_quantized() && q.rows() == x.rows => {
                Ok(isa.gemm_q8(dtype, weights, k, &q, tile)?)
            }
            Some(Quantized::Rows(q)) if dtype.is_quantized() && x.rows == 1 => {
                self.multiply_terms::<1>(&q, weights, rows)
            }
            Some(Quantized::Rows(q)) if dtype.is_quantized() => {
                self.multiply_terms::<TOKENS>(&q, weights, rows)
            }
            Some(Quantized::Bf16(x)) if isa.has_bf16_products(dtype, k) => {
                Ok(isa.gemm_bf16(dtype, weights, k, &x, tile)?)
            }
            _ => Ok(isa.gemm_f32(dtype, weights, k, x.x, tile)?),
        }
    }

    /// The products of `weights`, which are the weight rows `rows`, with activations of two terms, `N` tokens at a time.
    fn multiply_terms<const N: usize>(
        &self,
        x: &QuantizedMatrix<'_>,
        weights: &[u8],
        rows: Range<usize>,
    ) -> Result<(), Error> {
        let (n, k, width) = (rows.len(), x.k(), self.weight.rows());
        let (row, tokens_of_x) = (x.as_row(), x.rows() / TERMS);
        let mut terms = [[[0f32; MOST_ROWS]; TERMS]; N];
        let terms = terms.as_flattened_mut().as_flattened_mut();
        for first in (0..tokens_of_x).step_by(N) {
            let tokens = N.min(tokens_of_x - first);
            let some = first * TERMS * k..(first + tokens) * TERMS * k;
            let blocks = some.start / BLOCK..some.end / BLOCK;
            let (d, s) = (&row.d[blocks.clone()], &row.s[blocks]);
            let some = QuantizedMatrix::new(&row.q[some], d, s, TERMS * tokens, k)?;
            let terms = &mut terms[..n * TERMS * tokens];
            let tile = Tile::new(terms, n, TERMS * tokens, n)?;
            Isa::best().gemm_q8(self.weight.dtype(), weights, k, &some, tile)?;
            for (token, terms) in terms.chunks_exact(TERMS * n).enumerate() {
                let at = (first + token) * width + rows.start;
                // SAFETY: each chunk of weight rows is one item, so no other thread has this part of the output.
                let out = unsafe { self.out.range(at..at + n) };
                let (values, rests) = terms.split_at(n);
                out.iter_mut().zip(values).zip(rests).for_each(|((out, value), rest)| *out = value + rest);
            }
        }
        Ok(())
    }
}
