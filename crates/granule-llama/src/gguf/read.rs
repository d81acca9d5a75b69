//! Reading a GGUF file from bytes. Nothing is allocated that the bytes at hand do not back: every count and
//! length is held against what is left of the input before anything is made of it.

use super::value::{Array, Metadata, Strings, Value};
use super::{GgmlType, Gguf, TensorInfo};
use crate::error::{Error, Result, excerpt};
use std::collections::HashMap;

/// The deepest nesting of arrays that is read; ggml itself reads none.
const NESTING_LIMIT: usize = 4;
/// ggml's `GGML_MAX_DIMS`.
const MAX_DIMS: u32 = 4;
/// The least bytes of a metadata entry: key length, value type, one byte of value.
const MIN_ENTRY_BYTES: u64 = 8 + 4 + 1;
/// The least bytes of a tensor entry: name length, number of dimensions, type, offset.
const MIN_TENSOR_BYTES: u64 = 8 + 4 + 4 + 8;
/// The alignment of a file that states none.
pub(super) const DEFAULT_ALIGNMENT: u32 = 32;
pub(super) const MAGIC: &[u8; 4] = b"GGUF";

/// What is being read, for the error that says so. Written out only when there is one.
#[derive(Clone, Copy)]
enum What<'a> {
    Header,
    Entry(u64),
    Value(&'a str),
    Tensor(u64),
}

