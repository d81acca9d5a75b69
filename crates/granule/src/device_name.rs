//! What a device is called on the command line: `host`, `cuda:0`, `cuda:1`, …

use std::fmt;
use std::str::FromStr;

use granule_device::{Device, Error};

/// The name of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceName {
    Host,
    /// A GPU, by the number that the driver gives it.
    Cuda(usize),
}

impl DeviceName {
    /// Opens it.
    #[cfg(feature = "cuda")]
    pub(crate) fn open(self) -> Result<Device, Error> {
        match self {
            Self::Host => Device::host(),
            Self::Cuda(ordinal) => Device::cuda(ordinal),
        }
    }

    /// Opens it; a GPU is refused when it is named.
    #[cfg(not(feature = "cuda"))]
    pub(crate) fn open(self) -> Result<Device, Error> {
        Device::host()
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let ordinal = match name {
            "host" | "cpu" => return Ok(Self::Host),
            "cuda" => Some(0),
            _ => name
                .strip_prefix("cuda:")
                .filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|n| n.parse().ok()),
        };
        match ordinal {
            Some(_) if cfg!(not(feature = "cuda")) => {
                Err("this `granule` was built without the feature `cuda`".to_owned())
            }
            Some(ordinal) => Ok(Self::Cuda(ordinal)),
            None => Err("no device is called that: host, cuda:0, cuda:1, …".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for device in [DeviceName::Host, DeviceName::Cuda(0), DeviceName::Cuda(12)] {
            let read = device.to_string().parse();
            assert!(read == Ok(device) || (device != DeviceName::Host && cfg!(not(feature = "cuda"))));
        }
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:+1", "cuda:0x1", "cuda:1,cuda:2", "HOST"] {
            assert!(wrong.parse::<DeviceName>().is_err(), "{wrong}");
        }
    }
}
