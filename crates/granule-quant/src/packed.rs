//! Weights in the order in which a CPU's products take them: 16 rows side by side.
//!
//! ```text
//! panel: 16 rows     | unit 0 | unit 1 | ...                           a unit is a block of each row
//! unit               | d: 16 f16 | minimum: 16 f16, if any | run 0 | run 1 | ...
//! run: 32 elements   | low bits | high bits, if any | scales, if any | minimums, if any
//! ```
//!
//! Bits of a run lie in planes of 64 bytes, four for each row. Byte `e` of row `r` in plane `p` has, from the lowest bit
//! on, the bits of elements `4 j + e` with `j = p, p + n, p + 2 n, ...`, where `n` is the number of planes: of nibbles
//! plane 0 has elements 0 to 3 and 16 to 19. So a register that is masked and shifted has four elements of each row,
//! and a dot product of bytes adds up 16 rows without a sum across lanes.
//!
//! Scales and minimums of a run are a byte for each row, or for each row twice: first halves, then second halves. Where
//! both have four bits they share the byte.
//!
//! Nothing is rounded and little is added: `Q4_K`, whose scales have 6 bits in a file and 8 here, grows by 2.8%, the
//! others by less than 4%, `IQ2_XXS`, whose grid is spelled out, by 61%.

use crate::error::check_len;
use crate::expand::{Expand, Minimum, Scales, by_block};
use crate::{BLOCK_LEN, DType, Error, FixedMatrix, Isa, Tile};

/// Rows of a panel.
pub const PANEL_ROWS: usize = 16;
/// Bytes of a plane.
const PLANE: usize = 4 * PANEL_ROWS;
/// Bytes of an `f16` of each row.
const HALVES: usize = 2 * PANEL_ROWS;

/// The packed form of a quantized type on a CPU that has products for it; [`Isa::packing`] says which these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    isa: Isa,
    dtype: DType,
}

/// Where the parts of a unit lie, in bytes.
pub(crate) struct Unit<B>(std::marker::PhantomData<B>);

impl<B: Expand> Unit<B> {
    /// Start of the minimums' multiplier.
    pub(crate) const MINIMUM: usize = HALVES;
    /// Start of the runs.
    pub(crate) const RUNS: usize = HALVES + if has_minimum::<B>() { HALVES } else { 0 };
    /// Planes of low bits.
    pub(crate) const LOW: usize = B::BITS.0;
    /// Planes of high bits, which lie behind them.
    pub(crate) const HIGH: usize = B::BITS.1;
    /// Start of the scales in a run.
    pub(crate) const SCALES: usize = PLANE * (Self::LOW + Self::HIGH);
    /// Bytes of a run's scales, or minimums.
    pub(crate) const SCALE_BYTES: usize = match B::SCALES {
        Scales::One => 0,
        Scales::Whole => PANEL_ROWS,
        Scales::Halves => 2 * PANEL_ROWS,
    };
    /// Start of the minimums in a run.
    pub(crate) const MINIMUMS: usize = Self::SCALES + if B::NARROW { 0 } else { Self::SCALE_BYTES };
    /// Bytes of a run.
    pub(crate) const RUN: usize =
        Self::MINIMUMS + if has_minimum::<B>() || B::NARROW { Self::SCALE_BYTES } else { 0 };
    /// Bytes of the unit.
    pub(crate) const BYTES: usize = Self::RUNS + B::RUNS * Self::RUN;
}

/// Whether a type's elements have minimums.
pub(crate) const fn has_minimum<B: Expand>() -> bool {
    !matches!(B::MINIMUM, Minimum::None)
}

const fn unit_bytes<B: Expand>() -> usize {
    Unit::<B>::BYTES
}

impl Isa {
    /// The packed form of `dtype` on this path, where it has one and it pays.
    pub fn packing(self, dtype: DType) -> Option<Packing> {
        (self.has_packed_products() && dtype.is_quantized()).then_some(Packing { isa: self, dtype })
    }
}

impl Packing {
    /// The type of the elements.
    pub fn dtype(self) -> DType {
        self.dtype
    }

    /// Bytes of `rows` rows of `k` elements: of whole panels.
    ///
    /// # Errors
    /// [`Error::RowLength`], [`Error::TooLarge`].
    pub fn bytes(self, rows: usize, k: usize) -> Result<usize, Error> {
        self.dtype.row_bytes(k)?;
        let panel = (k / self.dtype.block_len()).checked_mul(by_block!(self.dtype, unit_bytes, (), 0));
        let all = panel.and_then(|panel| rows.div_ceil(PANEL_ROWS).checked_mul(panel));
        all.ok_or(Error::TooLarge { dtype: self.dtype, len: k })
    }

