//! `KvType`: the types that keys and values are stored in.

use std::fmt;
use std::str::FromStr;

use granule_quant::DType;

use crate::Error;

/// The type of the keys, or of the values, of a cache; chosen for each of the two on its own.
///
/// ```
/// use granule_kv::KvType;
/// assert_eq!("q8_0".parse::<KvType>()?, KvType::Q8_0);
/// assert_eq!(KvType::F16.to_string(), "f16");
/// # Ok::<(), granule_kv::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KvType {
    /// 4 bytes an element.
    F32,
    /// 2 bytes an element.
    #[default]
    F16,
    /// 2 bytes an element.
    BF16,
    /// 34 bytes for 32 elements; the head dim has to be a multiple of 32.
    Q8_0,
    /// 18 bytes for 32 elements; the head dim has to be a multiple of 32.
    Q4_0,
}

impl KvType {
    /// Every type, widest first.
    pub const ALL: &[KvType] = &[KvType::F32, KvType::F16, KvType::BF16, KvType::Q8_0, KvType::Q4_0];

    /// The same type among all that numbers can have.
    pub fn dtype(self) -> DType {
        match self {
            KvType::F32 => DType::F32,
            KvType::F16 => DType::F16,
            KvType::BF16 => DType::BF16,
            KvType::Q8_0 => DType::Q8_0,
            KvType::Q4_0 => DType::Q4_0,
        }
    }

    /// Its name, in the field's words: "q8_0".
    pub fn name(self) -> &'static str {
        self.dtype().name()
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for KvType {
    type Err = Error;

    fn from_str(name: &str) -> Result<KvType, Error> {
        let lower = name.trim().to_ascii_lowercase();
        let known = KvType::ALL.iter().copied().find(|kv_type| kv_type.name() == lower);
        known.ok_or_else(|| Error::UnknownType { name: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways() {
        for &kv_type in KvType::ALL {
            assert_eq!(kv_type.to_string().parse::<KvType>().unwrap(), kv_type);
        }
        assert_eq!(" F16 ".parse::<KvType>().unwrap(), KvType::F16);
        assert!(matches!("q4_1".parse::<KvType>(), Err(Error::UnknownType { .. })));
    }
}
