//! What the launchers share: memory that kernels can reach, alignment, and grids.

use granule_device::{Bytes, Device, DeviceKind, Launch, LaunchShape, Stream};
use granule_kernels::{PIECE_BYTES, THREADS, TILE_BLOCKS};

use crate::rows::{RowShape, Rows, RowsMut};
use crate::{Error, Kernels};

/// The most thread blocks that a grid has in x, and in y.
const MOST: [u64; 2] = [(1 << 31) - 1, MOST_Y as u64];
/// Those in y.
pub(crate) const MOST_Y: usize = 65535;

/// Alignment that a kernel wants of plain rows of blocks, and of everything else: floats, and planes.
const BLOCK_ALIGN: usize = 2;
pub(crate) const WIDE_ALIGN: usize = 16;

/// `rows` rows of `blocks` blocks, with a thread block for each tile as far as a grid goes; kernels loop over the rest.
fn row_grid(rows: u64, blocks: u64) -> LaunchShape {
    grid([blocks.div_ceil(TILE_BLOCKS.into()), rows])
}

/// `bytes` bytes, with a thread block for each piece as far as a grid goes; kernels loop over the rest.
pub(crate) fn byte_grid(bytes: usize) -> LaunchShape {
    grid([(bytes as u64).div_ceil(PIECE_BYTES.into()), 1])
}

/// `rows` rows of `count` pieces of work, with a thread for each as far as a grid goes; kernels loop over the rest.
pub(crate) fn thread_grid(rows: u64, count: u64) -> LaunchShape {
    grid([count.div_ceil(THREADS.into()), rows])
}

fn grid(want: [u64; 2]) -> LaunchShape {
    // Both fit: they are at most `MOST`.
    let [x, y] = [want[0].clamp(1, MOST[0]) as u32, want[1].clamp(1, MOST[1]) as u32];
    LaunchShape { grid: [x, y, 1], block: [THREADS, 1, 1], shared: Bytes::ZERO }
}

/// Kernels and stream are of one device.
pub(crate) fn check_stream(kernels: &Kernels, stream: &Stream) -> Result<(), Error> {
    let same = |device: &Device| device.is_same(kernels.device());
    if same(stream.device()) { Ok(()) } else { Err(Error::OtherDevice { what: "the stream" }) }
}

/// Kernels can reach the memory.
pub(crate) fn check_kind(what: &'static str, kind: DeviceKind) -> Result<(), Error> {
    if kind == DeviceKind::Cuda { Ok(()) } else { Err(Error::NotOnDevice { what }) }
}

/// A number of bytes (an address, a stride, an offset) is a multiple of what it must be.
pub(crate) fn check_multiple(what: &'static str, got: u64, must: usize) -> Result<(), Error> {
    if got.is_multiple_of(must as u64) { Ok(()) } else { Err(Error::Alignment { what, must, got }) }
}

/// Rows lie where kernels can read and write them in their widest pieces.
fn check_rows(kind: DeviceKind, address: u64, shape: &RowShape) -> Result<(), Error> {
    check_kind("a matrix of rows", kind)?;
    let plain_blocks = shape.dtype().is_quantized() && shape.planes().is_none();
    let must = if plain_blocks { BLOCK_ALIGN } else { WIDE_ALIGN };
    check_multiple("the address of rows", address, must)?;
    if shape.rows() > 1 {
        check_multiple("the stride of rows", shape.stride() as u64, must)?;
    }
    if let Some(planes) = shape.planes() {
        check_multiple("the start of a row's quants", planes.quants as u64, must)?;
        check_multiple("the start of a row's scales", planes.scales as u64, must)?;
    }
    Ok(())
}

/// True for plain rows without a gap between them: together they are one long row.
fn is_gapless(shape: &RowShape) -> bool {
    let end_to_end = || shape.stride().checked_mul(shape.rows()) == Some(shape.bytes());
    shape.planes().is_none() && (shape.rows() <= 1 || end_to_end())
}

/// What a kernel over rows is told of the work: rows, blocks in a row, and the grid for them.
struct RowWork {
    rows: u64,
    blocks: u64,
    shape: LaunchShape,
}

impl RowWork {
    /// The work of converting between two shapes that [`check_pair`](crate::rows::check_pair) has passed; `None` where
    /// there is none. Rows without gaps on both sides are one long row, so that short ones fill tiles too.
    fn of(from: &RowShape, to: &RowShape) -> Option<RowWork> {
        let (rows, blocks) = (from.rows() as u64, (from.cols() / granule_quant::BLOCK_LEN) as u64);
        let gapless = is_gapless(from) && is_gapless(to);
        // The product does not overflow: the rows have more bytes than blocks, and `RowShape` has counted those.
        let (rows, blocks) = if gapless { (1, rows * blocks) } else { (rows, blocks) };
        (rows * blocks > 0).then(|| RowWork { rows, blocks, shape: row_grid(rows, blocks) })
    }
}

