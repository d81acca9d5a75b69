//! Packing weights and embedding through their launchers.

use granule_device::{Buffer, Bytes, Device, DeviceSlice, DeviceSliceMut};
use granule_ops::pack_weights::{self, WeightRows};
use granule_ops::{Error, PlanarMatrix, embed};
use granule_quant::DType;

use super::Cuda;
use crate::planes::{self, Embedder, Packer};

/// Untouched bytes in front of a memory and behind it: a multiple of what matrices want.
const MARGIN: usize = 256;

/// Device memory with `bytes` at `MARGIN + past`.
fn upload(device: &Device, bytes: &[u8], past: usize) -> Buffer {
    let mut all = vec![0xa5; MARGIN + past + bytes.len() + MARGIN];
    all[MARGIN + past..][..bytes.len()].copy_from_slice(bytes);
    let mut buffer = device.alloc(Bytes::from_usize(all.len())).unwrap();
    device.copy(DeviceSlice::from(&all[..]), buffer.slice_mut(..).unwrap()).unwrap();
    buffer
}

/// Copies the memory in `buffer` back; what is around it is as it was.
fn download(device: &Device, buffer: &Buffer, bytes: &mut [u8]) {
    let mut all = vec![0; buffer.slice(..).unwrap().len()];
    device.copy(buffer.slice(..).unwrap(), DeviceSliceMut::from(&mut all[..])).unwrap();
    let (inside, behind) = all[MARGIN..].split_at(bytes.len());
    assert!(all[..MARGIN].iter().chain(behind).all(|&byte| byte == 0xa5));
    bytes.copy_from_slice(inside);
}

impl Packer for Cuda {
    fn pack(&self, weights: &WeightRows, from: &[u8], past: usize, to: &mut [u8]) {
        let (source, mut target) = (upload(self.device(), from, past), upload(self.device(), to, 0));
        let at = MARGIN + past;
        let rows = source.slice(at..at + from.len()).unwrap();
        let matrix = target.slice_mut(MARGIN..MARGIN + to.len()).unwrap();
        // SAFETY: both stay until the stream was waited for.
        unsafe { pack_weights::cuda(&self.kernels, &self.stream, weights, rows, matrix) }.unwrap();
        self.stream.synchronize().unwrap();
        download(self.device(), &target, to);
    }
}

impl Embedder for Cuda {
    fn embed(&self, shape: &WeightRows, table: &[u8], ids: &[u32], out: &mut [f32]) {
        let ids: &[u8] = bytemuck::cast_slice(ids);
        let [table_there, ids_there] = [(table, 0), (ids, 4)].map(|(x, past)| upload(self.device(), x, past));
        let out: &mut [u8] = bytemuck::cast_slice_mut(out);
        let mut target = upload(self.device(), out, 0);
        let matrix = table_there.slice(MARGIN..MARGIN + table.len()).unwrap();
        let matrix = PlanarMatrix::new(shape.dtype, shape.rows, shape.cols, matrix).unwrap();
        let ids = ids_there.slice(MARGIN + 4..MARGIN + 4 + ids.len()).unwrap();
        let to = target.slice_mut(MARGIN..MARGIN + out.len()).unwrap();
        // SAFETY: all stay until the stream was waited for.
        unsafe { embed::cuda(&self.kernels, &self.stream, &matrix, ids, to) }.unwrap();
        self.stream.synchronize().unwrap();
        download(self.device(), &target, out);
    }
}

/// Every number, in one order of events.
mod numeric {
    use super::{Cuda, planes};

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn packing_is_the_hosts() {
        let cuda = Cuda::new();
        planes::packing_is_the_hosts(&cuda, 1);
        planes::floats_that_are_aligned_are_packed(&cuda);
        planes::every_point_is_packed(&cuda);
    }

    #[test]
    #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
    fn embedding_is_decoding() {
        planes::embedding_is_decoding(&Cuda::new(), 1);
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_does_not_fit_is_refused() {
    let cuda = Cuda::new();
    let (rows, mut matrix) = (upload(cuda.device(), &[7; 36], 0), upload(cuda.device(), &[7; 512], 0));
    let mut pack = |weights: &WeightRows, from: std::ops::Range<usize>, to: std::ops::Range<usize>| {
        let (from, to) = (rows.slice(from).unwrap(), matrix.slice_mut(to).unwrap());
        // SAFETY: both stay to the test's end.
        unsafe { pack_weights::cuda(&cuda.kernels, &cuda.stream, weights, from, to) }
    };
    let all = WeightRows::all(DType::Q4_0, 2, 32);
    assert!(matches!(pack(&all, 256..291, 256..768), Err(Error::Shape { got: 35, want: 36, .. })));
    assert!(matches!(pack(&all, 256..292, 256..767), Err(Error::Shape { got: 511, want: 512, .. })));
    assert!(matches!(pack(&all, 257..293, 256..768), Err(Error::Alignment { must: 2, .. })));
    assert!(matches!(pack(&all, 256..292, 128..640), Err(Error::Alignment { must: 256, .. })));
    let beyond = WeightRows { piece: 1..3, ..all.clone() };
    assert!(matches!(pack(&beyond, 256..292, 256..768), Err(Error::Shape { got: 3, want: 2, .. })));
    let broken = WeightRows { cols: 33, ..all };
    assert!(matches!(pack(&broken, 256..292, 256..768), Err(Error::Quant(_))));
    assert_eq!(cuda.device().live().modules, 0);

    let here = [0u8; 512];
    let elsewhere = PlanarMatrix::new(DType::Q4_0, 2, 32, DeviceSlice::from(&here[..]));
    assert!(matches!(elsewhere, Err(Error::NotOnDevice { .. })));
    let table =
        |range: std::ops::Range<usize>| PlanarMatrix::new(DType::Q4_0, 2, 32, matrix.slice(range).unwrap());
    assert!(matches!(table(256..767), Err(Error::Shape { got: 511, want: 512, .. })));
    assert!(matches!(table(128..640), Err(Error::Alignment { must: 256, .. })));
    let table = table(256..768).unwrap();
    let mut out = upload(cuda.device(), &[0; 256], 0);
    let mut embed = |ids: std::ops::Range<usize>, to: std::ops::Range<usize>| {
        let (ids, to) = (rows.slice(ids).unwrap(), out.slice_mut(to).unwrap());
        // SAFETY: all stay to the test's end.
        unsafe { embed::cuda(&cuda.kernels, &cuda.stream, &table, ids, to) }
    };
    assert!(matches!(embed(0..7, 256..512), Err(Error::Shape { got: 7, want: 4, .. })));
    assert!(matches!(embed(0..8, 256..511), Err(Error::Shape { got: 255, want: 256, .. })));
    assert!(matches!(embed(2..10, 256..512), Err(Error::Alignment { must: 4, .. })));
    assert!(matches!(embed(0..8, 8..264), Err(Error::Alignment { must: 16, .. })));
    assert_eq!(cuda.device().live().modules, 0);
    embed(0..0, 256..256).unwrap();
    assert_eq!(cuda.device().live().modules, 0);
}