impl std::fmt::Display for What<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Header => f.write_str("the header"),
            Self::Entry(index) => write!(f, "the key of metadata entry {index}"),
            Self::Value(key) => write!(f, "metadata key `{}`", excerpt(key)),
            Self::Tensor(index) => write!(f, "the description of tensor {index}"),
        }
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> u64 {
        (self.bytes.len() - self.at) as u64
    }

    /// Fails where fewer than `count * each` bytes are left; otherwise `count` fits in memory.
    fn expect(&self, count: u64, each: u64, what: What<'_>) -> Result<usize> {
        let needed = u128::from(count) * u128::from(each);
        match usize::try_from(count) {
            Ok(count) if needed <= u128::from(self.left()) => Ok(count),
            _ => Err(Error::Truncated {
                what: what.to_string(),
                offset: self.at as u64,
                needed,
                available: self.left(),
            }),
        }
    }

    fn take(&mut self, len: u64, what: What<'_>) -> Result<&'a [u8]> {
        let len = self.expect(len, 1, what)?;
        let start = self.at;
        self.at += len;
        Ok(&self.bytes[start..self.at])
    }

    fn array<const N: usize>(&mut self, what: What<'_>) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N as u64, what)?);
        Ok(out)
    }

    fn u32(&mut self, what: What<'_>) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: What<'_>) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn str(&mut self, what: What<'_>) -> Result<&'a str> {
        let len = self.u64(what)?;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|_| Error::InvalidUtf8 { what: what.to_string() })
    }

    fn value(&mut self, key: &str) -> Result<Value> {
        let what = What::Value(key);
        let ty = self.u32(what)?;
        Ok(match ty {
            0 => Value::U8(u8::from_le_bytes(self.array(what)?)),
            1 => Value::I8(i8::from_le_bytes(self.array(what)?)),
            2 => Value::U16(u16::from_le_bytes(self.array(what)?)),
            3 => Value::I16(i16::from_le_bytes(self.array(what)?)),
            4 => Value::U32(u32::from_le_bytes(self.array(what)?)),
            5 => Value::I32(i32::from_le_bytes(self.array(what)?)),
            6 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            7 => Value::Bool(boolean(self.array::<1>(what)?[0], key)?),
            8 => Value::String(self.str(what)?.to_owned()),
            9 => Value::Array(self.value_array(key, 1)?),
            10 => Value::U64(u64::from_le_bytes(self.array(what)?)),
            11 => Value::I64(i64::from_le_bytes(self.array(what)?)),
            12 => Value::F64(f64::from_le_bytes(self.array(what)?)),
            id => return Err(Error::UnknownValueType { key: key.to_owned(), id }),
        })
    }

    fn value_array(&mut self, key: &str, depth: usize) -> Result<Array> {
        let what = What::Value(key);
        if depth > NESTING_LIMIT {
            return Err(Error::NestedTooDeep { key: key.to_owned(), limit: NESTING_LIMIT });
        }
        let ty = self.u32(what)?;
        let count = self.u64(what)?;
        Ok(match ty {
            0 => Array::U8(self.numbers(count, what, u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(count, what, i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(count, what, u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(count, what, i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(count, what, u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(count, what, i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(count, what, f32::from_le_bytes)?),
            7 => {
                Array::Bool(self.take(count, what)?.iter().map(|&b| boolean(b, key)).collect::<Result<_>>()?)
            }
            8 => {
                self.expect(count, 8, what)?;
                let mut strings = Strings::default();
                for _ in 0..count {
                    strings.push(self.str(what)?);
                }
                Array::String(strings)
            }
            9 => {
                self.expect(count, 4 + 8, what)?;
                Array::Array((0..count).map(|_| self.value_array(key, depth + 1)).collect::<Result<_>>()?)
            }
            10 => Array::U64(self.numbers(count, what, u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(count, what, i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(count, what, f64::from_le_bytes)?),
            id => return Err(Error::UnknownValueType { key: key.to_owned(), id }),
        })
    }

    fn numbers<T, const N: usize>(
        &mut self,
        count: u64,
        what: What<'_>,
        convert: fn([u8; N]) -> T,
    ) -> Result<Vec<T>> {
        let count = self.expect(count, N as u64, what)?;
        let bytes = self.take((count * N) as u64, what)?;
        Ok(bytes.as_chunks().0.iter().map(|&chunk| convert(chunk)).collect())
    }

    fn tensor(&mut self, index: u64) -> Result<TensorInfo> {
        let what = What::Tensor(index);
        let name = self.str(what)?.to_owned();
        let n_dims = self.u32(what)?;
        if n_dims > MAX_DIMS {
            return Err(Error::TooManyDims { name, dims: n_dims });
        }
        let dims = (0..n_dims).map(|_| self.u64(what)).collect::<Result<Vec<_>>>()?;
        let id = self.u32(what)?;
        let offset = self.u64(what)?;
        let Some(ty) = GgmlType::from_id(id) else { return Err(Error::UnknownTensorType { name, id }) };
        let bytes = tensor_bytes(&name, ty, &dims)?;
        Ok(TensorInfo { name, dims, ty, offset, bytes })
    }
}

fn boolean(value: u8, key: &str) -> Result<bool> {
    match value {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Error::InvalidBool { key: key.to_owned(), value }),
    }
}

/// Bytes of a tensor: its first dimension is a row, which must be whole blocks of its type.
pub(crate) fn tensor_bytes(name: &str, ty: GgmlType, dims: &[u64]) -> Result<u64> {
    let row = dims.first().copied().unwrap_or(1);
    if !row.is_multiple_of(ty.block_len()) {
        return Err(Error::TensorRow { name: name.to_owned(), ty: ty.name(), row, block: ty.block_len() });
    }
    // Zero rows do not excuse a row that no number can hold: the product is formed over what is not zero.
    let elements = dims.iter().filter(|&&d| d != 0).try_fold(1u64, |n, &d| n.checked_mul(d));
    let bytes = elements
        .and_then(|n| n.checked_add(ty.block_len() - 1))
        .and_then(|n| (n / ty.block_len()).checked_mul(ty.block_bytes()));
    match bytes {
        Some(_) if dims.contains(&0) => Ok(0),
        Some(bytes) => Ok(bytes),
        None => Err(Error::TensorTooLarge { name: name.to_owned(), dims: dims.to_vec() }),
    }
}

/// Read everything but the tensors' data. `file_len` is the length of the whole file, of which `bytes` is the
/// beginning (or all).
pub(super) fn parse(bytes: &[u8], file_len: u64) -> Result<Gguf> {
    let mut r = Reader { bytes, at: 0 };
    let magic: [u8; 4] = r.array(What::Header)?;
    if &magic != MAGIC {
        return Err(Error::NotGguf { found: format!("\"{}\"", magic.escape_ascii()) });
    }
    let version = r.u32(What::Header)?;
    if !(2..=3).contains(&version) {
        // A version that is small only with its bytes swapped was written by the other kind of machine.
        let swapped = version.swap_bytes();
        return Err(if version > 0xffff && swapped <= 0xffff {
            Error::BigEndian { version: swapped }
        } else {
            Error::UnsupportedGgufVersion { version }
        });
    }
    let n_tensors = r.u64(What::Header)?;
    let n_entries = r.u64(What::Header)?;
    r.expect(n_entries, MIN_ENTRY_BYTES, What::Header)?;
    r.expect(n_tensors, MIN_TENSOR_BYTES, What::Header)?;

    let mut metadata = Metadata::default();
    for index in 0..n_entries {
        let key = r.str(What::Entry(index))?;
        let value = r.value(key)?;
        metadata.insert(key.to_owned(), value)?;
    }
    let alignment = metadata.find_u32("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() {
        return Err(Error::InvalidAlignment { alignment });
    }
    let alignment = u64::from(alignment);

    let mut tensors = Vec::new();
    let mut by_name = HashMap::new();
    for index in 0..n_tensors {
        let tensor = r.tensor(index)?;
        if by_name.insert(tensor.name.clone(), tensors.len()).is_some() {
            return Err(Error::DuplicateTensor { name: tensor.name });
        }
        tensors.push(tensor);
    }
    // The position is at most a slice's length and the alignment at most 2^31: the sum fits.
    let data_offset = (r.at as u64).next_multiple_of(alignment);
    check_places(&tensors, alignment, data_offset, file_len)?;
    Ok(Gguf { version, metadata, alignment, tensors, by_name, data_offset })
}

/// Every tensor's data is aligned, lies in the file and shares no byte with another's.
fn check_places(tensors: &[TensorInfo], alignment: u64, data_offset: u64, file: u64) -> Result<()> {
    for t in tensors {
        if !t.offset.is_multiple_of(alignment) {
            return Err(Error::TensorUnaligned { name: t.name.clone(), offset: t.offset, alignment });
        }
        let offset = u128::from(data_offset) + u128::from(t.offset);
        if t.bytes > 0 && offset + u128::from(t.bytes) > u128::from(file) {
            return Err(Error::TensorOutOfFile { name: t.name.clone(), offset, bytes: t.bytes, file });
        }
    }
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().filter(|t| t.bytes > 0).collect();
    by_offset.sort_by_key(|t| t.offset);
    for pair in by_offset.windows(2) {
        // Both lie in the file, so their sums fit.
        if pair[0].offset + pair[0].bytes > pair[1].offset {
            return Err(Error::TensorOverlap { first: pair[0].name.clone(), second: pair[1].name.clone() });
        }
    }
    Ok(())
}
