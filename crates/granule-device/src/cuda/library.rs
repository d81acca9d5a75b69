//! Finding the driver's library without a panic: is it there, does it load, is it a driver, is it new enough.
//!
//! cudarc panics at the first call where the library or a symbol is missing. So everything that is called is looked up here
//! first, in the library that cudarc uses: the one it is linked to, or the same names in the same order, which the system
//! answers with the same library.

#[cfg(unix)]
use std::ffi::CStr;
use std::ffi::{c_int, c_uint};
use std::path::PathBuf;
use std::sync::OnceLock;

use cudarc::driver::sys;

use super::calls::{CUDARC_CALLS, Functions};
use super::errors;
use crate::Error;

/// The oldest driver that loads the PTX that Granule ships: CUDA 12.4 (Linux driver 550).
const MINIMUM: c_int = 12040;

/// The names that cudarc tries, in its order, where it loads the library: those of the toolkit that its bindings are of
/// come before those of other ones.
fn names() -> Vec<String> {
    use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};

    let (major, minor) = (sys::CUDA_VERSION / 1000, sys::CUDA_VERSION % 1000 / 10);
    let bits = usize::BITS;
    let mut names = Vec::new();
    for library in ["cuda", "nvcuda"] {
        let plain = format!("{DLL_PREFIX}{library}{DLL_SUFFIX}");
        names.push(plain.clone());
        let toolkits = [
            String::new(),
            format!("_{major}"),
            format!("_{major}{minor}"),
            format!("_{major}{minor}_0"),
            format!("_{major}0_{minor}"),
            "_10".to_owned(),
            "_11".to_owned(),
            "_12".to_owned(),
            format!("_{major}0_0"),
            "_9".to_owned(),
        ];
        names.extend(toolkits.map(|toolkit| format!("{DLL_PREFIX}{library}{bits}{toolkit}{DLL_SUFFIX}")));
        names.extend([major, 12, 11, 10, 9, 1].map(|version| format!("{plain}.{version}")));
    }
    names
}

/// The file of the driver's library where the program is linked to it (cudarc's feature `dynamic-linking`): the one whose
/// functions this code would call.
#[cfg(unix)]
fn linked() -> Option<String> {
    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: a zero-terminated name; an address; a local, whose bytes are all a value of it.
    let info = unsafe {
        let function = libc::dlsym(libc::RTLD_DEFAULT, c"cuInit".as_ptr());
        if function.is_null() || libc::dladdr(function, info.as_mut_ptr()) == 0 {
            return None;
        }
        info.assume_init()
    };
    if info.dli_fname.is_null() || cudarc_loads() {
        return None;
    }
    // SAFETY: the loader's name of what holds this function, which stays as long as that does.
    unsafe { CStr::from_ptr(info.dli_fname) }.to_str().ok().map(str::to_owned)
}

#[cfg(not(unix))]
fn linked() -> Option<String> {
    None
}

/// Whether cudarc has a library to load, rather than being linked to one. Which of the two it does, its features say, and
/// any crate of the tree may have set them.
#[cfg(unix)]
fn cudarc_loads() -> bool {
    #[allow(unused_imports, reason = "it has the function below only where it loads the library")]
    use cudarc::driver::sys::*;

    // SAFETY: cudarc's own opens and closes the library, which is loaded already where this is asked.
    unsafe { is_culib_present() }
}

/// What `cudarc_loads` finds where cudarc has no function of this name.
#[cfg(unix)]
#[allow(dead_code, reason = "hidden by cudarc's where there is one")]
unsafe fn is_culib_present() -> bool {
    false
}

/// The driver's library, loaded for the rest of the process.
#[derive(Debug)]
pub(super) struct Library {
    library: libloading::Library,
    pub(super) functions: Functions,
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
    let path = path_of(&name);
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
    let lacks = |symbol: &str| broken(format!("it says CUDA {} and lacks {symbol}", words(version)));
    if let Some(symbol) = CUDARC_CALLS.iter().find(|symbol| !has(symbol)) {
        return Err(lacks(symbol));
    }
    let functions = Functions::find(&library).map_err(lacks)?;
    // SAFETY: this is the function's signature; it may be called at any time, by any thread, any number of times.
    let code = unsafe {
        match library.get::<unsafe extern "C" fn(c_uint) -> c_uint>(b"cuInit") {
            Ok(initialize) => initialize(0),
            Err(error) => return Err(broken(error.to_string())),
        }
    };
    match code {
        0 => Ok(Library { library, functions, version }),
        errors::STUB_LIBRARY => Err(broken("it is the toolkit's stub for linking, not a driver".to_owned())),
        code => Err(Failure::Initialization { code }),
    }
}

