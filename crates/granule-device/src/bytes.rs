//! `Bytes`: a size or a length in memory, never a bare number.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// A number of bytes: the unit of every size in Granule's interfaces.
///
/// Prints for people (`"5.0 MiB"`) and reads what people type (`"512MiB"`, `"4G"`, `"1.5 GiB"`, `"1048576"`).
/// `K`, `M`, `G`, `T` and `KiB`, `MiB`, `GiB`, `TiB` are powers of 1024; `KB`, `MB`, `GB`, `TB` powers of 1000.
///
/// ```
/// use granule_device::Bytes;
/// let limit: Bytes = "1.5GiB".parse()?;
/// assert_eq!(limit, Bytes::mib(1536));
/// assert_eq!(limit.to_string(), "1.5 GiB");
/// assert_eq!(limit.checked_sub(Bytes::gib(2)), None);
/// # Ok::<(), granule_device::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(transparent))]
pub struct Bytes(u64);

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

impl Bytes {
    /// No bytes.
    pub const ZERO: Bytes = Bytes(0);
    /// The largest count this type can hold.
    pub const MAX: Bytes = Bytes(u64::MAX);

    /// So many bytes.
    pub const fn new(bytes: u64) -> Bytes {
        Bytes(bytes)
    }

    /// The size of something that lies in this process's memory.
    pub const fn from_usize(bytes: usize) -> Bytes {
        Bytes(bytes as u64)
    }

    /// `n` KiB; saturates at [`Bytes::MAX`].
    pub const fn kib(n: u64) -> Bytes {
        Bytes(n.saturating_mul(KIB))
    }

    /// `n` MiB; saturates at [`Bytes::MAX`].
    pub const fn mib(n: u64) -> Bytes {
        Bytes(n.saturating_mul(MIB))
    }

    /// `n` GiB; saturates at [`Bytes::MAX`].
    pub const fn gib(n: u64) -> Bytes {
        Bytes(n.saturating_mul(GIB))
    }

    /// The count as a number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The count as a length that this process can address; `None` where it cannot.
    pub fn to_usize(self) -> Option<usize> {
        usize::try_from(self.0).ok()
    }

    /// True for no bytes.
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }

    /// The sum, or `None` past [`Bytes::MAX`].
    pub const fn checked_add(self, other: Bytes) -> Option<Bytes> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Bytes(sum)),
            None => None,
        }
    }

    /// The difference, or `None` below zero.
    pub const fn checked_sub(self, other: Bytes) -> Option<Bytes> {
        match self.0.checked_sub(other.0) {
            Some(rest) => Some(Bytes(rest)),
            None => None,
        }
    }

    /// `count` times as many, or `None` past [`Bytes::MAX`].
    pub const fn checked_mul(self, count: u64) -> Option<Bytes> {
        match self.0.checked_mul(count) {
            Some(product) => Some(Bytes(product)),
            None => None,
        }
    }

    /// The sum, held at [`Bytes::MAX`].
    pub const fn saturating_add(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_add(other.0))
    }

    /// The difference, held at zero.
    pub const fn saturating_sub(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_sub(other.0))
    }

    /// `count` times as many, held at [`Bytes::MAX`].
    pub const fn saturating_mul(self, count: u64) -> Bytes {
        Bytes(self.0.saturating_mul(count))
    }

    /// The smallest multiple of `unit` that is not below this, or `None` past [`Bytes::MAX`] or where `unit` is zero.
    pub const fn checked_next_multiple_of(self, unit: Bytes) -> Option<Bytes> {
        match self.0.checked_next_multiple_of(unit.0) {
            Some(up) => Some(Bytes(up)),
            None => None,
        }
    }

    /// How many pieces of `unit` it takes to hold this many bytes; `None` where `unit` is zero or the count is beyond
    /// a `usize`.
    pub fn pieces_of(self, unit: Bytes) -> Option<usize> {
        if unit.is_zero() {
            return None;
        }
        usize::try_from(self.0.div_ceil(unit.0)).ok()
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            0..KIB => return f.pad(&format!("{} B", self.0)),
            KIB..MIB => (KIB, "KiB"),
            MIB..GIB => (MIB, "MiB"),
            GIB..TIB => (GIB, "GiB"),
            _ => (TIB, "TiB"),
        };
        let tenths = u128::from(self.0) * 10 / u128::from(unit);
        f.pad(&format!("{}.{} {name}", tenths / 10, tenths % 10))
    }
}

impl FromStr for Bytes {
    type Err = Error;

    fn from_str(text: &str) -> Result<Bytes, Error> {
        parse(text.trim()).map(Bytes).ok_or_else(|| Error::ParseBytes { text: text.to_owned() })
    }
}

/// Digits, optionally a decimal fraction, optionally a unit. Fractions of a byte are dropped.
fn parse(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => KIB,
        "m" | "mib" => MIB,
        "g" | "gib" => GIB,
        "t" | "tib" => TIB,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if whole.is_empty() || fraction.is_empty() || fraction.len() > 18 {
        return None;
    }
    let whole = u128::from(whole.parse::<u64>().ok()?) * u128::from(unit);
    let scale = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let part = u128::from(fraction.parse::<u64>().ok()?) * u128::from(unit) / scale;
    u64::try_from(whole + part).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_for_people() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (5 << 20, "5.0 MiB"),
            (1536 << 20, "1.5 GiB"),
            (3 << 40, "3.0 TiB"),
        ] {
            assert_eq!(Bytes::new(bytes).to_string(), text);
        }
        assert_eq!(format!("{:>10}", Bytes::kib(1)), "   1.0 KiB");
    }

    #[test]
    fn reads_what_people_type() {
        for (text, bytes) in [
            ("1048576", 1 << 20),
            ("512MiB", 512 << 20),
            ("512 mib", 512 << 20),
            ("4G", 4 << 30),
            ("4GB", 4_000_000_000),
            ("0.5k", 512),
            ("1.5 GiB", 1536 << 20),
            ("7b", 7),
        ] {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes::new(bytes), "{text}");
        }
        for text in ["", "G", "-1", "1.2.3", "1.", ".5", "4 X", "99999999999999999999", "17179869184G", "1e3"]
        {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn pieces_round_up() {
        assert_eq!(Bytes::new(0).pieces_of(Bytes::new(4)), Some(0));
        assert_eq!(Bytes::new(9).pieces_of(Bytes::new(4)), Some(3));
        assert_eq!(Bytes::new(9).pieces_of(Bytes::ZERO), None);
    }
}
