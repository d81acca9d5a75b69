//! Finding NCCL without a panic, as the driver and cuBLAS are found: its functions are looked up here when a group is first asked for.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys::CUstream;

use crate::Error;
use crate::cuda::library::{path_of, said, what_is_wrong};

/// The first version whose communicators do not block; their configuration has the layout of that version.
pub(super) const OLDEST: c_int = 2_14_00;

/// `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct UniqueId(pub(super) [c_char; super::NcclId::BYTES]);

/// `ncclConfig_t` of 2.14: newer libraries read the size and the version, and take their defaults for the rest.
#[repr(C)]
pub(super) struct Config {
    pub(super) size: usize,
    pub(super) magic: c_uint,
    pub(super) version: c_uint,
    pub(super) blocking: c_int,
}

impl Config {
    /// A communicator whose calls return at once.
    pub(super) const NON_BLOCKING: Config = Config {
        size: size_of::<Config>(),
        magic: 0xcafe_beef,
        version: OLDEST.cast_unsigned(),
        blocking: 0,
    };
}

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
                    // SAFETY: the library is NVIDIA's or stands for it, and these are nccl.h's signatures.
                    $($name: *unsafe { library.get(stringify!($name).as_bytes()) }.map_err(|_| stringify!($name))?,)*
                })
            }
        }
    };
}

functions! {
    fn ncclGetVersion(version: *mut c_int);
    fn ncclGetUniqueId(id: *mut UniqueId);
    fn ncclCommInitRankConfig(comm: *mut *mut c_void, ranks: c_int, id: UniqueId, rank: c_int, config: *const Config);
    fn ncclCommGetAsyncError(comm: *mut c_void, state: *mut c_uint);
    fn ncclCommAbort(comm: *mut c_void);
    fn ncclGroupStart();
    fn ncclGroupEnd();
    fn ncclSend(from: *const c_void, count: usize, kind: c_int, peer: c_int, comm: *mut c_void, stream: CUstream);
    fn ncclRecv(to: *mut c_void, count: usize, kind: c_int, peer: c_int, comm: *mut c_void, stream: CUstream);
    fn ncclAllGather(
        from: *const c_void, to: *mut c_void, count: usize, kind: c_int, comm: *mut c_void, stream: CUstream
    );
    fn ncclBroadcast(
        from: *const c_void, to: *mut c_void, count: usize, kind: c_int, root: c_int, comm: *mut c_void, stream: CUstream
    );
}

/// The functions, of a library that is loaded for the rest of the process; a search that failed says the same ever after.
pub(super) fn functions() -> Result<&'static Functions, Error> {
    static FOUND: OnceLock<Result<Functions, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| find(&["libnccl.so.2", "libnccl.so"]));
    found.as_ref().map_err(|reason| Error::NoNccl { reason: reason.clone() })
}

/// Opens the first of `names` that can be opened and has all functions; the error is a reason. One that is there and broken says more
/// than one that is not.
fn find(names: &[&str]) -> Result<Functions, String> {
    let mut broken = None;
    for name in names {
        // SAFETY: this runs the initializers of what is named like NVIDIA's library in the system's library path.
        match unsafe { libloading::Library::new(*name) } {
            Ok(library) => match Functions::find(&library) {
                Ok(functions) => {
                    // Never unloaded: the functions stay.
                    std::mem::forget(library);
                    return Ok(functions);
                }
                Err(symbol) => {
                    let path = path_of(name);
                    broken.get_or_insert_with(|| {
                        format!("{} has no {symbol}: it is older than 2.14, or not NCCL", path.display())
                    });
                }
            },
            Err(error) => {
                let broke = what_is_wrong(name, &said(&error));
                broken = broken.or_else(|| {
                    broke.map(|(path, reason)| format!("{} does not load: {reason}", path.display()))
                });
            }
        }
    }
    Err(broken.unwrap_or_else(|| {
        let first = names.first().copied().unwrap_or("the library");
        format!(
            "{first} is in no folder of the library path; install NVIDIA's NCCL, 2.14 or newer, and name its folder in \
             LD_LIBRARY_PATH, or do without"
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_missing_or_broken_is_said() {
        let said = find(&["libgranule_no_such.so.2"]).unwrap_err();
        assert!(said.starts_with("libgranule_no_such.so.2 is in no folder of the library path"), "{said}");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("libnccl.so.2");
        std::fs::write(&file, "no library ".repeat(100)).unwrap();
        let said = find(&[file.to_str().unwrap()]).unwrap_err();
        assert!(said.starts_with(&format!("{} does not load: ", file.display())), "{said}");
        // A library that every process has, and no NCCL.
        let said = find(&["libc.so.6"]).unwrap_err();
        assert!(said.contains("has no ncclGetVersion: it is older than 2.14, or not NCCL"), "{said}");
    }

    #[test]
    fn the_configuration_is_that_of_the_header() {
        // size_t, two unsigned, one int, and what the alignment of size_t adds.
        assert_eq!((size_of::<Config>(), Config::NON_BLOCKING.version), (24, 21400));
    }
}
