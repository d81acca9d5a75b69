//! Making activations on a CUDA device.

use granule_device::{Bytes, DeviceSlice, DeviceSliceMut, KernelArgument, Launch, LaunchShape, Stream};
use granule_kernels::THREADS;

use crate::activate::{Form, FormLayout};
use crate::error::expect_len;
use crate::launch::{MOST_Y, WIDE_ALIGN, check_kind, check_multiple, check_stream};
use crate::{Error, Kernels};

/// Elements that a block takes at a time: four pieces of four for each thread.
const CHUNK: usize = 16 * THREADS as usize;
/// Shared memory of a block at most: what every device of compute capability 8.0 and later gives to one that asks.
const SHARED: usize = 96 << 10;

/// Activations on a device, in a form.
#[derive(Clone, Copy, Debug)]
pub struct CudaActivations<'a> {
    form: Form,
    rows: usize,
    cols: usize,
    layout: FormLayout,
    data: DeviceSlice<'a>,
}

impl<'a> CudaActivations<'a> {
    /// `rows` rows (tokens) of `cols` elements that [`cuda`] has made, or will have made by the time they are read.
    ///
    /// # Errors
    /// As [`Form::layout`]; [`Error::Shape`] where `data` is not of [`Form::bytes`], [`Error::Alignment`] where its address is no
    /// multiple of 16, [`Error::NotOnDevice`].
    pub fn new(form: Form, rows: usize, cols: usize, data: DeviceSlice<'a>) -> Result<Self, Error> {
        let layout = form.layout(rows, cols)?;
        expect_len("bytes of activations", data.len(), layout.bytes)?;
        check_kind("activations", data.kind())?;
        check_multiple("the address of activations", data.ptr().addr(), WIDE_ALIGN)?;
        Ok(Self { form, rows, cols, layout, data })
    }

    /// How they are kept.
    #[must_use]
    pub fn form(&self) -> Form {
        self.form
    }

    /// Rows (tokens).
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements in a row.
    #[must_use]
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Where the parts are in [`CudaActivations::data`].
    #[must_use]
    pub fn layout(&self) -> &FormLayout {
        &self.layout
    }

    /// The memory.
    #[must_use]
    pub fn data(&self) -> DeviceSlice<'a> {
        self.data
    }
}

/// What activations are made from: f32, dense, at addresses that are multiples of 16.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// `x`, rows x cols.
    Plain {
        /// The numbers.
        x: DeviceSlice<'a>,
    },
    /// `x[i] / sqrt(mean(x^2) + eps) * weight[i]`, as [`rms_norm`](crate::rms_norm), but for the order of the sum.
    Norm {
        /// Any number of rows of cols elements.
        x: DeviceSlice<'a>,
        /// The weights, cols.
        weight: DeviceSlice<'a>,
        /// What is added to the mean of the squares.
        eps: f32,
        /// Which rows of `x` to take: u32, one a row of the result. None: all, in order.
        rows: Option<DeviceSlice<'a>>,
    },
    /// `silu(gate[i]) * up[i]`, both rows x cols, as [`swiglu`](crate::swiglu).
    Swiglu {
        /// The gate.
        gate: DeviceSlice<'a>,
        /// What it lets through.
        up: DeviceSlice<'a>,
    },
}

/// `Activate` of `kernels/activate.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    a: u64,
    b: u64,
    numbers: u64,
    parts: [u64; 4],
    flag: u64,
    rows: u32,
    cols: u32,
    stride: u32,
    source: u32,
    held: u32,
    eps: f32,
}

// SAFETY: the struct of the kernel, field by field, without padding between them.
unsafe impl KernelArgument for Arguments {}

impl Source<'_> {
    /// The addresses of what is read, checked, and the kernel's number for the source.
    fn arguments(&self, rows: usize, cols: usize) -> Result<Arguments, Error> {
        let n = rows * cols;
        let mut arguments = Arguments {
            a: 0,
            b: 0,
            numbers: 0,
            parts: [0; 4],
            flag: 0,
            rows: rows as u32,
            cols: cols as u32,
            stride: 0,
            source: 0,
            held: 0,
            eps: 0.0,
        };
        match *self {
            Source::Plain { x } => arguments.a = floats("activations", x, n)?,
            Source::Norm { x, weight, eps, rows: None } => {
                arguments.a = floats("norm input", x, n)?;
                arguments.b = floats("norm weights", weight, cols)?;
                (arguments.source, arguments.eps) = (1, eps);
            }
            Source::Norm { x, weight, eps, rows: Some(numbers) } => {
                let of_x = x.len() / size_of::<f32>() / cols.max(1);
                arguments.a = floats("norm input", x, of_x * cols)?;
                arguments.b = floats("norm weights", weight, cols)?;
                expect_len("bytes of row numbers", numbers.len(), rows * size_of::<u32>())?;
                check_kind("row numbers", numbers.kind())?;
                check_multiple("the address of row numbers", numbers.ptr().addr(), size_of::<u32>())?;
                arguments.numbers = numbers.ptr().addr();
                (arguments.source, arguments.eps) = (1, eps);
            }
            Source::Swiglu { gate, up } => {
                arguments.a = floats("swiglu's gate", gate, n)?;
                arguments.b = floats("swiglu's up", up, n)?;
                arguments.source = 2;
            }
        }
        Ok(arguments)
    }
}

