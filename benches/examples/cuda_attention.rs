//! How fast attention reads the KV cache on CUDA device 0 while it decodes, against a copy from device to device in the same
//! run.
//!
//! `cargo run --release --package granule-benches --example cuda_attention [KEYS]`, with sequences of KEYS tokens (32768 by
//! default): 8 KV heads of 4 query heads each, of 64 and of 128 dims, one query token, batches of 1 and of 16, K and V in one
//! type. GB/s count the bytes of keys and values, once; a copy's what it reads and what it writes. Layers are read in turn, so
//! many that the device's cache holds none of them when its turn comes again. Times are taken from this side, over enough
//! launches between two synchronizations that starting them costs nothing; the kernels that prepare and combine are in them.

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use granule_device::{Buffer, Bytes, Device, DeviceSlice, Stream};
use granule_ops::attention::{self, CudaAttention, cuda_scratch_len};
use granule_ops::{Kernels, KvRowLayout, KvSegment, KvTable, KvTransformTables, KvView, PLANE_ALIGN};
use granule_quant::{DType, planar_bytes};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const TYPES: [DType; 3] = [DType::F16, DType::Q8_0, DType::Q4_0];
const N_KV_HEADS: usize = 8;
const N_HEADS: usize = 32;
/// Bytes of cache that are read before any is read again: more than devices keep.
const AT_LEAST_READ: usize = 512 << 20;
/// How long one measurement is to take at least, and how many of them there are; the best counts.
const AT_LEAST: Duration = Duration::from_millis(40);
const MEASUREMENTS: usize = 5;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cuda_attention: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let keys = match std::env::args().nth(1) {
        Some(text) => text.parse().map_err(|_| format!("{text:?} is no number of keys"))?,
        None => 32768,
    };
    let device = Device::cuda(0)?;
    let bench = Bench { kernels: Kernels::new(&device)?, stream: device.stream()? };
    let info = device.cuda_info()?;
    println!("{}, driver for CUDA {}, {keys} keys, {N_KV_HEADS} x 4 heads", info.name, info.driver);
    println!("{:<28} {:>9} {:>9} {:>10} {:>9}", "", "us", "GB/s", "of a copy", "of f16");
    let copy = bench.copy()?;
    for head_dim in [64, 128] {
        for sequences in [1, 16] {
            let mut f16 = None;
            for dtype in TYPES {
                let (bytes, seconds) = bench.decode(dtype, head_dim, sequences, keys)?;
                let speed = bytes as f64 / seconds;
                let times = *f16.get_or_insert(seconds) / seconds;
                let name = format!("{dtype} dim {head_dim} batch {sequences}");
                let of_copy = 100.0 * speed / copy;
                let (us, speed) = (seconds * 1e6, speed / 1e9);
                println!("{name:<28} {us:>9.1} {speed:>9.1} {of_copy:>9.1}% {times:>8.2}x");
            }
        }
    }
    Ok(())
}

struct Bench {
    kernels: Kernels,
    stream: Stream,
}

/// One layer in a row of its own.
fn layout(dtype: DType, head_dim: usize) -> Result<KvRowLayout> {
    let plane = planar_bytes(dtype, N_KV_HEADS * head_dim)?;
    let scales = plane.quants.next_multiple_of(PLANE_ALIGN);
    let half = scales + plane.scales.next_multiple_of(PLANE_ALIGN);
    Ok(KvRowLayout {
        k_type: dtype,
        v_type: dtype,
        n_kv_heads: N_KV_HEADS,
        head_dim,
        row_stride: 2 * half,
        rows_at: 0,
        k_quants: 0,
        k_scales: scales,
        v_quants: half,
        v_scales: half + scales,
        sinks: None,
    })
}

impl Bench {
    fn alloc(&self, bytes: usize) -> Result<Buffer> {
        Ok(self.kernels.device().alloc(Bytes::from_usize(bytes))?)
    }

    /// Seconds that one run of `work` takes on the device; it is told how many came before.
    fn time(&self, mut work: impl FnMut(usize) -> Result<()>) -> Result<f64> {
        let mut batch = |runs: usize| -> Result<Duration> {
            let start = Instant::now();
            (0..runs).try_for_each(&mut work)?;
            self.stream.synchronize()?;
            Ok(start.elapsed())
        };
        batch(2)?;
        let once = batch(3)? / 3;
        let runs = (AT_LEAST.as_nanos() / once.as_nanos().max(1) + 1).min(10_000) as usize;
        let mut best = Duration::MAX;
        for _ in 0..MEASUREMENTS {
            best = best.min(batch(runs)? / runs as u32);
        }
        Ok(best.as_secs_f64())
    }