/// Gives kernel `name` of operation `op` the rows of `from` and `to` and, where it raises one, the flag. Kernels over rows
/// take all of it in one order: address and stride of each side, with the planes of a planar one behind, rows, blocks, flag.
///
/// # Errors
/// [`Error::Alignment`], [`Error::NotOnDevice`], [`Error::OtherDevice`], [`Error::NoKernel`], [`Error::Device`]: nothing is
/// launched.
///
/// # Safety
/// - The kernel takes these arguments, for shapes that [`check_pair`](crate::rows::check_pair) has passed.
/// - The memory of both, and `kernels` where the kernel raises a flag, stay until the stream has passed this.
/// - Until then nothing else writes `from` or touches `to`.
pub(crate) unsafe fn launch_rows(
    kernels: &Kernels,
    stream: &Stream,
    (op, name): (&'static str, &str),
    (from, mut to): (Rows<'_>, RowsMut<'_>),
    flag: Option<u64>,
) -> Result<(), Error> {
    let (x, y) = (*from.shape(), *to.shape());
    check_stream(kernels, stream)?;
    check_rows(from.data().kind(), from.data().ptr().addr(), &x)?;
    let target = to.data();
    check_rows(target.kind(), target.ptr().addr(), &y)?;
    let Some(work) = RowWork::of(&x, &y) else { return Ok(()) };
    let function = kernels.function(op, name)?;
    let mut launch = Launch::new(&function, work.shape).read(from.data()).value(x.stride() as u64);
    if let Some(planes) = x.planes() {
        launch = launch.value(planes.quants as u64).value(planes.scales as u64);
    }
    launch = launch.write(target).value(y.stride() as u64);
    if let Some(planes) = y.planes() {
        launch = launch.value(planes.quants as u64).value(planes.scales as u64);
    }
    launch = launch.value(work.rows).value(work.blocks);
    if let Some(flag) = flag {
        launch = launch.value(flag);
    }
    // SAFETY: the caller says that these are the kernel's arguments and that the memory stays; bounds and alignment are
    // checked above.
    Ok(unsafe { stream.launch(launch) }?)
}

#[cfg(test)]
mod tests {
    use granule_quant::DType;

    use super::*;

    #[test]
    fn grids_cover_the_work_as_far_as_they_go() {
        assert_eq!(row_grid(1, 1).grid, [1, 1, 1]);
        assert_eq!(row_grid(3, 128).grid, [1, 3, 1]);
        assert_eq!(row_grid(65535, 129).grid, [2, 65535, 1]);
        assert_eq!(row_grid(65536, 1 << 38).grid, [(1 << 31) - 1, 65535, 1]);
        assert_eq!(row_grid(u64::MAX, u64::MAX).grid, [(1 << 31) - 1, 65535, 1]);
        assert_eq!(byte_grid(16384).grid, [1, 1, 1]);
        assert_eq!(byte_grid(16385).grid, [2, 1, 1]);
        assert_eq!(byte_grid(usize::MAX).grid, [(1 << 31) - 1, 1, 1]);
        assert_eq!(byte_grid(1).block, [256, 1, 1]);
        assert_eq!(thread_grid(3, 256).grid, [1, 3, 1]);
        assert_eq!(thread_grid(1, 257).grid, [2, 1, 1]);
    }

    #[test]
    fn gapless_rows_are_one_row() {
        let dense = |dtype| RowShape::dense(dtype, 6, 64).unwrap();
        let work = RowWork::of(&dense(DType::F32), &dense(DType::Q8_0)).unwrap();
        assert_eq!((work.rows, work.blocks), (1, 12));
        assert!(is_gapless(&RowShape::strided(DType::Q4_0, 1, 64, 50).unwrap()));
        assert!(!is_gapless(&RowShape::strided(DType::Q4_0, 2, 64, 38).unwrap()));
        let planar = RowShape::planar(DType::Q8_0, 6, 64).unwrap();
        let work = RowWork::of(&dense(DType::F32), &planar).unwrap();
        assert_eq!((work.rows, work.blocks, work.shape.grid), (6, 2, [1, 6, 1]));
        let none = RowShape::dense(DType::F32, 0, 64).unwrap();
        assert!(RowWork::of(&none, &RowShape::dense(DType::Q8_0, 0, 64).unwrap()).is_none());
    }

    #[test]
    fn rows_are_aligned_as_kernels_want() {
        let refused = |address, shape: RowShape| check_rows(DeviceKind::Cuda, address, &shape).is_err();
        let floats = |stride| RowShape::strided(DType::F32, 2, 32, stride).unwrap();
        assert!(!refused(16, floats(144)) && refused(8, floats(144)) && refused(16, floats(136)));
        let blocks = |rows, stride| RowShape::strided(DType::Q8_0, rows, 32, stride).unwrap();
        assert!(!refused(2, blocks(2, 36)) && refused(1, blocks(2, 36)) && refused(2, blocks(2, 35)));
        assert!(!refused(2, blocks(1, 35)));
        let planar = |stride, quants, scales| {
            RowShape::planar_at(DType::Q4_0, 2, 32, stride, crate::Planes { quants, scales }).unwrap()
        };
        assert!(!refused(32, planar(64, 16, 32)) && refused(34, planar(64, 16, 32)));
        assert!(
            refused(32, planar(56, 16, 32))
                && refused(32, planar(64, 8, 32))
                && refused(32, planar(64, 16, 40))
        );
        assert!(check_rows(DeviceKind::Host, 16, &floats(128)).is_err());
    }
}
