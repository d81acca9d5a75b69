//! Steps of sequences on a CUDA device, from rows that a cache prepares to attention over them, beside the same on the host:
//! the same bytes, and results that agree.
#![cfg(feature = "cuda")]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::num::NonZero;

use granule_bank::{Bank, BankOptions};
use granule_device::{Buffer, Bytes, Device, DeviceSlice, DeviceSliceMut, Stream};
use granule_kv::{KvCache, KvLayout, KvOptions, KvShape, KvType, Sequence};
use granule_ops::attention::{self, CudaAttention, cuda_scratch_len};
use granule_ops::kv_append::{self, AppendShape, CudaAppend};
use granule_ops::{
    AttentionItem, AttentionShape, Kernels, KvFold, KvTable, KvTransform, KvTransformTables, Rope, Threads,
};

/// Two heads, whose scales fill half of the 16 bytes of their plane: what pads it is never written, and never to be read.
const SHAPE: KvShape = KvShape { n_layers: 2, n_kv_heads: 2, head_dim: 64 };
const N_HEADS: usize = 4;
const WIDTH: usize = SHAPE.n_kv_heads * SHAPE.head_dim;
const QUERY: usize = N_HEADS * SHAPE.head_dim;
const ROPE: usize = 32;
const SCALE: f32 = 0.125;

/// Numbers of about one, the same for the same seed.
fn numbers(seed: usize, n: usize) -> Vec<f32> {
    let mut state = (seed as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next() + next()).collect()
}

fn transform() -> KvTransform {
    let fold = |seed| {
        let scales = numbers(seed + 1, WIDTH).iter().map(|x| 1.0 + x / 8.0).collect();
        KvFold::new(SHAPE.n_kv_heads, SHAPE.head_dim, numbers(seed, WIDTH), scales).unwrap()
    };
    KvTransform::new(SHAPE.n_kv_heads, SHAPE.head_dim, Some(fold(3)), Some(fold(5))).unwrap()
}

/// What computes: this processor, or a device.
enum Machine {
    Host(Threads),
    Cuda { kernels: Kernels, stream: Stream, folds: Option<[Buffer; 2]> },
}

/// An engine of two layers without a model: keys, values and queries are numbers.
struct Engine {
    machine: Machine,
    sequences: Vec<Sequence>,
    transform: Option<KvTransform>,
    rope: Rope,
}

fn upload(device: &Device, bytes: &[u8]) -> Buffer {
    let mut buffer = device.alloc(Bytes::from_usize(bytes.len().max(16))).unwrap();
    device.copy(DeviceSlice::from(bytes), buffer.slice_mut(..bytes.len()).unwrap()).unwrap();
    buffer
}

fn floats(device: &Device, x: &[f32]) -> Buffer {
    upload(device, &x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>())
}

impl Engine {
    fn new(device: &Device, layout: KvLayout, transform: Option<KvTransform>) -> Engine {
        let bank = Bank::new(device.clone(), BankOptions::new()).unwrap();
        let cache = KvCache::new(&bank, layout, KvOptions::new()).unwrap();
        let machine = if device.name().starts_with("cuda") {
            let folds = transform.as_ref().map(|transform| {
                [transform.key_fold(), transform.value_fold()]
                    .map(|fold| floats(device, &fold.unwrap().tables()))
            });
            Machine::Cuda { kernels: Kernels::new(device).unwrap(), stream: device.stream().unwrap(), folds }
        } else {
            Machine::Host(Threads::new(NonZero::<usize>::MIN).unwrap())
        };
        let rope = Rope::new(ROPE, 10_000.0, 1.0, None).unwrap();
        Engine { machine, sequences: vec![cache.sequence(4096).unwrap()], transform, rope }
    }