    /// Bytes a second of a copy, both ways counted.
    fn copy(&self) -> Result<f64> {
        let bytes = AT_LEAST_READ;
        let (from, mut to) = (self.alloc(bytes)?, self.alloc(bytes)?);
        let seconds = self.time(|_| {
            // SAFETY: both stay until `time` has synchronized, and nothing else is given meanwhile.
            Ok(unsafe { self.stream.copy_slice(from.slice(..)?, to.slice_mut(..)?) }?)
        })?;
        let speed = 2.0 * bytes as f64 / seconds;
        println!("{:<28} {:>9.1} {:>9.1} {:>9.1}%", "copy", seconds * 1e6, speed / 1e9, 100.0);
        Ok(speed)
    }

    /// Bytes of keys and values that one call reads, and its seconds.
    fn decode(&self, dtype: DType, head_dim: usize, sequences: usize, keys: usize) -> Result<(usize, f64)> {
        let layout = layout(dtype, head_dim)?;
        let each = keys * layout.row_stride;
        let layers = (AT_LEAST_READ / (sequences * each)).max(1);
        // Rows that decode to ordinary numbers: what they are changes no kernel's speed, unless they are not finite.
        let numbers: Vec<f32> =
            (0..N_KV_HEADS * head_dim).map(|i| ((i * 7919) % 2001) as f32 / 1000.0 - 1.0).collect();
        let mut row = vec![0; layout.row_stride];
        for (quants, scales) in [(layout.k_quants, layout.k_scales), (layout.v_quants, layout.v_scales)] {
            let plane = planar_bytes(dtype, numbers.len())?;
            let (before, after) = row.split_at_mut(scales);
            let quants = &mut before[quants..quants + plane.quants];
            granule_quant::encode_planar(dtype, &numbers, quants, &mut after[..plane.scales])?;
        }
        let rows = row.repeat(keys);
        let mut caches = Vec::new();
        for _ in 0..layers * sequences {
            let mut cache = self.alloc(each)?;
            self.kernels.device().copy(DeviceSlice::from(&rows[..]), cache.slice_mut(..)?)?;
            caches.push(cache);
        }
        let mut tables = Vec::new();
        for layer in caches.chunks_exact(sequences) {
            let mut table = KvTable::new();
            for cache in layer {
                let segment = KvSegment { rows: cache.slice(..)?, row: 0, len: keys, turn: 0 };
                table.push(&KvView::new(layout, None, [segment].into_iter().collect())?, 1, None)?;
            }
            let mut bytes = vec![0; table.bytes()];
            table.write(&mut bytes)?;
            let mut memory = self.alloc(bytes.len())?;
            self.kernels.device().copy(DeviceSlice::from(&bytes[..]), memory.slice_mut(..)?)?;
            tables.push((table, memory));
        }
        let shape = CudaAttention {
            layout,
            n_heads: N_HEADS,
            scale: 1.0 / (head_dim as f32).sqrt(),
            transform: KvTransformTables::default(),
        };
        let elements = sequences * N_HEADS * head_dim * size_of::<f32>();
        let (mut q, mut out) = (self.alloc(elements)?, self.alloc(elements)?);
        self.kernels.device().copy(DeviceSlice::from(&vec![0; elements][..]), q.slice_mut(..)?)?;
        let counts = tables[0].0.counts();
        let mut scratch = self.alloc(cuda_scratch_len(&self.kernels, &layout, N_HEADS, counts)?)?;
        let seconds = self.time(|i| {
            let (table, memory) = &tables[i % layers];
            let view = table.on(memory.slice(..)?)?;
            let (q, out, scratch) = (q.slice(..)?, out.slice_mut(..)?, scratch.slice_mut(..)?);
            // SAFETY: the table names caches of this layout; all of it stays until `time` has synchronized, and nothing else is
            // given meanwhile.
            Ok(unsafe { attention::cuda(&self.kernels, &self.stream, &shape, &view, q, out, scratch) }?)
        })?;
        let plane = planar_bytes(dtype, N_KV_HEADS * head_dim)?;
        Ok((2 * sequences * keys * (plane.quants + plane.scales), seconds))
    }
}
