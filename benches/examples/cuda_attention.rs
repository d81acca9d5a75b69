//! How fast attention reads the KV cache on CUDA device 0 while it decodes, against a copy from device to device in the same
//! run.
//!
//! `cargo run --release --package granule-benches --example cuda_attention [KEYS]`, with sequences of KEYS tokens (32768 by
//! default): 8 KV heads of 4 query heads each, of 64 and of 128 dims, one query token, batches of 1 and of 16, K and V in one
//! type. Queries and rows are random, so that scores differ and data toggles as a model's does. Sequences are `granule-kv`'s, in
//! both extremes of its layout: the layers' rows `apart`, each layer's behind each other, and `together`, all layers (16; of a
//! batch 4) in one row. GB/s count the bytes of keys and values, once; a copy's what it reads and what it writes. Layers are read
//! in turn, so many that the device's cache holds none of them when its turn comes again. Times are taken from this side, over
//! enough launches between two synchronizations that starting them costs nothing; the kernels that prepare and combine are in
//! them. A batch of 16 of 32768 keys takes 8 GiB of the device in f16 and 128 dims.

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use granule_bank::{Bank, BankOptions};
use granule_device::{Buffer, Bytes, Device, DeviceSlice, Stream};
use granule_kv::{KvCache, KvLayout, KvOptions, KvShape, KvType, Sequence};
use granule_ops::attention::{self, CudaAttention, cuda_scratch_len};
use granule_ops::{Kernels, KvTable, KvTransformTables};
use granule_quant::planar_bytes;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const TYPES: [KvType; 3] = [KvType::F16, KvType::Q8_0, KvType::Q4_0];
const N_KV_HEADS: usize = 8;
const N_HEADS: usize = 32;
/// Layers of a cache, for one sequence and for a batch: with either, more is read before it is read again than devices keep.
const LAYERS: [usize; 2] = [16, 4];
/// Bytes of a copy, likewise.
const COPIED: usize = 512 << 20;
/// Rows that differ; behind them they come again.
const ROWS: usize = 256;
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
    let bank = Bank::new(device.clone(), BankOptions::new())?;
    let bench = Bench { kernels: Kernels::new(&device)?, stream: device.stream()?, bank };
    let info = device.cuda_info()?;
    println!("{}, driver for CUDA {}, {keys} keys, {N_KV_HEADS} x 4 heads", info.name, info.driver);
    println!("{:<32} {:>9} {:>9} {:>10} {:>9}", "", "us", "GB/s", "of a copy", "of f16");
    let copy = bench.copy()?;
    for head_dim in [64, 128] {
        for sequences in [1, 16] {
            for together in [false, true] {
                let mut f16 = None;
                for kv in TYPES {
                    let (bytes, seconds) = bench.decode(kv, head_dim, sequences, keys, together)?;
                    let speed = bytes as f64 / seconds;
                    let times = *f16.get_or_insert(seconds) / seconds;
                    let rows = if together { "together" } else { "apart" };
                    let name = format!("{kv} dim {head_dim} batch {sequences} {rows}");
                    let of_copy = 100.0 * speed / copy;
                    let (us, speed) = (seconds * 1e6, speed / 1e9);
                    println!("{name:<32} {us:>9.1} {speed:>9.1} {of_copy:>9.1}% {times:>8.2}x");
                }
            }
        }
    }
    Ok(())
}

struct Bench {
    kernels: Kernels,
    stream: Stream,
    bank: Bank,
}

/// Numbers of about one that differ from place to place.
fn numbers(n: usize, seed: usize) -> Vec<f32> {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next() + next()).collect()
}

