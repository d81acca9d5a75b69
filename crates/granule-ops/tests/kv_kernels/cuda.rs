//! A case on CUDA device 0.

mod launchers;
mod numeric;

use granule_device::{Buffer, Bytes, Device, DeviceSlice, DeviceSliceMut, Stream};
use granule_ops::attention::{self, CudaAttention, cuda_scratch_len};
use granule_ops::kv_append::{self, CudaAppend};
use granule_ops::{Error, Kernels, KvFold, KvTable, KvTransformTables};

use crate::cache::Cache;
use crate::case::Case;

/// CUDA device 0 with its kernels. Without a driver the test fails.
pub(crate) struct Cuda {
    pub(crate) kernels: Kernels,
    pub(crate) stream: Stream,
}

/// A layer's transform on the device.
pub(crate) struct Tables {
    keys: Option<Buffer>,
    values: Option<Buffer>,
}

impl Tables {
    pub(crate) fn slices(&self) -> KvTransformTables<'_> {
        KvTransformTables {
            keys: self.keys.as_ref().map(|buffer| buffer.slice(..).unwrap()),
            values: self.values.as_ref().map(|buffer| buffer.slice(..).unwrap()),
        }
    }
}

/// The part of device memory that holds these numbers.
fn slice<'a>(buffer: &'a Buffer, x: &[f32]) -> DeviceSlice<'a> {
    buffer.slice(..size_of_val(x)).unwrap()
}

impl Cuda {
    pub(crate) fn new() -> Cuda {
        let device = Device::cuda(0).unwrap();
        let stream = device.stream().unwrap();
        Cuda { kernels: Kernels::new(&device).unwrap(), stream }
    }

    pub(crate) fn device(&self) -> &Device {
        self.kernels.device()
    }

    pub(crate) fn upload(&self, bytes: &[u8]) -> Buffer {
        let mut buffer = self.device().alloc(Bytes::from_usize(bytes.len().max(16))).unwrap();
        if !bytes.is_empty() {
            self.device().copy(DeviceSlice::from(bytes), buffer.slice_mut(..bytes.len()).unwrap()).unwrap();
        }
        buffer
    }

    pub(crate) fn floats(&self, x: &[f32]) -> Buffer {
        self.upload(bytemuck::cast_slice(x))
    }

    pub(crate) fn tables(&self, case: &Case) -> Tables {
        let transform = case.kv_transform();
        let upload = |fold: Option<&KvFold>| fold.map(|fold| self.floats(&fold.tables()));
        let keys = upload(transform.as_ref().and_then(|t| t.key_fold()));
        Tables { keys, values: upload(transform.as_ref().and_then(|t| t.value_fold())) }
    }

    /// The table of a step over caches that lie in these buffers.
    pub(crate) fn table(&self, case: &Case, caches: &[Cache], there: &[Buffer]) -> (KvTable, Buffer) {
        let (mut table, rope) = (KvTable::new(), case.rope());
        for (((segments, tokens), cache), buffer) in case.sequences.iter().zip(caches).zip(there) {
            let view = cache.view(buffer.slice(..cache.bytes.len()).unwrap(), segments);
            table.push(&view, *tokens, Some(&rope)).unwrap();
        }
        let mut bytes = vec![0; table.bytes()];
        table.write(&mut bytes).unwrap();
        (table, self.upload(&bytes))
    }

    /// The f32 numbers of device memory.
    pub(crate) fn download(&self, from: &Buffer, n: usize) -> Vec<f32> {
        let mut result = vec![0.0; n];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut result[..]);
        self.device().copy(from.slice(..bytes.len()).unwrap(), DeviceSliceMut::from(bytes)).unwrap();
        result
    }

    /// How a case is attended to; `tables` are its transform's.
    pub(crate) fn shape<'a>(case: &Case, tables: &'a Tables) -> CudaAttention<'a> {
        CudaAttention {
            layout: case.layout(),
            n_heads: case.n_heads(),
            scale: case.scale(),
            transform: tables.slices(),
            splits: case.splits,
        }
    }

    /// Attention of a case's queries over its caches.
    pub(crate) fn attention(&self, case: &Case, caches: &[Cache], q: &[f32]) -> Vec<f32> {
        let there: Vec<Buffer> = caches.iter().map(|cache| self.upload(&cache.bytes)).collect();
        let (table, memory) = self.table(case, caches, &there);
        let view = table.on(memory.slice(..).unwrap()).unwrap();
        let tables = self.tables(case);
        let shape = Cuda::shape(case, &tables);
        let scratch = cuda_scratch_len(&self.kernels, &shape, table.counts()).unwrap();
        self.attend(q, scratch, |q, out, scratch| {
            // SAFETY: all memory stays until `attend` has waited for the stream, and only this launch touches it.
            unsafe { attention::cuda(&self.kernels, &self.stream, &shape, &view, q, out, scratch) }
        })
    }

    /// What `launch` makes of queries, a result and so many bytes of scratch on the device, when the stream is done.
    pub(crate) fn attend(
        &self,
        q: &[f32],
        scratch: usize,
        launch: impl FnOnce(DeviceSlice<'_>, DeviceSliceMut<'_>, DeviceSliceMut<'_>) -> Result<(), Error>,
    ) -> Vec<f32> {
        let mut scratch = self.device().alloc(Bytes::from_usize(scratch)).unwrap();
        let (queries, mut out) = (self.floats(q), self.floats(&vec![f32::NAN; q.len()]));
        let target = out.slice_mut(..size_of_val(q)).unwrap();
        launch(slice(&queries, q), target, scratch.slice_mut(..).unwrap()).unwrap();
        self.stream.synchronize().unwrap();
        self.download(&out, q.len())
    }

    /// Appends the case's tokens to its caches; `angles` are tokens x rope dims. Answers what the flag says.
    pub(crate) fn append(
        &self,
        case: &Case,
        caches: &mut [Cache],
        angles: &[f32],
        k: &[f32],
        v: &[f32],
    ) -> Result<(), Error> {
        let there: Vec<Buffer> = caches.iter().map(|cache| self.upload(&cache.bytes)).collect();
        let (table, memory) = self.table(case, caches, &there);
        let view = table.on(memory.slice(..).unwrap()).unwrap();
        let tables = self.tables(case);
        let (angles_there, k_there, v_there) = (self.floats(angles), self.floats(k), self.floats(v));
        let shape = CudaAppend {
            layout: case.layout(),
            rope_dims: case.rope_dims,
            angles: slice(&angles_there, angles),
            transform: tables.slices(),
        };
        // SAFETY: as above.
        let done = unsafe {
            kv_append::cuda(
                &self.kernels,
                &self.stream,
                &shape,
                &view,
                slice(&k_there, k),
                slice(&v_there, v),
            )
        };
        done.unwrap();
        self.stream.synchronize().unwrap();
        for (cache, buffer) in caches.iter_mut().zip(&there) {
            let len = cache.bytes.len();
            self.device()
                .copy(buffer.slice(..len).unwrap(), DeviceSliceMut::from(&mut cache.bytes[..]))
                .unwrap();
        }
        self.kernels.check()
    }
}
