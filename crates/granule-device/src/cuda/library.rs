//! Finding the driver's library without a panic: is it there, does it load, is it a driver, is it new enough.
//!
//! cudarc panics at the first call where the library or a symbol is missing. So everything this crate calls is looked up
//! here first, in the library that cudarc will open: the same names in the same order, which the system answers with the
//! same library.

use std::ffi::{c_int, c_uint};
use std::path::PathBuf;
use std::sync::OnceLock;

use super::calls::{self, Driver};
use super::errors;
use crate::Error;

/// The oldest driver that loads the PTX that Granule ships: CUDA 12.4 (Linux driver 550).
const MINIMUM: c_int = 12040;

/// As many as cudarc tries, in its order. Those that name a toolkit's version are Windows's, for toolkits before 11.
const NAMES: &[&str] = if cfg!(windows) {
    &["nvcuda.dll", "nvcuda64.dll"]
} else if cfg!(target_os = "macos") {
    &["libcuda.dylib"]
} else {
    &[
        "libcuda.so",
        "libcuda64.so",
        "libcuda.so.12",
        "libcuda.so.11",
        "libcuda.so.10",
        "libcuda.so.9",
        "libcuda.so.1",
    ]
};

/// cuDeviceGetAttribute with a plain number: attributes newer than cudarc's bindings are no values of their enum.
type GetAttribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_uint;

/// The driver's library, loaded for the rest of the process.
#[derive(Debug)]
pub(super) struct Library {
    library: libloading::Library,
    get_attribute: GetAttribute,
    /// As the driver counts: 12040 is CUDA 12.4.
    pub(super) version: c_int,
}

/// A failed search, kept so that every later one says the same.
#[derive(Debug, Clone)]
enum Failure {
    Missing { reason: String },
    Broken { path: PathBuf, reason: String },
    TooOld { found: c_int },
    Initialization { code: u32 },
}

impl From<&Failure> for Error {
    fn from(failure: &Failure) -> Error {
        match failure.clone() {
            Failure::Missing { reason } => Error::NoCudaDriver { reason },
            Failure::Broken { path, reason } => Error::BrokenCudaDriver { path, reason },
            Failure::TooOld { found } => {
                Error::CudaDriverTooOld { found: words(found), needed: words(MINIMUM) }
            }
            Failure::Initialization { code: code @ (errors::NO_DEVICE | errors::INVALID_DEVICE) } => {
                let reason = match errors::error("cuInit", code) {
                    Error::Driver { explanation, .. } => explanation,
                    _ => "no device",
                };
                Error::NoCudaDevice { reason }
            }
            Failure::Initialization { code } => errors::error("cuInit", code),
        }
    }
}

/// The driver's library, ready to be called and initialized.
pub(super) fn library() -> Result<&'static Library, Error> {
    static FOUND: OnceLock<Result<Library, Failure>> = OnceLock::new();
    FOUND.get_or_init(find).as_ref().map_err(Error::from)
}

/// "12.4" for 12040.
pub(super) fn words(version: c_int) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

fn find() -> Result<Library, Failure> {
    let (library, name) = open()?;
    let path = path_of(name);
    let broken = |reason: String| Failure::Broken { path: path.clone(), reason };
    let has = |symbol: &str| {
        // SAFETY: the symbol is only looked up, as an address.
        unsafe { library.get::<*const ()>(symbol.as_bytes()) }.is_ok()
    };
    if let Some(lacks) = ["cuInit", "cuDriverGetVersion"].into_iter().find(|symbol| !has(symbol)) {
        return Err(broken(format!("it has no {lacks}, so it is not NVIDIA's driver library")));
    }
    let mut version = 0;
    // SAFETY: this is the function's signature in every version of cuda.h, and it may be called before cuInit.
    let code = unsafe {
        match library.get::<unsafe extern "C" fn(*mut c_int) -> c_uint>(b"cuDriverGetVersion") {
            Ok(get_version) => get_version(&raw mut version),
            Err(error) => return Err(broken(error.to_string())),
        }
    };
    if code == errors::STUB_LIBRARY {
        return Err(broken("it is the toolkit's stub for linking, not a driver".to_owned()));
    }
    if code != 0 {
        return Err(broken(errors::error("cuDriverGetVersion", code).to_string()));
    }
    if version < MINIMUM {
        return Err(Failure::TooOld { found: version });
    }
    if let Some(lacks) = calls::SYMBOLS.iter().find(|symbol| !has(symbol)) {
        return Err(broken(format!("it says CUDA {} and lacks {lacks}", words(version))));
    }
    // SAFETY: this is the function's signature, but for the attribute, whose type is an enum over int.
    let get_attribute = match unsafe { library.get::<GetAttribute>(b"cuDeviceGetAttribute") } {
        Ok(symbol) => *symbol,
        Err(error) => return Err(broken(error.to_string())),
    };
    // SAFETY: this is the function's signature; it may be called at any time, by any thread, any number of times.
    let code = unsafe {
        match library.get::<unsafe extern "C" fn(c_uint) -> c_uint>(b"cuInit") {
            Ok(initialize) => initialize(0),
            Err(error) => return Err(broken(error.to_string())),
        }
    };
    match code {
        0 => Ok(Library { library, get_attribute, version }),
        errors::STUB_LIBRARY => Err(broken("it is the toolkit's stub for linking, not a driver".to_owned())),
        code => Err(Failure::Initialization { code }),
    }
}

