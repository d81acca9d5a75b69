//! Metadata of a GGUF file: its values, and typed access that names the key where something is wrong.

use crate::error::{Error, Result};
use std::borrow::Cow;
use std::collections::HashMap;

/// One metadata value.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the variants are the format's own types
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array of metadata values, all of one type.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the variants are the format's own types
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Strings),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Many strings in one piece of memory: vocabularies have hundreds of thousands of short ones.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strings {
    text: String,
    /// Where each string ends in `text`; it begins where the one before it ends.
    ends: Vec<usize>,
}

impl Strings {
    /// How many strings there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The string at `index`.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = if index == 0 { 0 } else { *self.ends.get(index - 1)? };
        self.text.get(start..end)
    }

    /// All strings, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        (0..self.len()).map(|i| self.get(i).unwrap_or_default())
    }

    /// Append one.
    pub fn push(&mut self, string: &str) {
        self.text.push_str(string);
        self.ends.push(self.text.len());
    }
}

impl<S: AsRef<str>> FromIterator<S> for Strings {
    fn from_iter<I: IntoIterator<Item = S>>(iter: I) -> Self {
        let mut strings = Self::default();
        iter.into_iter().for_each(|s| strings.push(s.as_ref()));
        strings
    }
}

impl Value {
    /// The value as an integer, where it is one.
    #[must_use]
    pub fn as_integer(&self) -> Option<i128> {
        Some(match *self {
            Self::U8(v) => v.into(),
            Self::I8(v) => v.into(),
            Self::U16(v) => v.into(),
            Self::I16(v) => v.into(),
            Self::U32(v) => v.into(),
            Self::I32(v) => v.into(),
            Self::U64(v) => v.into(),
            Self::I64(v) => v.into(),
            _ => return None,
        })
    }

    /// Type and, for a single value, the value itself: what an error says was found.
    fn describe(&self) -> String {
        match self {
            Self::U8(v) => format!("the u8 {v}"),
            Self::I8(v) => format!("the i8 {v}"),
            Self::U16(v) => format!("the u16 {v}"),
            Self::I16(v) => format!("the i16 {v}"),
            Self::U32(v) => format!("the u32 {v}"),
            Self::I32(v) => format!("the i32 {v}"),
            Self::F32(v) => format!("the f32 {v}"),
            Self::Bool(v) => format!("the bool {v}"),
            Self::String(v) => format!("the string \"{}\"", crate::error::excerpt(v)),
            Self::U64(v) => format!("the u64 {v}"),
            Self::I64(v) => format!("the i64 {v}"),
            Self::F64(v) => format!("the f64 {v}"),
            Self::Array(v) => format!("an array of {} {}", v.len(), v.element_name()),
        }
    }
}

impl Array {
    /// How many elements it has.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::U8(v) => v.len(),
            Self::I8(v) => v.len(),
            Self::U16(v) => v.len(),
            Self::I16(v) => v.len(),
            Self::U32(v) => v.len(),
            Self::I32(v) => v.len(),
            Self::F32(v) => v.len(),
            Self::Bool(v) => v.len(),
            Self::String(v) => v.len(),
            Self::Array(v) => v.len(),
            Self::U64(v) => v.len(),
            Self::I64(v) => v.len(),
            Self::F64(v) => v.len(),
        }
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The name of its elements' type.
    #[must_use]
    pub fn element_name(&self) -> &'static str {
        match self {
            Self::U8(_) => "u8",
            Self::I8(_) => "i8",
            Self::U16(_) => "u16",
            Self::I16(_) => "i16",
            Self::U32(_) => "u32",
            Self::I32(_) => "i32",
            Self::F32(_) => "f32",
            Self::Bool(_) => "bool",
            Self::String(_) => "string",
            Self::Array(_) => "array",
            Self::U64(_) => "u64",
            Self::I64(_) => "i64",
            Self::F64(_) => "f64",
        }
    }

    /// The elements as integers, where they are integers.
    #[must_use]
    pub fn to_integers(&self) -> Option<Vec<i128>> {
        fn all<T: Copy + Into<i128>>(v: &[T]) -> Vec<i128> {
            v.iter().map(|&x| x.into()).collect()
        }
        Some(match self {
            Self::U8(v) => all(v),
            Self::I8(v) => all(v),
            Self::U16(v) => all(v),
            Self::I16(v) => all(v),
            Self::U32(v) => all(v),
            Self::I32(v) => all(v),
            Self::U64(v) => all(v),
            Self::I64(v) => all(v),
            _ => return None,
        })
    }
}

/// The metadata of a file: values by key, in the file's order.
///
/// `get_*` want the key to be there, `find_*` take its absence as `None`. Integers of any width and sign are taken
/// where the value fits, because writers differ in the width they choose.
#[derive(Clone, Debug, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    by_key: HashMap<String, usize>,
}

impl Metadata {
    /// Add a value; [`Error::DuplicateKey`] where the key is there already.
    pub(super) fn insert(&mut self, key: String, value: Value) -> Result<()> {
        if self.by_key.contains_key(&key) {
            return Err(Error::DuplicateKey { key });
        }
        self.by_key.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        Ok(())
    }

    /// The same values but for these keys.
    pub(crate) fn without(&self, keys: &[&str]) -> Self {
        let mut rest = Self::default();
        for (key, value) in self.entries.iter().filter(|(key, _)| !keys.contains(&key.as_str())) {
            rest.set(key, value.clone());
        }
        rest
    }