    /// One step of all sequences, so many tokens each: appends in every layer, then attends. Answers all layers' results.
    fn step(&mut self, tokens: &[usize], seed: usize) -> Vec<f32> {
        let mut angles = Vec::new();
        for (sequence, &n) in self.sequences.iter_mut().zip(tokens) {
            assert_eq!(sequence.prepare(n).unwrap(), n);
            let start = angles.len();
            angles.resize(start + n * ROPE, 0.0);
            self.rope.angles(sequence.position(), n, &mut angles[start..]).unwrap();
        }
        let all: usize = tokens.iter().sum();
        let mut out = Vec::new();
        for layer in 0..SHAPE.n_layers {
            let seed = seed * 100 + layer * 10;
            let (k, v) = (numbers(seed, all * WIDTH), numbers(seed + 1, all * WIDTH));
            out.extend(self.layer(layer, tokens, &angles, &k, &v, &numbers(seed + 2, all * QUERY)));
        }
        for (sequence, &n) in self.sequences.iter_mut().zip(tokens) {
            sequence.commit(n).unwrap();
        }
        out
    }

    fn layer(
        &mut self,
        layer: usize,
        tokens: &[usize],
        angles: &[f32],
        k: &[f32],
        v: &[f32],
        q: &[f32],
    ) -> Vec<f32> {
        let Engine { machine, sequences, transform, rope } = self;
        let mut out = vec![f32::NAN; q.len()];
        match machine {
            Machine::Host(threads) => {
                let mut first = 0;
                for (sequence, &n) in sequences.iter_mut().zip(tokens) {
                    let angles = &angles[first * ROPE..(first + n) * ROPE];
                    let shape = AppendShape { rope_dims: ROPE, angles, transform: transform.as_ref() };
                    let of = |x: &[f32]| x[first * WIDTH..(first + n) * WIDTH].to_vec();
                    let mut rows = sequence.rows_mut(layer).unwrap();
                    kv_append::cpu(threads, &shape, &mut rows, &mut of(k), &mut of(v)).unwrap();
                    first += n;
                }
                let items: Vec<_> = sequences
                    .iter()
                    .zip(tokens)
                    .map(|(sequence, &n)| AttentionItem {
                        cache: sequence.view(layer, sequence.len() + n).unwrap(),
                        n_tokens: n,
                    })
                    .collect();
                let (transform, rope) = (transform.as_ref(), Some(&*rope));
                let shape = AttentionShape { n_heads: N_HEADS, scale: SCALE, transform, rope };
                let len = attention::scratch_len(threads, items[0].cache.layout(), N_HEADS, first);
                attention::cpu(threads, &shape, q, &items, &mut out, &mut vec![0.0; len]).unwrap();
            }
            Machine::Cuda { kernels, stream, folds } => {
                let device = kernels.device().clone();
                let mut table = KvTable::new();
                for (sequence, &n) in sequences.iter().zip(tokens) {
                    table.push(&sequence.view(layer, sequence.len() + n).unwrap(), n, Some(rope)).unwrap();
                }
                let mut bytes = vec![0; table.bytes()];
                table.write(&mut bytes).unwrap();
                let memory = upload(&device, &bytes);
                let view = table.on(memory.slice(..bytes.len()).unwrap()).unwrap();
                let fold = |i: usize| folds.as_ref().map(|folds| folds[i].slice(..).unwrap());
                let transform = KvTransformTables { keys: fold(0), values: fold(1) };
                let layout = *sequences[0].view(layer, 1).unwrap().layout();
                let [k, v, angles, queries] = [k, v, angles, q].map(|x| (floats(&device, x), 4 * x.len()));
                let append = CudaAppend {
                    layout,
                    rope_dims: ROPE,
                    angles: angles.0.slice(..angles.1).unwrap(),
                    transform,
                };
                let shape = CudaAttention { layout, n_heads: N_HEADS, scale: SCALE, transform, splits: None };
                let need = cuda_scratch_len(kernels, &shape, table.counts()).unwrap();
                let mut scratch = device.alloc(Bytes::from_usize(need)).unwrap();
                let mut result = floats(&device, &out);
                // SAFETY: all memory stays until the stream was waited for, and only these kernels touch it.
                unsafe {
                    let (k, v) = (k.0.slice(..k.1).unwrap(), v.0.slice(..v.1).unwrap());
                    kv_append::cuda(kernels, stream, &append, &view, k, v).unwrap();
                    let (q, result) =
                        (queries.0.slice(..queries.1).unwrap(), result.slice_mut(..queries.1).unwrap());
                    attention::cuda(
                        kernels,
                        stream,
                        &shape,
                        &view,
                        q,
                        result,
                        scratch.slice_mut(..).unwrap(),
                    )
                    .unwrap();
                }
                stream.synchronize().unwrap();
                kernels.check().unwrap();
                let mut bytes = vec![0; queries.1];
                device
                    .copy(result.slice(..queries.1).unwrap(), DeviceSliceMut::from(&mut bytes[..]))
                    .unwrap();
                let words = bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word));
                out.iter_mut().zip(words).for_each(|(out, word)| *out = word);
            }
        }
        out
    }

    /// The bytes of a layer's rows, and of its sinks.
    fn bytes(&self, sequence: usize, layer: usize) -> Vec<u8> {
        let sequence = &self.sequences[sequence];
        let view = sequence.view(layer, sequence.len()).unwrap();
        let layout = *view.layout();
        let parts = [
            (layout.k_type, layout.k_quants, layout.k_scales),
            (layout.v_type, layout.v_quants, layout.v_scales),
        ];
        let mut all = Vec::new();
        let mut get = |from: DeviceSlice<'_>| {
            let start = all.len();
            all.resize(start + from.len(), 0);
            sequence.cache().bank().device().copy(from, DeviceSliceMut::from(&mut all[start..])).unwrap();
        };
        for segment in view.segments() {
            for row in 0..segment.len {
                for (dtype, quants, scales) in parts {
                    let planes = granule_quant::planar_bytes(dtype, WIDTH).unwrap();
                    for (at, len) in [(quants, planes.quants), (scales, planes.scales)] {
                        let at = row * layout.row_stride + at;
                        get(segment.rows.subslice(at..at + len).unwrap());
                    }
                }
            }
        }
        if let (Some(sinks), Some(at)) = (view.sinks(), layout.sinks) {
            for at in [at.k, at.v] {
                get(sinks.subslice(at..at + 4 * WIDTH * 2).unwrap());
            }
        }
        all
    }
}

