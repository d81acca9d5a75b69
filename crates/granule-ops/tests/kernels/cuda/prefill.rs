//! Attention for prompts through its launcher: the same prompts as in the emulator.

use granule_device::{Buffer, Bytes, DeviceSlice, DeviceSliceMut};
use granule_ops::attention::CudaAttention;
use granule_ops::{
    Error, KvFold, KvRowLayout, KvSegment, KvSinks, KvTable, KvTransformTables, KvView, attention_prefill,
};
use granule_quant::DType;

use super::Cuda;
use crate::prefill::{Prompt, Run, SINKS, Sequence, Shape};

impl Cuda {
    fn bytes(&self, bytes: &[u8]) -> Buffer {
        let mut buffer = self.device().alloc(Bytes::from_usize(bytes.len().max(16))).unwrap();
        self.device().copy(DeviceSlice::from(bytes), buffer.slice_mut(..bytes.len()).unwrap()).unwrap();
        buffer
    }

    fn floats(&self, x: &[f32]) -> Buffer {
        self.bytes(bytemuck::cast_slice(x))
    }

    /// What the launcher gives, or refuses.
    fn prefill(&self, prompt: &Prompt, scale: f32) -> Result<Vec<f32>, Error> {
        let shape = &prompt.shape;
        let [k, v] = prompt.planes;
        let sinks = KvSinks { rows: SINKS, k: prompt.sinks[0], v: prompt.sinks[1] };
        let layout = KvRowLayout {
            k_type: shape.k_type,
            v_type: shape.v_type,
            n_kv_heads: shape.n_kv_heads,
            head_dim: shape.head_dim,
            row_stride: prompt.row_stride,
            rows_at: prompt.rows_at,
            k_quants: k.quants,
            k_scales: k.scales,
            v_quants: v.quants,
            v_scales: v.scales,
            sinks: shape.transform.then_some(sinks),
        };
        let memories: Vec<Buffer> =
            prompt.memories.iter().map(|memory| self.bytes(bytemuck::cast_slice(memory))).collect();
        let rope = prompt.rope();
        let mut table = KvTable::new();
        for (sequence, memory) in shape.sequences.iter().zip(&memories) {
            let segment = |run: &Run| {
                let at = prompt.rows_at + run.row * prompt.row_stride;
                let rows = memory.slice(at..at + run.len * prompt.row_stride).unwrap();
                KvSegment { rows, row: run.row, len: run.len, turn: run.turn }
            };
            let sinks = layout.sinks.map(|_| memory.slice(..prompt.rows_at).unwrap());
            let view = KvView::new(layout, sinks, sequence.runs.iter().map(segment).collect())?;
            table.push(&view, sequence.queries, Some(&rope))?;
        }
        let mut bytes = vec![0; table.bytes()];
        table.write(&mut bytes)?;
        let on_device = self.bytes(&bytes);
        let folds: Option<[Buffer; 2]> =
            prompt.folds.as_ref().map(|folds| [0, 1].map(|i| self.floats(&KvFold::tables(&folds[i]))));
        let fold = |i: usize| folds.as_ref().map(|folds| folds[i].slice(..).unwrap());
        let q = self.floats(&prompt.q);
        let mut out = self.floats(&vec![f32::NAN; prompt.q.len()]);
        let attention = CudaAttention {
            layout,
            n_heads: shape.n_heads(),
            scale,
            transform: KvTransformTables { keys: fold(0), values: fold(1) },
            splits: None,
        };
        let len = prompt.q.len() * 4;
        let view = table.on(on_device.slice(..bytes.len()).unwrap())?;
        // SAFETY: everything stays until the stream was waited for, and nothing else touches it.
        let launched = unsafe {
            let (q, out) = (q.slice(..len).unwrap(), out.slice_mut(..len).unwrap());
            attention_prefill::cuda(&self.kernels, &self.stream, &attention, &view, q, out)
        };
        self.stream.synchronize().unwrap();
        launched?;
        let mut got = vec![0f32; prompt.q.len()];
        self.device()
            .copy(
                out.slice(..len).unwrap(),
                DeviceSliceMut::from(bytemuck::cast_slice_mut::<f32, u8>(&mut got)),
            )
            .unwrap();
        Ok(got)
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn prompts_are_attended_to() {
    let cuda = Cuda::new();
    let run = |row, len, turn| Run { row, len, turn };
    let batch = vec![
        Sequence { runs: vec![run(0, 37, 0), run(60, 40, -23)], queries: 12 },
        Sequence::of(66, 3),
        Sequence { runs: vec![run(9, 5, 4)], queries: 5 },
    ];
    for (i, (k, v)) in [(DType::Q4_0, DType::Q8_0), (DType::F16, DType::F16), (DType::F32, DType::BF16)]
        .into_iter()
        .enumerate()
    {
        for transform in [false, true] {
            let sequences = batch.clone();
            let shape = Shape { n_kv_heads: 2, sequences, transform, ..Shape::new(k, v, [64, 128][i % 2]) };
            let prompt = Prompt::draw(shape, i as u64);
            prompt.check(&cuda.prefill(&prompt, prompt.scale).unwrap());
        }
    }
    // A real GPU has time for a prompt of some length.
    if granule_sim::Sim::find().is_none() {
        let shape = Shape::new(DType::Q8_0, DType::Q4_0, 128);
        let sequences = vec![Sequence::of(1500, 700), Sequence::of(513, 513)];
        let prompt = Prompt::draw(Shape { n_kv_heads: 2, group: 4, sequences, ..shape }, 9);
        prompt.check(&cuda.prefill(&prompt, prompt.scale).unwrap());
    }
}

#[test]
#[ignore = "needs a CUDA driver; cargo xtask test runs it on the simulated one"]
fn what_the_kernel_does_not_take_is_refused_by_name() {
    let cuda = Cuda::new();
    let refused = |shape: Shape, scale| cuda.prefill(&Prompt::draw(shape, 0), scale).unwrap_err().to_string();
    let floats = |head_dim| Shape::new(DType::F16, DType::F16, head_dim);
    for head_dim in [12, 136] {
        let said = refused(floats(head_dim), 1.0);
        assert!(
            said.contains("head dimension of attention for prompts") && said.contains("attention::cuda"),
            "{said}"
        );
    }
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let said = refused(floats(64), scale);
        assert!(said.contains("the factor on scores"), "{said}");
    }
}
