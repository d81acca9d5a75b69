//! Writing GGUF files: what `Gguf` reads, byte for byte as ggml lays it out.

use super::read::{DEFAULT_ALIGNMENT, MAGIC, tensor_bytes};
use super::{Array, GgmlType, Metadata, TensorInfo, Value};
use crate::error::{Error, Result};
use std::collections::HashSet;
use std::io::{self, Write};

/// Collects metadata and tensors, then writes them. Tensors' data are borrowed until then.
#[derive(Clone, Debug)]
pub struct GgufWriter<'a> {
    version: u32,
    metadata: Metadata,
    tensors: Vec<(TensorInfo, &'a [u8])>,
    names: HashSet<String>,
}

impl<'a> GgufWriter<'a> {
    /// A file of this version, 2 or 3 ([`Error::UnsupportedGgufVersion`] otherwise).
    pub fn new(version: u32) -> Result<Self> {
        if !(2..=3).contains(&version) {
            return Err(Error::UnsupportedGgufVersion { version });
        }
        Ok(Self { version, metadata: Metadata::default(), tensors: Vec::new(), names: HashSet::new() })
    }

    /// Add a metadata value.
    ///
    /// # Errors
    /// [`Error::DuplicateKey`]; [`Error::InvalidAlignment`] for a `general.alignment` that is no power of two,
    /// [`Error::WrongType`] for one that is no integer.
    pub fn set(&mut self, key: &str, value: Value) -> Result<()> {
        let mut probe = Metadata::default();
        if key == "general.alignment" {
            probe.insert(key.to_owned(), value.clone())?;
            let alignment = probe.get_u32(key)?;
            if !alignment.is_power_of_two() {
                return Err(Error::InvalidAlignment { alignment });
            }
        }
        self.metadata.insert(key.to_owned(), value)
    }

    /// Add a tensor: `dims` as in [`TensorInfo::dims`], `data` as long as they and the type say.
    ///
    /// # Errors
    /// [`Error::DuplicateTensor`], [`Error::TooManyDims`], [`Error::TensorRow`], [`Error::TensorTooLarge`],
    /// [`Error::TensorDataLength`].
    pub fn tensor(&mut self, name: &str, dims: &[u64], ty: GgmlType, data: &'a [u8]) -> Result<()> {
        let owned = || name.to_owned();
        if dims.len() > 4 {
            return Err(Error::TooManyDims { name: owned(), dims: dims.len() as u32 });
        }
        let bytes = tensor_bytes(name, ty, dims)?;
        if bytes != data.len() as u64 {
            return Err(Error::TensorDataLength { name: owned(), expected: bytes, found: data.len() as u64 });
        }
        if !self.names.insert(owned()) {
            return Err(Error::DuplicateTensor { name: owned() });
        }
        self.tensors.push((TensorInfo { name: owned(), dims: dims.to_vec(), ty, offset: 0, bytes }, data));
        Ok(())
    }

    /// Write the file.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write_to(&self, out: &mut impl Write) -> io::Result<()> {
        let alignment = match self.metadata.find_u32("general.alignment") {
            Ok(Some(alignment)) => u64::from(alignment),
            _ => u64::from(DEFAULT_ALIGNMENT),
        };
        let header =
            header(self.version, &self.metadata, self.tensors.iter().map(|(tensor, _)| tensor), alignment);
        out.write_all(&header)?;
        for (_, data) in &self.tensors {
            out.write_all(data)?;
            pad(out, data.len() as u64, alignment)?;
        }
        Ok(())
    }

    /// The file as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        // Writing to memory does not fail.
        let _ = self.write_to(&mut out);
        out
    }
}

/// A file's bytes up to its data: tensors' data follow in this order, each [padded](pad) to the alignment. Where tensors say
/// that they lie makes no difference.
pub(crate) fn header<'a>(
    version: u32,
    metadata: &Metadata,
    tensors: impl ExactSizeIterator<Item = &'a TensorInfo>,
    alignment: u64,
) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    out.extend(version.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        put_str(&mut out, key);
        put_value(&mut out, value);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        put_str(&mut out, &tensor.name);
        out.extend((tensor.dims.len() as u32).to_le_bytes());
        tensor.dims.iter().for_each(|d| out.extend(d.to_le_bytes()));
        out.extend(tensor.ty.id().to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset += tensor.bytes.next_multiple_of(alignment);
    }
    let padding = (out.len() as u64).next_multiple_of(alignment) - out.len() as u64;
    out.extend(std::iter::repeat_n(0, padding as usize));
    out
}

/// Zeros behind `len` bytes, up to the alignment.
pub(crate) fn pad(out: &mut impl Write, len: u64, alignment: u64) -> io::Result<()> {
    let missing = len.next_multiple_of(alignment) - len;
    io::copy(&mut io::Read::take(io::repeat(0), missing), out).map(drop)
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut put = |ty: u32, bytes: &[u8]| {
        out.extend(ty.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U8(v) => put(0, &v.to_le_bytes()),
        Value::I8(v) => put(1, &v.to_le_bytes()),
        Value::U16(v) => put(2, &v.to_le_bytes()),
        Value::I16(v) => put(3, &v.to_le_bytes()),
        Value::U32(v) => put(4, &v.to_le_bytes()),
        Value::I32(v) => put(5, &v.to_le_bytes()),
        Value::F32(v) => put(6, &v.to_le_bytes()),
        Value::Bool(v) => put(7, &[u8::from(*v)]),
        Value::String(v) => {
            put(8, &[]);
            put_str(out, v);
        }
        Value::Array(v) => {
            put(9, &[]);
            put_array(out, v);
        }
        Value::U64(v) => put(10, &v.to_le_bytes()),
        Value::I64(v) => put(11, &v.to_le_bytes()),
        Value::F64(v) => put(12, &v.to_le_bytes()),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    fn numbers<T: Copy, const N: usize>(out: &mut Vec<u8>, ty: u32, v: &[T], to: fn(T) -> [u8; N]) {
        out.extend(ty.to_le_bytes());
        out.extend((v.len() as u64).to_le_bytes());
        v.iter().for_each(|&x| out.extend(to(x)));
    }
    match array {
        Array::U8(v) => numbers(out, 0, v, u8::to_le_bytes),
        Array::I8(v) => numbers(out, 1, v, i8::to_le_bytes),
        Array::U16(v) => numbers(out, 2, v, u16::to_le_bytes),
        Array::I16(v) => numbers(out, 3, v, i16::to_le_bytes),
        Array::U32(v) => numbers(out, 4, v, u32::to_le_bytes),
        Array::I32(v) => numbers(out, 5, v, i32::to_le_bytes),
        Array::F32(v) => numbers(out, 6, v, f32::to_le_bytes),
        Array::Bool(v) => numbers(out, 7, v, |b| [u8::from(b)]),
        Array::String(v) => {
            out.extend(8u32.to_le_bytes());
            out.extend((v.len() as u64).to_le_bytes());
            v.iter().for_each(|s| put_str(out, s));
        }
        Array::Array(v) => {
            out.extend(9u32.to_le_bytes());
            out.extend((v.len() as u64).to_le_bytes());
            v.iter().for_each(|a| put_array(out, a));
        }
        Array::U64(v) => numbers(out, 10, v, u64::to_le_bytes),
        Array::I64(v) => numbers(out, 11, v, i64::to_le_bytes),
        Array::F64(v) => numbers(out, 12, v, f64::to_le_bytes),
    }
}
