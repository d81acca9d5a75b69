//! Products by cuBLAS against the same in f64.

use granule_device::{
    Blas, Buffer, Bytes, Device, DeviceSlice, DeviceSliceMut, Error, Gemm, GemmType, Stream,
};
use half::{bf16, f16};

use crate::support::{assert_nothing_left, device, write};

/// Numbers of every size between -1 and 1.
fn numbers(seed: u64) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    })
}

/// Matrices on a device, and on the host what they hold.
pub(crate) struct Case {
    factors: GemmType,
    /// Tokens, rows, columns.
    shape: [usize; 3],
    strides: [usize; 3],
    x: (Vec<f32>, Buffer),
    w: (Vec<f32>, Buffer),
    out: (Vec<f32>, Buffer),
}

impl Case {
    pub(crate) fn new(
        device: &Device,
        factors: GemmType,
        shape: [usize; 3],
        strides: [usize; 3],
    ) -> Result<Case, Error> {
        let [tokens, rows, cols] = shape;
        let [x_stride, w_stride, out_stride] = strides;
        let halves = |count: usize, stride: usize, seed| {
            // Between rows lies what spoils a result that reads it.
            let all = numbers(seed).take(count * stride).enumerate();
            let all = all.map(|(i, x)| if i % stride < cols { x } else { f32::NAN });
            let bits: Vec<(f32, [u8; 2])> = all
                .map(|x| match factors {
                    GemmType::F16 => (f16::from_f32(x).to_f32(), f16::from_f32(x).to_le_bytes()),
                    GemmType::Bf16 => (bf16::from_f32(x).to_f32(), bf16::from_f32(x).to_le_bytes()),
                })
                .collect();
            let bytes: Vec<u8> = bits.iter().flat_map(|(_, bytes)| *bytes).collect();
            Ok::<_, Error>((bits.into_iter().map(|(x, _)| x).collect(), upload(device, &bytes)?))
        };
        let before: Vec<f32> = numbers(9).take(tokens * out_stride).collect();
        let bytes: Vec<u8> = before.iter().flat_map(|x| x.to_le_bytes()).collect();
        let out = (before, upload(device, &bytes)?);
        let (x, w) = (halves(tokens, x_stride, 1)?, halves(rows, w_stride, 2)?);
        Ok(Case { factors, shape, strides, x, w, out })
    }

    pub(crate) fn gemm(&mut self, adds: bool) -> Gemm<'_> {
        let ([tokens, rows, cols], [x_stride, w_stride, out_stride]) = (self.shape, self.strides);
        Gemm {
            factors: self.factors,
            tokens,
            rows,
            cols,
            x: self.x.1.slice(..).unwrap(),
            x_stride,
            w: self.w.1.slice(..).unwrap(),
            w_stride,
            out: self.out.1.slice_mut(..).unwrap(),
            out_stride,
            adds,
        }
    }

    /// What the device has as the result of `times` products on what was there (the first of which is added where `adds`) is
    /// near that of f64; what lies between rows is as it was.
    pub(crate) fn check(&self, device: &Device, times: f64, adds: bool) -> Result<(), Error> {
        let ([tokens, rows, cols], [x_stride, w_stride, out_stride]) = (self.shape, self.strides);
        let mut got = vec![0; tokens * out_stride * 4];
        device.copy(self.out.1.slice(..)?, DeviceSliceMut::from(&mut got[..]))?;
        let got: Vec<f32> = got.as_chunks().0.iter().map(|&x| f32::from_le_bytes(x)).collect();
        for (at, (&got, &before)) in got.iter().zip(&self.out.0).enumerate() {
            let (token, row) = (at / out_stride, at % out_stride);
            if row >= rows {
                assert_eq!(got.to_bits(), before.to_bits(), "token {token}, between rows");
                continue;
            }
            let [mut want, mut size] = [0.0_f64; 2];
            for col in 0..cols {
                let (x, w) = (self.x.0[token * x_stride + col], self.w.0[row * w_stride + col]);
                want += f64::from(x) * f64::from(w);
                size += (f64::from(x) * f64::from(w)).abs();
            }
            let start = if adds { f64::from(before) } else { 0.0 };
            let (want, size) = (start + times * want, start.abs() + times * size);
            let (off, bound) = ((f64::from(got) - want).abs(), (cols as f64 + 8.0) * size / 2e6);
            assert!(off <= bound, "token {token}, row {row}: {got} instead of {want}");
        }
        Ok(())
    }
}

fn upload(device: &Device, bytes: &[u8]) -> Result<Buffer, Error> {
    let mut buffer = device.alloc(Bytes::from_usize(bytes.len()))?;
    device.copy(DeviceSlice::from(bytes), buffer.slice_mut(..)?)?;
    Ok(buffer)
}

/// The least that a product takes.
pub(crate) fn workspace(device: &Device) -> Result<Buffer, Error> {
    device.alloc(Bytes::kib(16))
}

/// A handle, a stream and a workspace.
fn ready(device: &Device) -> (Blas, Stream, Buffer) {
    (Blas::new(device).unwrap(), device.stream().unwrap(), workspace(device).unwrap())
}