/// The address of `n` floats that kernels can read 16 bytes at a time.
fn floats(what: &'static str, memory: DeviceSlice<'_>, n: usize) -> Result<u64, Error> {
    expect_len(what, memory.len(), n * size_of::<f32>())?;
    check_kind(what, memory.kind())?;
    check_multiple(what, memory.ptr().addr(), WIDE_ALIGN)?;
    Ok(memory.ptr().addr())
}

/// How blocks are laid over rows. What needs all of a row at once (a norm, the largest of a row) has a block for each, with the
/// row in shared memory where it fits; else a row may be several blocks'.
fn grid(form: Form, source: &Source<'_>, rows: usize, stride: usize) -> LaunchShape {
    let whole = form == Form::F16 || matches!(source, Source::Norm { .. });
    let blocks = if whole { 1 } else { stride.div_ceil(CHUNK).max(1) };
    let row = stride * size_of::<f32>();
    LaunchShape {
        grid: [blocks as u32, rows.clamp(1, MOST_Y) as u32, 1],
        block: [THREADS, 1, 1],
        shared: Bytes::from_usize(if whole && row <= SHARED { row } else { 0 }),
    }
}

/// Makes `rows` rows of `cols` activations from `source` in `form`, when the stream's turn comes. `to` has [`Form::bytes`]; what
/// lies between its parts stays as it is. One launch.
///
/// Of [`Source::Plain`] the result is exact: the bytes of [`granule_quant::quantize_fixed`] with 16 bits for [`Form::Fixed`], the
/// nearest numbers for the others. Before that a norm is within 2^-18 of the exact one, relatively, for rows of up to 2^16 elements,
/// and SwiGLU within 2^-20 for gates above -87 (below, the exponential stays at its value there).
///
/// In [`Form::F16`] rows whose largest magnitude is below 2^-112 are multiplied with 2^126 and come out smaller than 2^14. NaN and
/// infinity make NaN of what they reach: the block's scale in [`Form::Fixed`], the row's inverse factor in [`Form::F16`]; in these
/// two forms they are also flagged for [`Kernels::check`]. In [`Form::Bf16`] magnitudes from 3.396e38 on count as infinite.
///
/// # Errors
/// [`Error::Shape`], [`Error::Dimension`], [`Error::Alignment`], [`Error::NotOnDevice`], [`Error::OtherDevice`],
/// [`Error::NoKernel`], [`Error::Device`]: nothing is launched.
///
/// # Safety
/// - Numbers of rows are below the rows of `x`.
/// - All memory stays until the stream has passed this, and so do `kernels`; until then nothing else writes what this reads, or
///   touches `to`.
pub unsafe fn cuda(
    kernels: &Kernels,
    stream: &Stream,
    source: &Source<'_>,
    rows: usize,
    cols: usize,
    form: Form,
    to: DeviceSliceMut<'_>,
) -> Result<(), Error> {
    check_stream(kernels, stream)?;
    let made = CudaActivations::new(form, rows, cols, to.as_slice())?;
    let mut arguments = source.arguments(rows, cols)?;
    if rows * cols == 0 {
        return Ok(());
    }
    let stride = made.layout.stride;
    let shape = grid(form, source, rows, stride);
    arguments.parts = made.layout.parts.map(|part| made.data.ptr().addr() + part as u64);
    arguments.flag = kernels.flag_address();
    arguments.stride = stride as u32;
    arguments.held = u32::from(shape.shared > Bytes::ZERO);
    let name = match form {
        Form::F32 => "activate_f32",
        Form::Fixed => "activate_fixed",
        Form::F16 => "activate_f16",
        Form::Bf16 => "activate_bf16",
    };
    let function = kernels.function("activate", name)?;
    // SAFETY: these are the kernel's arguments, of checked sizes and alignment; the rest is the caller's promise.
    Ok(unsafe { stream.launch(Launch::new(&function, shape).value(arguments)) }?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_one_blocks_where_all_of_it_is_needed_at_once() {
        let none = DeviceSlice::from(&[][..]);
        let plain = Source::Plain { x: none };
        let norm = Source::Norm { x: none, weight: none, eps: 0.0, rows: None };
        let swiglu = Source::Swiglu { gate: none, up: none };
        let shape = |form, source: &Source<'_>, rows, stride| {
            let shape = grid(form, source, rows, stride);
            (shape.grid, shape.shared.get())
        };
        assert_eq!(shape(Form::Fixed, &swiglu, 1, 14336), ([4, 1, 1], 0));
        assert_eq!(shape(Form::Bf16, &plain, 70_000, 32), ([1, 65535, 1], 0));
        assert_eq!(shape(Form::Fixed, &norm, 3, 4096), ([1, 3, 1], 16384));
        assert_eq!(shape(Form::F16, &swiglu, 2, 14336), ([1, 2, 1], 57344));
        // The most that a launch asks for, as `kernels/ptx/TABLE.md` has it; longer rows are read again.
        assert_eq!(shape(Form::F16, &plain, 2, 24576), ([1, 2, 1], 98_304));
        assert_eq!(shape(Form::F32, &norm, 2, 24580), ([1, 2, 1], 0));
    }
}