/// Opens the first library that can be opened. Where none can, one that is there and broken says more than one that is not.
fn open() -> Result<(libloading::Library, &'static str), Failure> {
    let mut broken = None;
    for name in NAMES {
        // SAFETY: this runs the initializers of what is named like NVIDIA's driver in the system's library path.
        match unsafe { libloading::Library::new(*name) } {
            Ok(library) => return Ok((library, name)),
            Err(error) => broken = broken.or_else(|| what_is_wrong(name, &said(&error))),
        }
    }
    Err(broken.unwrap_or_else(|| Failure::Missing {
        reason: format!(
            "{} is in no folder of the library path; install NVIDIA's driver, or in a container pass the GPU in \
             (with Docker: --gpus all)",
            if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" }
        ),
    }))
}

/// What the system's loader said, without what libloading puts around it.
fn said(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Reads the loader's "PATH: REASON". That the library itself is not there is no finding; that one it needs is not, is.
fn what_is_wrong(name: &str, message: &str) -> Option<Failure> {
    let (path, reason) = message.split_once(": ")?;
    if path == name && reason.contains("No such file") {
        return None;
    }
    Some(Failure::Broken { path: PathBuf::from(path), reason: reason.to_owned() })
}

/// Where the library lies, as far as the system tells; else what it was asked for.
fn path_of(name: &str) -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let stem = name.split('.').next().unwrap_or(name);
    let named = |path: &&str| path.rsplit('/').next().is_some_and(|file| file.starts_with(stem));
    let path = maps.lines().filter_map(|line| Some(&line[line.find('/')?..])).find(named);
    PathBuf::from(path.unwrap_or(name))
}

impl Library {
    /// A device's attribute; `None` where the driver is too old to know it.
    pub(super) fn attribute(
        &self,
        driver: &Driver,
        attribute: c_int,
        device: c_int,
    ) -> Result<Option<c_int>, Error> {
        const CALL: &str = "cuDeviceGetAttribute";
        driver.gate(CALL)?;
        let mut value = 0;
        // SAFETY: the function writes one int, and takes any numbers.
        match unsafe { (self.get_attribute)(&raw mut value, attribute, device) } {
            errors::INVALID_VALUE => Ok(None),
            code => errors::check(CALL, code).map(|()| Some(value)),
        }
    }

    /// Whether a device has what an attribute of 0 or 1 stands for.
    pub(super) fn has(&self, driver: &Driver, attribute: c_int, device: c_int) -> Result<bool, Error> {
        self.attribute(driver, attribute, device).map(|value| value == Some(1))
    }

    /// A function that is not NVIDIA's: the simulator's own.
    pub(super) fn extension<F: Copy>(&self, symbol: &str) -> Option<F> {
        // SAFETY: the callers name the simulator's functions with their signatures; no driver has such names.
        unsafe { self.library.get::<F>(symbol.as_bytes()) }.ok().map(|symbol| *symbol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loaders_words_are_understood() {
        let missing = "libcuda.so: cannot open shared object file: No such file or directory";
        assert!(what_is_wrong("libcuda.so", missing).is_none());
        assert!(what_is_wrong("libcuda.so", &missing.replace("libcuda", "libneeded")).is_some());
        match what_is_wrong("libcuda.so", "/opt/libcuda.so: file too short") {
            Some(Failure::Broken { path, reason }) => {
                assert_eq!((path, reason.as_str()), (PathBuf::from("/opt/libcuda.so"), "file too short"));
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(words(12040), "12.4");
        assert_eq!(words(13020), "13.2");
    }
}
