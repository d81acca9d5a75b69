//! tales-5m with weights of every type, made from the file that comes with this crate.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use granule_llama::gguf::{Gguf, GgufWriter};
use granule_quant::DType;

use super::encode::{decode, encode};

/// The model that comes with this crate, from the folder that tests run in: the crate's, or a bundle's on a machine with a GPU.
pub(crate) fn tales() -> &'static Path {
    Path::new("models/tales-5m.q8_0.gguf")
}

/// The model with all its matrices in `dtype`, as a file in `folder`.
pub(crate) fn tales_of(dtype: DType, folder: &Path) -> PathBuf {
    let path = folder.join(format!("tales-5m.{dtype}.gguf"));
    std::fs::write(&path, all(dtype)).unwrap();
    path
}

/// The same but for the matrices of these names in each layer, which are as in the first file.
pub(crate) fn tales_but(kept: &[&str], dtype: DType, folder: &Path) -> PathBuf {
    let path = folder.join(format!("tales-5m.{dtype}.but.{}.gguf", kept.join(".")));
    let (first, all) = (all(DType::Q8_0), all(dtype));
    let is_kept = |name: &str| kept.iter().any(|kept| name.ends_with(&format!(".{kept}.weight")));
    let [first_gguf, all_gguf] = [first, all].map(|file| Gguf::parse(file).unwrap());
    let mut writer = with_metadata(&first_gguf);
    for (one, other) in first_gguf.tensors().iter().zip(all_gguf.tensors()) {
        assert_eq!(one.name, other.name);
        let (gguf, file, tensor) =
            if is_kept(&one.name) { (&first_gguf, first, one) } else { (&all_gguf, all, other) };
        writer.tensor(&tensor.name, &tensor.dims, tensor.ty, &file[gguf.data_range(tensor)]).unwrap();
    }
    std::fs::write(&path, writer.to_bytes()).unwrap();
    path
}

/// The bytes of the file with all matrices in `dtype`. Made once for a process; a file that outlived it would stay.
fn all(dtype: DType) -> &'static [u8] {
    static FILES: [OnceLock<Vec<u8>>; DType::ALL.len()] = [const { OnceLock::new() }; DType::ALL.len()];
    let place = DType::ALL.iter().position(|&other| other == dtype).unwrap();
    FILES[place].get_or_init(|| made(dtype))
}

fn made(dtype: DType) -> Vec<u8> {
    let file = std::fs::read(tales()).unwrap();
    if dtype == DType::Q8_0 {
        return file;
    }
    let gguf = Gguf::parse(&file).unwrap();
    let mut writer = with_metadata(&gguf);
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

/// A file with what this one says of itself, and no tensors yet.
fn with_metadata<'a>(gguf: &Gguf) -> GgufWriter<'a> {
    let mut writer = GgufWriter::new(3).unwrap();
    for (key, value) in gguf.metadata().iter() {
        writer.set(key, value.clone()).unwrap();
    }
    writer
}