/// Rows of all layers of a group, random.
fn rows(layout: &KvLayout) -> Result<Vec<u8>> {
    let stride = usize::try_from(layout.row_stride(0).get())?;
    let mut rows = vec![0; ROWS * stride];
    for (i, row) in rows.chunks_exact_mut(stride).enumerate() {
        for layer in 0..layout.layers_per_row() {
            let (_, at) = layout.layer(layer)?;
            for (k, (quants, scales)) in
                [(at.k_quants, at.k_scales), (at.v_quants, at.v_scales)].into_iter().enumerate()
            {
                let plane = planar_bytes(at.k_type, at.elements())?;
                let (before, after) = row.split_at_mut(scales);
                let x = numbers(at.elements(), (i * 64 + layer) * 2 + k);
                let quants = &mut before[quants..quants + plane.quants];
                granule_quant::encode_planar(at.k_type, &x, quants, &mut after[..plane.scales])?;
            }
        }
    }
    Ok(rows)
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
        let bytes = COPIED;
        let (from, mut to) = (self.alloc(bytes)?, self.alloc(bytes)?);
        let seconds = self.time(|_| {
            // SAFETY: both stay until `time` has synchronized, and nothing else is given meanwhile.
            Ok(unsafe { self.stream.copy_slice(from.slice(..)?, to.slice_mut(..)?) }?)
        })?;
        let speed = 2.0 * bytes as f64 / seconds;
        println!("{:<32} {:>9.1} {:>9.1} {:>9.1}%", "copy", seconds * 1e6, speed / 1e9, 100.0);
        Ok(speed)
    }

    /// Sequences of so many keys.
    fn sequences(&self, layout: KvLayout, n: usize, keys: usize) -> Result<Vec<Sequence>> {
        let cache = KvCache::new(&self.bank, layout, KvOptions::new().parked(Bytes::ZERO))?;
        let (rows, stride) = (rows(&layout)?, usize::try_from(layout.row_stride(0).get())?);
        let mut sequences = Vec::new();
        for _ in 0..n {
            let mut sequence = cache.sequence(keys)?;
            while sequence.len() < keys {
                let n = sequence.prepare(ROWS.min(keys - sequence.len()))?;
                for group in 0..layout.groups() {
                    let mut view = sequence.rows_mut(group * layout.layers_per_row())?;
                    let to = view.rows().subslice(..n * stride)?;
                    self.kernels.device().copy(DeviceSlice::from(&rows[..n * stride]), to)?;
                }
                sequence.commit(n)?;
            }
            sequences.push(sequence);
        }
        Ok(sequences)
    }

    /// Bytes of keys and values that one call reads, and its seconds; with all layers' rows `together`, or apart.
    fn decode(
        &self,
        kv: KvType,
        head_dim: usize,
        n: usize,
        keys: usize,
        together: bool,
    ) -> Result<(usize, f64)> {
        let layers = LAYERS[usize::from(n > 1)];
        let shape = KvShape { n_layers: layers, n_kv_heads: N_KV_HEADS, head_dim };
        let layout = KvLayout::new(shape, kv, kv, Some(if together { layers } else { 1 }), 0)?;
        let sequences = self.sequences(layout, n, keys)?;
        let mut tables = Vec::new();
        for layer in 0..layers {
            let mut table = KvTable::new();
            for sequence in &sequences {
                table.push(&sequence.view(layer, keys)?, 1, None)?;
            }
            let mut bytes = vec![0; table.bytes()];
            table.write(&mut bytes)?;
            let mut memory = self.alloc(bytes.len())?;
            self.kernels.device().copy(DeviceSlice::from(&bytes[..]), memory.slice_mut(..)?)?;
            let shape = CudaAttention {
                layout: layout.layer(layer)?.1,
                n_heads: N_HEADS,
                scale: 1.0 / (head_dim as f32).sqrt(),
                transform: KvTransformTables::default(),
                splits: None,
            };
            tables.push((table, memory, shape));
        }
        let x = numbers(n * N_HEADS * head_dim, 1);
        let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_le_bytes()).collect();
        let (mut q, mut out) = (self.alloc(bytes.len())?, self.alloc(bytes.len())?);
        self.kernels.device().copy(DeviceSlice::from(&bytes[..]), q.slice_mut(..)?)?;
        let (table, _, shape) = &tables[0];
        let mut scratch = self.alloc(cuda_scratch_len(&self.kernels, shape, table.counts())?)?;
        let seconds = self.time(|i| {
            let (table, memory, shape) = &tables[i % layers];
            let view = table.on(memory.slice(..)?)?;
            let (q, out, scratch) = (q.slice(..)?, out.slice_mut(..)?, scratch.slice_mut(..)?);
            // SAFETY: the table names sequences of this layout; all of it stays until `time` has synchronized, and nothing else
            // is given meanwhile.
            Ok(unsafe { attention::cuda(&self.kernels, &self.stream, shape, &view, q, out, scratch) }?)
        })?;
        let plane = planar_bytes(kv.dtype(), N_KV_HEADS * head_dim)?;
        Ok((2 * n * keys * (plane.quants + plane.scales), seconds))
    }
}
