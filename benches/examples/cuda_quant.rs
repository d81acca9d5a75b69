//! How fast the row kernels move memory on CUDA device 0, against a copy from device to device in the same run.
//!
//! `cargo run --release --package granule-benches --example cuda_quant [MIB]`, with MIB of f32 numbers (512 by default, more
//! than any cache). GB/s count every byte that has to be read and every one that has to be written, once; a copy's too.
//! Times are taken from this side, over enough launches between two synchronizations that starting them costs nothing.

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use granule_device::{Buffer, Bytes, Device, DeviceSlice, Stream};
use granule_ops::{Kernels, RowShape, Rows, RowsMut, compare, dequantize, fill, quantize, relayout};
use granule_quant::DType;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];
const BLOCKS: [DType; 2] = [DType::Q8_0, DType::Q4_0];
/// Elements of a row: what a wide model has.
const COLS: usize = 8192;
/// How long one measurement is to take at least, and how many of them there are; the best counts.
const AT_LEAST: Duration = Duration::from_millis(40);
const MEASUREMENTS: usize = 5;

/// A device with kernels, a stream, and two memories that are large enough for the largest rows.
struct Bench {
    kernels: Kernels,
    stream: Stream,
    from: Buffer,
    to: Buffer,
    rows: usize,
    /// Bytes a second of a copy, both ways counted.
    copy: f64,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cuda_quant: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mib = match std::env::args().nth(1) {
        Some(text) => text.parse().map_err(|_| format!("{text:?} is no number of MiB"))?,
        None => 512,
    };
    let mut bench = Bench::new(mib)?;
    bench.fill_source(DType::F32)?;
    let info = bench.kernels.device().cuda_info()?;
    println!("{}, driver for CUDA {}, {mib} MiB of f32 in rows of {COLS}", info.name, info.driver);
    println!("{:<44} {:>9} {:>10}", "", "GB/s", "of a copy");
    let bytes = bench.largest();
    let seconds = bench.time(|b| {
        let (from, to) = (b.from.slice(..bytes)?, b.to.slice_mut(..bytes)?);
        // SAFETY: both stay until `time` has synchronized, and nothing else is given meanwhile.
        Ok(unsafe { b.stream.copy_slice(from, to) }?)
    })?;
    bench.copy = 2.0 * bytes as f64 / seconds;
    bench.report("copy", 2 * bytes, seconds);
    bench.bytes()?;
    for dtype in BLOCKS {
        bench.layouts(dtype)?;
        for floats in FLOATS {
            bench.fill_source(floats)?;
            for planar in [false, true] {
                bench.conversions(dtype, floats, planar)?;
            }
        }
    }
    Ok(())
}

impl Bench {
    fn new(mib: usize) -> Result<Bench> {
        let device = Device::cuda(0)?;
        let rows = (mib << 20) / (4 * COLS);
        let size = Bytes::from_usize(rows * 4 * COLS);
        let (from, to) = (device.alloc(size)?, device.alloc(size)?);
        let (kernels, stream) = (Kernels::new(&device)?, device.stream()?);
        Ok(Bench { kernels, stream, from, to, rows, copy: f64::NAN })
    }

    /// Fills the source with ordinary numbers of a float type: what they are changes no kernel's speed, unless they are not
    /// finite.
    fn fill_source(&mut self, floats: DType) -> Result<()> {
        let numbers: Vec<f32> = (0..64 * COLS).map(|i| ((i * 7919) % 2001) as f32 / 1000.0 - 1.0).collect();
        let mut bytes = vec![0; floats.row_bytes(numbers.len())?];
        granule_quant::encode(floats, &numbers, &mut bytes)?;
        let all = self.largest();
        for start in (0..all).step_by(bytes.len()) {
            let end = (start + bytes.len()).min(all);
            let piece = DeviceSlice::from(&bytes[..end - start]);
            self.kernels.device().copy(piece, self.from.slice_mut(start..end)?)?;
        }
        Ok(())
    }

    fn largest(&self) -> usize {
        self.rows * 4 * COLS
    }

