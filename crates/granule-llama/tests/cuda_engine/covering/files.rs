//! tales-5m with weights of every type, made from the file that comes with this crate.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use granule_llama::gguf::{Gguf, GgufWriter};
use granule_quant::DType;

use super::encode::{decode, encode};
use crate::cuda::tales;

/// The model with all its matrices in `dtype`, as a file in `folder`.
pub(crate) fn tales_of(dtype: DType, folder: &Path) -> PathBuf {
    // Made once for a process; a file that outlived it would stay.
    static FILES: [OnceLock<Vec<u8>>; DType::ALL.len()] = [const { OnceLock::new() }; DType::ALL.len()];
    let place = DType::ALL.iter().position(|&other| other == dtype).unwrap();
    let path = folder.join(format!("tales-5m.{dtype}.gguf"));
    std::fs::write(&path, FILES[place].get_or_init(|| made(dtype))).unwrap();
    path
}

/// The bytes of that file.
fn made(dtype: DType) -> Vec<u8> {
    let file = std::fs::read(tales()).unwrap();
    if dtype == DType::Q8_0 {
        return file;
    }
    let gguf = Gguf::parse(&file).unwrap();
    let mut writer = GgufWriter::new(3).unwrap();
    for (key, value) in gguf.metadata().iter() {
        writer.set(key, value.clone()).unwrap();
    }
    let converted = gguf.tensors().iter().map(|tensor| {
        let bytes = &file[gguf.data_range(tensor)];
        if tensor.ty == DType::Q8_0.into() {
            (dtype.into(), encode(dtype, &decode(DType::Q8_0, bytes)))
        } else {
            (tensor.ty, bytes.to_vec())
        }
    });
    let converted: Vec<_> = converted.collect();
    for (tensor, (ty, data)) in gguf.tensors().iter().zip(&converted) {
        writer.tensor(&tensor.name, &tensor.dims, *ty, data).unwrap();
    }
    writer.to_bytes()
}