    /// Sets a value, in the place of the one that the key has if it is there.
    pub(crate) fn set(&mut self, key: &str, value: Value) {
        let at = *self.by_key.entry(key.to_owned()).or_insert(self.entries.len());
        match self.entries.get_mut(at) {
            Some(entry) => entry.1 = value,
            None => self.entries.push((key.to_owned(), value)),
        }
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All keys and values, in the file's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// The value of a key, whatever its type.
    #[must_use]
    pub fn find(&self, key: &str) -> Option<&Value> {
        let &at = self.by_key.get(key)?;
        self.entries.get(at).map(|(_, v)| v)
    }

    /// The value of a key, whatever its type, or [`Error::MissingKey`].
    pub fn get(&self, key: &str) -> Result<&Value> {
        required(key, self.find(key))
    }

    /// An integer from 0 to 2^32 - 1, where the key is there.
    pub fn find_u32(&self, key: &str) -> Result<Option<u32>> {
        self.find_with(key, "an integer from 0 to 4294967295", |v| v.as_integer()?.try_into().ok())
    }

    /// An integer from 0 to 2^32 - 1.
    pub fn get_u32(&self, key: &str) -> Result<u32> {
        required(key, self.find_u32(key)?)
    }

    /// An integer from 0 to 2^64 - 1, where the key is there.
    pub fn find_u64(&self, key: &str) -> Result<Option<u64>> {
        self.find_with(key, "an integer from 0 to 18446744073709551615", |v| v.as_integer()?.try_into().ok())
    }

    /// An integer from 0 to 2^64 - 1.
    pub fn get_u64(&self, key: &str) -> Result<u64> {
        required(key, self.find_u64(key)?)
    }

    /// A float, where the key is there; an f64 is rounded.
    pub fn find_f32(&self, key: &str) -> Result<Option<f32>> {
        self.find_with(key, "a float", |v| match *v {
            Value::F32(v) => Some(v),
            Value::F64(v) => Some(v as f32),
            _ => None,
        })
    }

    /// A float; an f64 is rounded.
    pub fn get_f32(&self, key: &str) -> Result<f32> {
        required(key, self.find_f32(key)?)
    }

    /// A boolean, where the key is there.
    pub fn find_bool(&self, key: &str) -> Result<Option<bool>> {
        self.find_with(key, "a bool", |v| match *v {
            Value::Bool(v) => Some(v),
            _ => None,
        })
    }

    /// A boolean.
    pub fn get_bool(&self, key: &str) -> Result<bool> {
        required(key, self.find_bool(key)?)
    }

    /// A string, where the key is there.
    pub fn find_str(&self, key: &str) -> Result<Option<&str>> {
        self.find_with(key, "a string", |v| match v {
            Value::String(v) => Some(v.as_str()),
            _ => None,
        })
    }

    /// A string.
    pub fn get_str(&self, key: &str) -> Result<&str> {
        required(key, self.find_str(key)?)
    }

    /// An array of any type, where the key is there.
    pub fn find_array(&self, key: &str) -> Result<Option<&Array>> {
        self.find_with(key, "an array", |v| match v {
            Value::Array(v) => Some(v),
            _ => None,
        })
    }

    /// An array of any type.
    pub fn get_array(&self, key: &str) -> Result<&Array> {
        required(key, self.find_array(key)?)
    }

    /// An array of strings, where the key is there.
    pub fn find_strings(&self, key: &str) -> Result<Option<&Strings>> {
        self.find_with(key, "an array of strings", |v| match v {
            Value::Array(Array::String(v)) => Some(v),
            _ => None,
        })
    }

    /// An array of strings.
    pub fn get_strings(&self, key: &str) -> Result<&Strings> {
        required(key, self.find_strings(key)?)
    }

    /// An array of floats, where the key is there; f64 are rounded.
    pub fn find_f32s(&self, key: &str) -> Result<Option<Cow<'_, [f32]>>> {
        self.find_with(key, "an array of floats", |v| match v {
            Value::Array(Array::F32(v)) => Some(Cow::Borrowed(v.as_slice())),
            Value::Array(Array::F64(v)) => Some(v.iter().map(|&x| x as f32).collect()),
            _ => None,
        })
    }

    /// An array of floats; f64 are rounded.
    pub fn get_f32s(&self, key: &str) -> Result<Cow<'_, [f32]>> {
        required(key, self.find_f32s(key)?)
    }

    /// An array of integers from 0 to 2^32 - 1, where the key is there.
    pub fn find_u32s(&self, key: &str) -> Result<Option<Vec<u32>>> {
        self.find_with(key, "an array of integers from 0 to 4294967295", |v| match v {
            Value::Array(v) => v.to_integers()?.into_iter().map(|x| x.try_into().ok()).collect(),
            _ => None,
        })
    }

    /// An array of integers from 0 to 2^32 - 1.
    pub fn get_u32s(&self, key: &str) -> Result<Vec<u32>> {
        required(key, self.find_u32s(key)?)
    }

    fn find_with<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.find(key) else { return Ok(None) };
        match read(value) {
            Some(v) => Ok(Some(v)),
            None => Err(Error::WrongType { key: key.to_owned(), expected, found: value.describe() }),
        }
    }
}

fn required<T>(key: &str, value: Option<T>) -> Result<T> {
    value.ok_or_else(|| Error::MissingKey { key: key.to_owned() })
}