/// Opens the first library that can be opened. Where none can, one that is there and broken says more than one that is not.
fn open() -> Result<(libloading::Library, String), Failure> {
    let mut broken = None;
    for name in linked().into_iter().chain(names()) {
        // SAFETY: this runs the initializers of what is named like NVIDIA's driver in the system's library path.
        match unsafe { libloading::Library::new(&name) } {
            Ok(library) => return Ok((library, name)),
            Err(error) => broken = broken.or_else(|| what_is_wrong(&name, &said(&error))),
        }
    }
    let broken = broken.map(|(path, reason)| Failure::Broken { path, reason });
    Err(broken.unwrap_or_else(|| Failure::Missing {
        reason: format!(
            "{} is in no folder of the library path; install NVIDIA's driver, or in a container pass the GPU in \
             (with Docker: --gpus all)",
            if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" }
        ),
    }))
}

/// What the system's loader said, without what libloading puts around it.
pub(super) fn said(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

/// Reads the loader's "PATH: REASON". That the library itself is not there is no finding; that one it needs is not, is.
pub(super) fn what_is_wrong(name: &str, message: &str) -> Option<(PathBuf, String)> {
    let (path, reason) = message.split_once(": ")?;
    if path == name && reason.contains("No such file") {
        return None;
    }
    Some((PathBuf::from(path), reason.to_owned()))
}

/// Where the library lies, as far as the system tells; else what it was asked for.
pub(super) fn path_of(name: &str) -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    PathBuf::from(mapped(&maps, name).unwrap_or(name))
}

/// The first file in /proc/self/maps that is some version of a library.
fn mapped<'a>(maps: &'a str, name: &str) -> Option<&'a str> {
    let file = name.rsplit('/').next().unwrap_or(name);
    let library = file.trim_end_matches(|c: char| c == '.' || c.is_ascii_digit());
    maps.lines().filter_map(|line| Some(&line[line.find('/')?..])).find(|path| is_version_of(path, library))
}

/// Whether a path is of `library` itself or of a version of it: "libcuda.so", "libcuda.so.1", "libcuda.so.550.54.15".
fn is_version_of(path: &str, library: &str) -> bool {
    let file = path.rsplit('/').next().unwrap_or(path);
    let is_version = |rest: &str| rest.split('.').skip(1).all(|part| part.parse::<u32>().is_ok());
    file.strip_prefix(library)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('.') && is_version(rest))
}

impl Library {
    /// A function that not every driver has: the simulator's own, and what old ones or new ones lack.
    pub(super) fn extension<F: Copy>(&self, symbol: &str) -> Option<F> {
        // SAFETY: the callers name the simulator's functions, which no driver has, or cuda.h's, with their signatures.
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
        assert_eq!(
            what_is_wrong("libcuda.so", "/opt/libcuda.so: file too short"),
            Some((PathBuf::from("/opt/libcuda.so"), "file too short".to_owned()))
        );
        assert_eq!(words(12040), "12.4");
        assert_eq!(words(13020), "13.2");
    }

    #[test]
    fn only_the_drivers_own_library_is_taken_for_it() {
        let maps = "7f00-7f01 r-xp 00000000 08:01 1 /opt/cuda/lib64/libcudart.so.12.4.127\n\
                    7f02-7f03 rw-p 00000000 00:00 0\n\
                    7f04-7f05 r-xp 00000000 08:01 2 /usr/lib/libcuda_wrapper.so\n\
                    7f06-7f07 r-xp 00000000 08:01 3 /usr/lib/libcuda.so.550.54.15\n";
        for name in ["libcuda.so", "libcuda.so.1", "libcuda.so.12"] {
            assert_eq!(mapped(maps, name), Some("/usr/lib/libcuda.so.550.54.15"), "{name}");
        }
        assert_eq!(mapped(maps, "libcuda64.so"), None);
        assert!(
            !is_version_of("/a/libcuda.so.bak", "libcuda.so") && is_version_of("libcuda.so.1", "libcuda.so")
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn names_are_tried_in_cudarcs_order() {
        let names = names();
        let place = |name: &str| names.iter().position(|other| other == name).unwrap_or(usize::MAX);
        let major = format!("libcuda.so.{}", sys::CUDA_VERSION / 1000);
        let order = ["libcuda.so", "libcuda64.so", &major, "libcuda.so.11", "libcuda.so.1", "libnvcuda.so"];
        assert!(order.map(place).is_sorted(), "{names:?}");
        assert!(place("libcuda.so.12") >= place(&major), "{names:?}");
        assert!(place("libnvcuda.so") < names.len());
        // Only who is linked to one is asked.
        assert!(linked().is_none() || cfg!(feature = "dynamic-linking"));
    }
}