    /// Seconds that one run of `work` takes on the device.
    fn time(&mut self, mut work: impl FnMut(&mut Bench) -> Result<()>) -> Result<f64> {
        let mut batch = |bench: &mut Bench, runs: u32| -> Result<Duration> {
            let start = Instant::now();
            (0..runs).try_for_each(|_| work(bench))?;
            bench.stream.synchronize()?;
            Ok(start.elapsed())
        };
        batch(self, 2)?;
        let once = batch(self, 3)? / 3;
        let runs = (AT_LEAST.as_nanos() / once.as_nanos().max(1) + 1).min(10_000) as u32;
        let mut best = Duration::MAX;
        for _ in 0..MEASUREMENTS {
            best = best.min(batch(self, runs)? / runs);
        }
        Ok(best.as_secs_f64())
    }

    fn report(&self, name: &str, bytes: usize, seconds: f64) {
        let speed = bytes as f64 / seconds;
        println!("{name:<44} {:>9.1} {:>9.1}%", speed / 1e9, 100.0 * speed / self.copy);
    }

    /// Fill and compare.
    fn bytes(&mut self) -> Result<()> {
        let bytes = self.largest();
        let seconds = self.time(|b| {
            let pattern = fill::Pattern::new(&0u64.to_le_bytes())?;
            // SAFETY: it stays until `time` has synchronized, and nothing else is given meanwhile.
            Ok(unsafe { fill::cuda(&b.kernels, &b.stream, b.to.slice_mut(..)?, pattern) }?)
        })?;
        self.report("fill", bytes, seconds);
        let mut result = self.kernels.device().alloc(Bytes::from_usize(compare::Difference::BYTES))?;
        let half = bytes / 2;
        let seconds = self.time(|b| {
            let (x, y) = b.to.slice(..)?.split_at(half)?;
            // SAFETY: as above.
            Ok(unsafe { compare::cuda(&b.kernels, &b.stream, x, y, result.slice_mut(..)?) }?)
        })?;
        self.report("compare", bytes, seconds);
        Ok(())
    }

    fn shape(&self, dtype: DType, planar: bool) -> Result<RowShape> {
        let make = if planar { RowShape::planar } else { RowShape::dense };
        Ok(make(dtype, self.rows, COLS)?)
    }

    /// Between the layouts, both ways.
    fn layouts(&mut self, dtype: DType) -> Result<()> {
        for (from, to) in [(false, true), (true, false)] {
            let (x, y) = (self.shape(dtype, from)?, self.shape(dtype, to)?);
            let seconds = self.time(|b| {
                let (from, to) = (Rows::new(b.from.slice(..)?, x)?, RowsMut::new(b.to.slice_mut(..)?, y)?);
                // SAFETY: as above.
                Ok(unsafe { relayout::cuda(&b.kernels, &b.stream, from, to) }?)
            })?;
            let name = |planar| if planar { "planar" } else { "plain" };
            let name = format!("relayout {dtype} {} -> {}", name(from), name(to));
            self.report(&name, x.bytes() + y.bytes(), seconds);
        }
        Ok(())
    }

    /// Quantizing and dequantizing.
    fn conversions(&mut self, dtype: DType, floats: DType, planar: bool) -> Result<()> {
        let (x, y) = (self.shape(floats, false)?, self.shape(dtype, planar)?);
        let (bytes, layout) = (x.bytes() + y.bytes(), if planar { "planar" } else { "plain" });
        let seconds = self.time(|b| {
            let (from, to) = (Rows::new(b.from.slice(..)?, x)?, RowsMut::new(b.to.slice_mut(..)?, y)?);
            // SAFETY: as above.
            Ok(unsafe { quantize::cuda(&b.kernels, &b.stream, from, to) }?)
        })?;
        self.report(&format!("quantize {floats} -> {dtype} {layout}"), bytes, seconds);
        self.kernels.check()?;
        let seconds = self.time(|b| {
            let (from, to) = (Rows::new(b.to.slice(..)?, y)?, RowsMut::new(b.from.slice_mut(..)?, x)?);
            // SAFETY: as above.
            Ok(unsafe { dequantize::cuda(&b.kernels, &b.stream, from, to) }?)
        })?;
        self.report(&format!("dequantize {dtype} {layout} -> {floats}"), bytes, seconds);
        Ok(())
    }
}
