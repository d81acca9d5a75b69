//! Which kernel a product is computed by, and what launchers of products share.

use granule_device::{DeviceSliceMut, Stream};
use granule_quant::DType;
use smallvec::SmallVec;

use crate::activate::{CudaActivations, Form};
use crate::error::expect_len;
use crate::launch::{check_kind, check_multiple, check_stream};
use crate::{Error, Kernels, PlanarMatrix, matmul, matvec};

/// A matrix that activations meet, and where the result goes.
#[derive(Debug)]
pub struct Product<'a> {
    /// The weights: rows x cols, as many columns as the activations have.
    pub weight: PlanarMatrix<'a>,
    /// Tokens x rows f32, dense, at an address that is a multiple of 16.
    pub out: DeviceSliceMut<'a>,
    /// Whether the product is added to what `out` holds, instead of taking its place.
    pub adds: bool,
}

/// Multiplies `x` with each product's weights when the stream's turn comes. Weights of one type go into one launch, up to four
/// of them.
///
/// A result depends on its own weights and on `x` alone: not on the device's size, nor on what else is in the call. It is a sum in
/// f32. With `s` the sum over columns of `(|scale * code| + |minimum|) * |x|` (of floats `|w| * |x|`), and `|out|` where the
/// product is added to that, a result of few tokens ([`Form::F32`], [`Form::Fixed`]) is off by at most
///
/// ```text
/// (cols / 32 + 32) * 2^-24 * s
/// ```
///
/// and at random by less than a twentieth of it, where `x` is what the form makes of the activations: with quantized weights the products of
/// each 32 or 16 elements are exact.
///
/// Many tokens meet the weights in 16 bits. In [`Form::F16`] an activation is off by at most `2^-11 |x| + 2^-38 max |x|` (of its
/// row), and a quantized weight by `2^-11 |w| + 2^-25`, and `2^-17` of the scale of its run where runs have their own; magnitudes
/// beyond 65504 become infinite. In [`Form::Bf16`] an activation is off by at most `2^-16 |x|`, and an `F32` weight with its product
/// by `2^-15 |w x|`. So far the products are apart from exact ones, and tensor cores add to their sum at most
///
/// ```text
/// (terms * cols + 64) * 2^-23 * s        terms: 1 (F16 form), 2 (BF16 weights), 3 (F32 weights)
/// ```
///
/// and at random a twentieth of all of it, or less. A result may differ with the number of tokens that it is computed among.
///
/// # Errors
/// [`Error::Form`] where the activations' form is for weights of other types; [`Error::Shape`] where columns or the length of an
/// output do not fit; [`Error::Dimension`] for matrices that kernels cannot count, [`Error::Alignment`], [`Error::NotOnDevice`],
/// [`Error::OtherDevice`], [`Error::NoKernel`], [`Error::Device`]. All is checked before anything is launched; an error of the
/// driver may come when some products have been.
///
/// # Safety
/// - The weights and the activations are written when the kernels run, as their types say; what lies between planes of weights is
///   read too, and may hold anything.
/// - All memory stays until the stream has passed this; until then nothing else writes what this reads, or touches an `out`.
pub unsafe fn cuda(
    kernels: &Kernels,
    stream: &Stream,
    x: &CudaActivations<'_>,
    products: &mut [Product<'_>],
) -> Result<(), Error> {
    check_stream(kernels, stream)?;
    let products = by_type(x, products)?;
    // SAFETY: the caller's promise; the products are of `x`.
    unsafe {
        match x.form() {
            Form::F32 | Form::Fixed => matvec::cuda(kernels, stream, x, &products),
            Form::F16 | Form::Bf16 => matmul::cuda(kernels, stream, x, &products),
        }
    }
}

/// What kernels are told of a matrix of weights: its `Planes`, then `out`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MatrixArgument {
    /// The planes low, high, scales and d.
    pub(crate) planes: [u64; 4],
    pub(crate) out: u64,
}

/// One of the checked products of a type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Checked {
    pub(crate) matrix: MatrixArgument,
    pub(crate) rows: usize,
    pub(crate) adds: bool,
}

/// Products of one type, few enough to stand beside one another.
pub(crate) type Group = SmallVec<[Checked; 4]>;

/// Checks all products of `x`, and gives those that have something to do by type.
pub(super) fn by_type(
    x: &CudaActivations<'_>,
    products: &mut [Product<'_>],
) -> Result<SmallVec<[(DType, Group); 4]>, Error> {
    let mut types: SmallVec<[(DType, Group); 4]> = SmallVec::new();
    for Product { weight, out, adds } in products {
        let (dtype, rows) = (weight.dtype(), weight.rows());
        if !meets(x.form(), dtype) {
            return Err(Error::Form { dtype, form: x.form() });
        }
        expect_len("the columns of activations", x.cols(), weight.cols())?;
        if x.cols() == 0 {
            let what = "the columns of a product";
            return Err(Error::Dimension { what, must: "at least one", got: 0 });
        }
        let results = x.rows().checked_mul(rows).and_then(|n| n.checked_mul(size_of::<f32>()));
        expect_len("bytes of a product", out.len(), results.unwrap_or(usize::MAX))?;
        check_kind("a product", out.kind())?;
        check_multiple("the address of a product", out.ptr().addr(), 16)?;
        // Kernels count runs of 32 elements, or pieces of a row, in 32 bits.
        if rows > 1 << 30 || rows.saturating_mul(weight.cols().div_ceil(4)) > u32::MAX as usize {
            let what = "the elements of a matrix of weights";
            let got = rows.saturating_mul(weight.cols());
            return Err(Error::Dimension { what, must: "below 2^34, in at most 2^30 rows", got });
        }
        if x.rows() == 0 || rows == 0 {
            continue;
        }
        let (start, planes) = (weight.data().ptr().addr(), weight.planes());
        let planes = [planes.low, planes.high, planes.scales, planes.d].map(|at| start + at as u64);
        let checked = Checked { matrix: MatrixArgument { planes, out: out.ptr().addr() }, rows, adds: *adds };
        match types.iter_mut().find(|(other, _)| *other == dtype) {
            Some((_, group)) => group.push(checked),
            None => types.push((dtype, SmallVec::from_elem(checked, 1))),
        }
    }
    Ok(types)
}

/// Whether activations in this form meet weights of this type.
fn meets(form: Form, dtype: DType) -> bool {
    match form {
        Form::F32 => !dtype.is_quantized(),
        Form::Fixed => dtype.is_quantized(),
        Form::F16 => dtype.is_quantized() || dtype == DType::F16,
        Form::Bf16 => matches!(dtype, DType::BF16 | DType::F32),
    }
}
