//! Rotary position embedding on a CUDA device.

use granule_device::{DeviceSlice, DeviceSliceMut, KernelArgument, Launch, LaunchShape, Stream};
use granule_kernels::THREADS;

use crate::error::expect_len;
use crate::launch::{MOST_Y, WIDE_ALIGN, check_kind, check_multiple, check_stream};
use crate::{Error, Kernels};

/// `RopeTurn` of `kernels/rope.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    x: u64,
    angles: u64,
    tokens: u32,
    n_heads: u32,
    head_dim: u32,
    dims: u32,
}

// SAFETY: the struct of the kernel, field by field, without padding between them.
unsafe impl KernelArgument for Arguments {}

/// Rotates the first `dims` elements of every head in place, when the stream's turn comes. `x` is tokens x heads x `head_dim`,
/// `angles` tokens x `dims`, from [`Rope::angles`](crate::Rope::angles); both f32. One launch, to the bits of
/// [`rotate`](crate::rotate) where that does not contract.
///
/// # Errors
/// [`Error::Shape`] if the lengths do not fit; [`Error::Dimension`] if `dims` is odd or exceeds `head_dim`, or a count is 2^31 or
/// more; [`Error::Alignment`] where an address is no multiple of 16; [`Error::NotOnDevice`], [`Error::OtherDevice`],
/// [`Error::NoKernel`], [`Error::Device`]: nothing is launched.
///
/// # Safety
/// - Both memories stay until the stream has passed this; until then nothing else writes `angles` or touches `x`.
pub unsafe fn cuda(
    kernels: &Kernels,
    stream: &Stream,
    mut x: DeviceSliceMut<'_>,
    n_heads: usize,
    head_dim: usize,
    dims: usize,
    angles: DeviceSlice<'_>,
) -> Result<(), Error> {
    if dims > head_dim || !dims.is_multiple_of(2) {
        let must = "even, and at most the head dimension";
        return Err(Error::Dimension { what: "the rotated dimension", must, got: dims });
    }
    check_stream(kernels, stream)?;
    if dims == 0 || n_heads == 0 {
        return Ok(());
    }
    let tokens = angles.len() / (dims * size_of::<f32>());
    let in_token = n_heads.saturating_mul(head_dim);
    for (what, got) in [("the tokens to rotate", tokens), ("the elements of a token's heads", in_token)] {
        if got >= 1 << 31 {
            return Err(Error::Dimension { what, must: "below 2^31", got });
        }
    }
    expect_len("bytes of rope angles", angles.len(), tokens * dims * size_of::<f32>())?;
    expect_len("bytes of rope input", x.len(), tokens * in_token * size_of::<f32>())?;
    for (kind, address) in [(x.kind(), x.ptr().addr()), (angles.kind(), angles.ptr().addr())] {
        check_kind("heads to rotate, or their angles,", kind)?;
        check_multiple("the address of heads to rotate, or of angles", address, WIDE_ALIGN)?;
    }
    if tokens == 0 {
        return Ok(());
    }
    let arguments = Arguments {
        x: x.reborrow().ptr().addr(),
        angles: angles.ptr().addr(),
        tokens: tokens as u32,
        n_heads: n_heads as u32,
        head_dim: head_dim as u32,
        dims: dims as u32,
    };
    let pieces = n_heads * (dims / 2).div_ceil(2);
    let mut shape = LaunchShape::row(pieces.div_ceil(THREADS as usize) as u32, THREADS);
    shape.grid[1] = tokens.min(MOST_Y) as u32;
    let function = kernels.function("rope", "rope")?;
    // SAFETY: these are the kernel's arguments, of checked sizes and alignment; the rest is the caller's promise.
    Ok(unsafe { stream.launch(Launch::new(&function, shape).value(arguments)) }?)
}