/// One product at once.
fn run(blas: &Blas, stream: &Stream, gemm: Gemm<'_>, workspace: &mut Buffer) -> Result<(), Error> {
    // SAFETY: everything stays until the stream was waited for, and nothing else touches it.
    unsafe { blas.gemm(stream, gemm, workspace.slice_mut(..)?) }?;
    stream.synchronize()
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn products_are_those_of_f64() {
    let device = device();
    let (blas, stream, mut workspace) = ready(&device);
    assert_eq!(device.live().blas, 1);
    for factors in [GemmType::F16, GemmType::Bf16] {
        for (shape, strides) in [
            ([1, 1, 1], [8, 8, 1]),
            ([3, 5, 64], [64, 64, 5]),
            ([9, 33, 70], [72, 80, 33]),
            ([17, 4, 31], [31, 31, 19]),
        ] {
            for adds in [false, true] {
                let mut case = Case::new(&device, factors, shape, strides).unwrap();
                run(&blas, &stream, case.gemm(adds), &mut workspace).unwrap();
                case.check(&device, 1.0, adds).unwrap();
            }
        }
    }
    // What is not added to is not looked at.
    let mut case = Case::new(&device, GemmType::F16, [2, 3, 8], [8, 8, 3]).unwrap();
    let nan: Vec<u8> = [f32::NAN; 6].iter().flat_map(|x| x.to_le_bytes()).collect();
    write(&device, &nan, case.out.1.slice_mut(..).unwrap());
    run(&blas, &stream, case.gemm(false), &mut workspace).unwrap();
    case.check(&device, 1.0, false).unwrap();
    drop((case, blas, stream, workspace));
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn one_handle_serves_several_streams() {
    let device = device();
    let blas = Blas::new(&device).unwrap();
    let streams = [device.stream().unwrap(), device.stream().unwrap()];
    let mut workspaces = [0; 2].map(|_| workspace(&device).unwrap());
    let mut cases =
        [7, 8].map(|tokens| Case::new(&device, GemmType::Bf16, [tokens, 5, 16], [16, 16, 5]).unwrap());
    for _ in 0..2 {
        for ((stream, workspace), case) in streams.iter().zip(&mut workspaces).zip(&mut cases) {
            // SAFETY: everything stays until the streams were waited for, and nothing else touches it.
            unsafe { blas.gemm(stream, case.gemm(true), workspace.slice_mut(..).unwrap()) }.unwrap();
        }
    }
    // It stays until its work is done.
    drop(blas);
    device.synchronize().unwrap();
    cases.iter().for_each(|case| case.check(&device, 2.0, true).unwrap());
    drop((cases, streams, workspaces));
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn a_graph_holds_a_product_and_its_handle() {
    let device = device();
    let (blas, stream, mut workspace) = ready(&device);
    let mut case = Case::new(&device, GemmType::F16, [3, 4, 24], [24, 24, 4]).unwrap();
    run(&blas, &stream, case.gemm(true), &mut workspace).unwrap();
    stream.begin_capture().unwrap();
    assert!(matches!(Blas::new(&device), Err(Error::Capturing { .. })));
    // SAFETY: everything stays until the graph has run for the last time.
    unsafe { blas.gemm(&stream, case.gemm(true), workspace.slice_mut(..).unwrap()) }.unwrap();
    let graph = stream.end_capture().unwrap();
    assert!(graph.nodes().unwrap() >= 1);
    let executable = graph.instantiate().unwrap();
    drop((graph, blas));
    assert_eq!(device.live().blas, 1, "the graph has it");
    for _ in 0..2 {
        // SAFETY: as above.
        unsafe { executable.launch(&stream) }.unwrap();
    }
    stream.synchronize().unwrap();
    case.check(&device, 3.0, true).unwrap();
    drop((executable, case, stream, workspace));
    assert_nothing_left(&device);
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_no_product_can_be_is_refused() {
    let device = device();
    let (blas, stream, mut workspace) = ready(&device);
    let mut case = Case::new(&device, GemmType::F16, [3, 4, 24], [24, 24, 4]).unwrap();
    let mut refused = |change: &dyn Fn(&mut Gemm<'_>)| {
        let mut gemm = case.gemm(false);
        change(&mut gemm);
        match run(&blas, &stream, gemm, &mut workspace) {
            Err(Error::Launch { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refused(&|gemm| gemm.cols = 0), "it has no columns");
    let few = "a matrix has fewer bytes than its shape asks for";
    assert_eq!(refused(&|gemm| gemm.tokens += 1), few);
    assert_eq!(refused(&|gemm| gemm.w_stride += 1), few);
    assert_eq!(refused(&|gemm| gemm.x_stride = usize::MAX / 2), few);
    assert_eq!(refused(&|gemm| gemm.out_stride += 1), few);
    assert_eq!(refused(&|gemm| gemm.x_stride -= 1), "the rows of a matrix overlap");
    assert_eq!(
        refused(&|gemm| gemm.w = gemm.w.subslice(1..).unwrap()),
        "a matrix does not begin at a multiple of its elements' size"
    );
    let gemm = case.gemm(false);
    // SAFETY: it is refused, so nothing runs.
    let small = unsafe { blas.gemm(&stream, gemm, workspace.slice_mut(..8192).unwrap()) };
    assert!(matches!(small, Err(Error::Launch { .. })), "{small:?}");
    // Nothing to do is done.
    let mut none = case.gemm(false);
    none.tokens = 0;
    run(&blas, &stream, none, &mut workspace).unwrap();
    let host = Device::host().unwrap();
    assert!(matches!(Blas::new(&host), Err(Error::Unsupported { .. })));
    drop((case, blas, stream, workspace));
    assert_nothing_left(&device);
}
