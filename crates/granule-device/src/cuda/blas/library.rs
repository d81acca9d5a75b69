//! Finding cuBLAS without a panic. Its functions are looked up here, as the driver's are: cudarc's bindings of them panic where
//! the library is missing, look for the version of their own toolkit first whatever the driver is, and answer an enum.

use std::ffi::{c_int, c_uint, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;

use cudarc::driver::sys::CUstream;

use crate::Error;
use crate::cuda::library::{path_of, said, what_is_wrong};

/// The oldest that is looked for.
const OLDEST: c_int = 12;

macro_rules! functions {
    ($(fn $name:ident($($argument:ident: $kind:ty),*);)*) => {
        /// The library's functions. Their answer, an enum in its header, is read as the number that it is.
        #[derive(Debug)]
        #[expect(non_snake_case, reason = "the library's names, so that they are found by searching")]
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($kind),*) -> c_uint,)*
        }

        impl Functions {
            /// Looks all of them up; answers the first that is missing.
            fn find(library: &libloading::Library) -> Result<Functions, &'static str> {
                Ok(Functions {
                    // SAFETY: the library is NVIDIA's or stands for it, and these are cublas_api.h's signatures.
                    $($name: *unsafe { library.get(stringify!($name).as_bytes()) }.map_err(|_| stringify!($name))?,)*
                })
            }
        }
    };
}

functions! {
    fn cublasCreate_v2(handle: *mut *mut c_void);
    fn cublasDestroy_v2(handle: *mut c_void);
    fn cublasSetStream_v2(handle: *mut c_void, stream: CUstream);
    fn cublasSetWorkspace_v2(handle: *mut c_void, workspace: *mut c_void, len: usize);
    fn cublasGemmEx(
        handle: *mut c_void, on_a: c_int, on_b: c_int, m: c_int, n: c_int, k: c_int, alpha: *const c_void,
        a: *const c_void, a_type: c_int, a_stride: c_int, b: *const c_void, b_type: c_int, b_stride: c_int,
        beta: *const c_void, c: *mut c_void, c_type: c_int, c_stride: c_int, sums: c_int, algorithm: c_int
    );
}

/// The functions, of a library that is loaded for the rest of the process. `driver` is the driver's version, 12040 for CUDA 12.4;
/// a search that failed says the same ever after.
pub(super) fn functions(driver: c_int) -> Result<&'static Functions, Error> {
    static FOUND: OnceLock<Result<Functions, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| find(&names(driver / 1000)));
    found.as_ref().map_err(|reason| Error::NoCublas { reason: reason.clone() })
}

/// What is looked for, for a driver of this major version of CUDA: a library that is newer than the driver cannot begin. Last what
/// may be of any version.
fn names(major: c_int) -> Vec<String> {
    use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};

    let versions = (OLDEST..=major.max(OLDEST)).rev();
    if cfg!(windows) {
        return versions.map(|version| format!("cublas64_{version}.dll")).collect();
    }
    let plain = format!("{DLL_PREFIX}cublas{DLL_SUFFIX}");
    versions.map(|version| format!("{plain}.{version}")).chain([plain.clone()]).collect()
}

/// Opens the first of `names` that can be opened and has all functions; the error is a reason. One that is there and broken says more
/// than one that is not.
fn find(names: &[String]) -> Result<Functions, String> {
    let mut broken = None;
    for name in names {
        // SAFETY: this runs the initializers of what is named like NVIDIA's library in the system's library path.
        match unsafe { libloading::Library::new(name) } {
            Ok(library) => {
                match Functions::find(&library) {
                    Ok(functions) => {
                        // Never unloaded: the functions stay.
                        std::mem::forget(library);
                        return Ok(functions);
                    }
                    Err(symbol) => {
                        let path = path_of(name);
                        let lacks = || format!("{} has no {symbol}, so it is not cuBLAS", path.display());
                        broken.get_or_insert_with(lacks);
                    }
                }
            }
            Err(error) => {
                let broke = what_is_wrong(name, &said(&error));
                let says =
                    |(path, reason): (PathBuf, String)| format!("{} does not load: {reason}", path.display());
                broken = broken.or_else(|| broke.map(says));
            }
        }
    }
    Err(broken.unwrap_or_else(|| {
        let first = names.first().map_or("the library", String::as_str);
        format!(
            "{first} is in no folder of the library path; install it (it is part of the CUDA toolkit) and name its folder in \
             LD_LIBRARY_PATH, or do without"
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_drivers_own_version_comes_first() {
        assert_eq!(names(12), ["libcublas.so.12", "libcublas.so"]);
        assert_eq!(names(13), ["libcublas.so.13", "libcublas.so.12", "libcublas.so"]);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_missing_or_broken_is_said() {
        let said = find(&["libgranule_no_such.so.12".to_owned()]).unwrap_err();
        assert!(said.starts_with("libgranule_no_such.so.12 is in no folder of the library path"), "{said}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libcublas.so.12");
        std::fs::write(&file, "no library ".repeat(100)).unwrap();
        let said = find(&[file.display().to_string()]).unwrap_err();
        assert!(said.starts_with(&format!("{} does not load: ", file.display())), "{said}");
        // A library that every process has, and no cuBLAS.
        let said = find(&["libc.so.6".to_owned()]).unwrap_err();
        assert!(said.contains("has no cublasCreate_v2, so it is not cuBLAS"), "{said}");
    }
}