    /// Packs rows of `k` elements: `w` is dense rows as in a file, at any address; `packed` has [`bytes`](Self::bytes) of them. A
    /// last panel with fewer than [`PANEL_ROWS`] rows repeats its last one. Panels can be packed one by one, on any thread.
    ///
    /// # Errors
    /// [`Error::RowLength`], [`Error::Length`] where `w` is not whole rows or `packed` has another length. `packed` is then
    /// as it was.
    pub fn pack(self, w: &[u8], k: usize, packed: &mut [u8]) -> Result<(), Error> {
        let row = self.dtype.row_bytes(k)?;
        if row == 0 {
            return check_len("packed", 0, packed.len());
        }
        let rows = w.len() / row;
        check_len("w", rows * row, w.len())?;
        check_len("packed", self.bytes(rows, k)?, packed.len())?;
        by_block!(self.dtype, pack_rows, (w, row, packed), ());
        Ok(())
    }

    /// Product of packed weights with activations: row `r` of `w` times row `c` of `x` goes to (`r`, `c`) of `out`.
    ///
    /// `w` has `out.rows()` rows of `k`, `x` has `out.cols()` rows of `k`. An element is the sum of exact integer products of
    /// 32 or 16 elements, each times its scales, in f32; which order these are added in depends on neither `out.rows()` nor
    /// `out.cols()`.
    ///
    /// # Errors
    /// [`Error::RowLength`], [`Error::TooLarge`] and [`Error::Length`] where lengths disagree. `out` is then as it was.
    pub fn gemm(self, w: &[u8], k: usize, x: &FixedMatrix<'_>, mut out: Tile<'_>) -> Result<(), Error> {
        check_len("w", self.bytes(out.rows(), k)?, w.len())?;
        check_len("k of x", k, x.k())?;
        check_len("x", out.cols(), x.rows())?;
        if !crate::gemm::clear_if_empty(&mut out, k) {
            self.isa.packed_products(self.dtype, w, x, &mut out);
        }
        Ok(())
    }
}

/// Packs panel after panel.
fn pack_rows<B: Expand>(w: &[u8], row: usize, packed: &mut [u8]) {
    let panel = row / size_of::<B>() * Unit::<B>::BYTES;
    for (w, packed) in w.chunks(PANEL_ROWS * row).zip(packed.chunks_exact_mut(panel)) {
        let last = w.len() / row - 1;
        for (u, unit) in packed.chunks_exact_mut(Unit::<B>::BYTES).enumerate() {
            for r in 0..PANEL_ROWS {
                let block = &w[r.min(last) * row + u * size_of::<B>()..][..size_of::<B>()];
                pack_block::<B>(&bytemuck::pod_read_unaligned(block), r, unit);
            }
        }
    }
}

/// Puts a block into row `r` of a unit.
#[inline(always)]
fn pack_block<B: Expand>(block: &B, r: usize, unit: &mut [u8]) {
    let (head, runs) = unit.split_at_mut(Unit::<B>::RUNS);
    head[2 * r..][..2].copy_from_slice(&block.d().to_le_bytes());
    if has_minimum::<B>() {
        head[Unit::<B>::MINIMUM + 2 * r..][..2].copy_from_slice(&block.minimum().to_le_bytes());
    }
    for (i, run) in runs.chunks_exact_mut(Unit::<B>::RUN).enumerate() {
        let codes: [u32; 8] = bytemuck::cast(block.codes(i));
        let (low, rest) = run.split_at_mut(PLANE * Unit::<B>::LOW);
        let (high, scales) = rest.split_at_mut(PLANE * Unit::<B>::HIGH);
        pack_bits(&codes, 0, low, r);
        pack_bits(&codes, B::BITS.0, high, r);
        let (s, t) = (block.scales(i), block.minimums(i));
        match (B::SCALES, B::NARROW) {
            (Scales::One, _) => {}
            (_, true) => (0..2).for_each(|h| scales[h * PANEL_ROWS + r] = s[h].cast_unsigned() | t[h] << 4),
            (_, false) => {
                for h in 0..Unit::<B>::SCALE_BYTES / PANEL_ROWS {
                    scales[h * PANEL_ROWS + r] = s[h].cast_unsigned();
                    if has_minimum::<B>() {
                        scales[Unit::<B>::SCALE_BYTES + h * PANEL_ROWS + r] = t[h];
                    }
                }
            }
        }
    }
}

/// Puts bits `from` and on of each of 32 codes, of which each has as many as there are planes, into the planes.
#[inline(always)]
fn pack_bits(codes: &[u32; BLOCK_LEN / 4], from: usize, planes: &mut [u8], r: usize) {
    let bits = planes.len() / PLANE;
    if bits == 0 {
        return;
    }
    for (p, plane) in planes.chunks_exact_mut(PLANE).enumerate() {
        plane[4 * r..][..4].copy_from_slice(&bits_of_codes(codes, from, bits, p).to_le_bytes());
    }
}

/// Word `p` of `bits`: bits `from` and on, so many, of each of the codes in words `p`, `p + bits`, ..., from the lowest on.
#[inline(always)]
pub(crate) fn bits_of_codes(codes: &[u32; BLOCK_LEN / 4], from: usize, bits: usize, p: usize) -> u32 {
    let mask = u32::from_ne_bytes([((1_u32 << bits) - 1) as u8; 4]);
    let words = codes.iter().skip(p).step_by(bits).enumerate();
    words.fold(0, |word, (i, codes)| word | (codes >> from & mask) << (i * bits))
}