/// Appended, cut, shifted, forked and appended again, in batches: after each step bytes and results are those of the host.
fn agrees(k: KvType, v: KvType, layers_per_row: usize, transforms: bool) {
    let layout = KvLayout::new(SHAPE, k, v, Some(layers_per_row), if transforms { 4 } else { 0 }).unwrap();
    let engine = |device: Device| Engine::new(&device, layout, transforms.then(transform));
    let mut engines = [engine(Device::host().unwrap()), engine(Device::cuda(0).unwrap())];
    let mut step = |edit: fn(&mut Vec<Sequence>), tokens: &[usize], seed: usize| {
        let [here, there] = engines.each_mut().map(|engine| {
            edit(&mut engine.sequences);
            engine.step(tokens, seed)
        });
        for (i, (a, b)) in here.iter().zip(&there).enumerate() {
            assert!((a - b).abs() < 2e-3, "{k} {v}, step {seed}, number {i}: {b} on the device, {a} here");
        }
        for sequence in 0..tokens.len() {
            for layer in 0..SHAPE.n_layers {
                let [a, b] = engines.each_ref().map(|engine| engine.bytes(sequence, layer));
                assert!(a == b, "{k} {v}, step {seed}: bytes of sequence {sequence}, layer {layer}");
            }
        }
    };
    step(|_| (), &[40], 1);
    step(|_| (), &[1], 2);
    step(|all| all[0].remove(5..12).unwrap(), &[3], 3);
    step(
        |all| {
            let fork = all[0].fork().unwrap();
            all.push(fork);
        },
        &[1, 2],
        4,
    );
    step(|all| all[1].truncate(20).unwrap(), &[1, 1], 5);
    step(|all| all[0].shift(10..15, 3).unwrap(), &[2, 1], 6);
}

mod cuda {
    mod numeric {
        use crate::{KvType, agrees};

        #[test]
        #[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
        fn a_sequence_on_a_device_is_the_hosts() {
            for layers_per_row in [1, 2] {
                agrees(KvType::F16, KvType::F16, layers_per_row, false);
                agrees(KvType::Q8_0, KvType::Q4_0, layers_per_row, true);
                agrees(KvType::Q4_0, KvType::Q4_0, layers_per_row, true);
            }
        }
    }
}
