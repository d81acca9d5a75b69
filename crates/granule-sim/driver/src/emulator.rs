//! Emulated kernels: shared libraries with the C interface of `emulator/include/granule_emulator.h`.

use std::ffi::{CStr, CString, c_int, c_void};

use granule_sim::emulator_abi::{ABI, Find, Hooks, Kernel as RawKernel, Launch, Outcome, Run, Where};

struct Library {
    find: Find,
    run: Run,
    checked: bool,
}

/// The libraries that `GRANULE_SIM_KERNELS` names.
#[derive(Default)]
pub(crate) struct Kernels(Vec<Library>);

/// One emulated kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    library: usize,
    raw: usize,
    sizes: &'static [u32],
}

impl Kernel {
    /// Bytes of each parameter.
    pub(crate) fn parameter_sizes(&self) -> &'static [u32] {
        self.sizes
    }
}

/// The size of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: u32,
}

/// One access to global memory by a thread of a checked kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) at: u64,
    pub(crate) len: u64,
    pub(crate) write: bool,
    pub(crate) atomic: bool,
    pub(crate) block: [u32; 3],
    pub(crate) thread: [u32; 3],
}

/// How a launch ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Fine,
    IllegalAddress,
    BarrierDivergence,
    SharedRace,
    UninitializedShared,
    Refused,
    Trap,
    BadLaunch,
}

impl Kernels {
    /// Opens the libraries of a list of paths, separated by colons.
    pub(crate) fn load(paths: &str) -> Result<Kernels, String> {
        paths.split(':').filter(|p| !p.is_empty()).map(Library::open).collect::<Result<_, _>>().map(Kernels)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether some library shows every access.
    pub(crate) fn checked(&self) -> bool {
        self.0.iter().any(|l| l.checked)
    }

    /// Whether every access of this kernel is shown.
    pub(crate) fn shows_accesses(&self, kernel: &Kernel) -> bool {
        self.0[kernel.library].checked
    }

    pub(crate) fn find(&self, name: &str) -> Option<Kernel> {
        let text = CString::new(name).ok()?;
        self.0.iter().enumerate().find_map(|(library, l)| {
            // SAFETY: a zero-terminated name; the answer is null or lives as long as the library, which is never closed.
            let raw = unsafe { (l.find)(text.as_ptr()).as_ref() }?;
            let sizes = match raw.n_params {
                0 => &[][..],
                // SAFETY: the header promises `n_params` entries that live as long as the library.
                n => unsafe { std::slice::from_raw_parts(raw.param_sizes, n as usize) },
            };
            Some(Kernel { library, raw: std::ptr::from_ref(raw) as usize, sizes })
        })
    }

    /// Runs a launch. `watch` sees every access of a checked kernel and answers whether it may happen.
    pub(crate) fn run(
        &self,
        kernel: &Kernel,
        shape: Shape,
        seed: u64,
        parameters: &[Vec<u8>],
        mut watch: &mut dyn FnMut(Access) -> bool,
    ) -> (End, String) {
        // The kernel gets copies: it may write to its parameters.
        let mut copies: Vec<Vec<u64>> = parameters.iter().map(|p| words(p)).collect();
        let mut pointers: Vec<*mut c_void> = copies.iter_mut().map(|p| p.as_mut_ptr().cast()).collect();
        let hooks = Hooks { context: std::ptr::from_mut(&mut watch).cast(), access };
        let launch = Launch {
            grid: shape.grid,
            block: shape.block,
            shared_bytes: shape.shared,
            seed,
            params: pointers.as_mut_ptr(),
            hooks: &hooks,
        };
        let mut result = Outcome::empty();
        // SAFETY: the kernel is one of this library's, there are as many parameters of its sizes as it wants (checked
        // when the function was looked up), and everything lives until the call returns.
        unsafe { (self.0[kernel.library].run)(kernel.raw as *const RawKernel, &launch, &mut result) };
        let end = match result.code {
            0 => End::Fine,
            1 => End::IllegalAddress,
            2 => End::BarrierDivergence,
            3 => End::SharedRace,
            4 => End::UninitializedShared,
            5 => End::Refused,
            6 => End::Trap,
            _ => End::BadLaunch,
        };
        (end, result.message())
    }
}

/// Bytes at an address that every parameter type is aligned to.
fn words(bytes: &[u8]) -> Vec<u64> {
    bytes
        .chunks(8)
        .map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        })
        .collect()
}

unsafe extern "C" fn access(
    context: *mut c_void,
    at: u64,
    size: u32,
    is_write: u32,
    is_atomic: u32,
    place: *const Where,
) -> c_int {
    // SAFETY: `context` is what `run` put into the hooks, alive and lent to nobody else until the launch ends.
    let watch = unsafe { &mut *context.cast::<&mut dyn FnMut(Access) -> bool>() };
    // SAFETY: null or valid during the call, as the header says.
    let (block, thread) = unsafe { place.as_ref() }.map_or(([0; 3], [0; 3]), |w| (w.block, w.thread));
    let access = Access { at, len: size.into(), write: is_write != 0, atomic: is_atomic != 0, block, thread };
    c_int::from(!watch(access))
}

impl Library {
    fn open(path: &str) -> Result<Library, String> {
        let text = CString::new(path).map_err(|_| format!("{path:?} holds a zero byte"))?;
        // SAFETY: a library that the person who runs the test named; its initializers run.
        let handle = unsafe { libc::dlopen(text.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        if handle.is_null() {
            // SAFETY: dlerror answers null or a zero-terminated text.
            let why = unsafe {
                let text = libc::dlerror();
                if text.is_null() {
                    "unknown".into()
                } else {
                    CStr::from_ptr(text).to_string_lossy().into_owned()
                }
            };
            return Err(format!("cannot load the emulated kernels: {why}"));
        }
        let symbol = |name: &CStr| {
            // SAFETY: an open library and a zero-terminated name.
            let at = unsafe { libc::dlsym(handle, name.as_ptr()) };
            let missing =
                || format!("{path} is no library of emulated kernels: it has no {}", name.to_string_lossy());
            if at.is_null() { Err(missing()) } else { Ok(at) }
        };
        // SAFETY: the header gives these symbols these types; the version is asked before anything else is called.
        unsafe {
            let abi: unsafe extern "C" fn() -> u32 = std::mem::transmute(symbol(c"granule_emu_abi")?);
            let version = abi();
            if version != ABI {
                return Err(format!("{path} speaks version {version} of the interface, not {ABI}"));
            }
            let checked: unsafe extern "C" fn() -> u32 = std::mem::transmute(symbol(c"granule_emu_checked")?);
            Ok(Library {
                find: std::mem::transmute::<*mut c_void, Find>(symbol(c"granule_emu_find")?),
                run: std::mem::transmute::<*mut c_void, Run>(symbol(c"granule_emu_run")?),
                checked: checked() == 1,
            })
        }
    }
}
