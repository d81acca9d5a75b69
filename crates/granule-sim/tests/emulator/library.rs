//! A library of emulated kernels, built from `emulator/tests/*.cu` and called through its C interface.

use std::ffi::{CStr, CString, c_void};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::OnceLock;

pub(crate) use granule_sim::emulator_abi::Where;
use granule_sim::emulator_abi::{Find, Hooks, Kernel, Launch, Outcome, Run};
use granule_sim::emulator_build::{self, Mode};
use libloading::os::unix::{Library as Loaded, RTLD_LOCAL, RTLD_NOW};

/// One access that the hook was asked about.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    pub(crate) address: u64,
    pub(crate) size: u32,
    pub(crate) write: bool,
    pub(crate) atomic: bool,
    pub(crate) at: Where,
}

/// What a launch ended with when it did not end well.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: i32,
    pub(crate) message: String,
}

/// A launch's shape. One block of one warp unless said otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared: u32,
    pub(crate) seed: u64,
}

impl Shape {
    pub(crate) fn new(grid: u32, block: u32) -> Self {
        Self { grid: [grid, 1, 1], block: [block, 1, 1], shared: 0, seed: 0 }
    }

    pub(crate) fn shared(self, shared: u32) -> Self {
        Self { shared, ..self }
    }

    pub(crate) fn seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }
}

/// One parameter's bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Param {
    bytes: [u8; 8],
    len: usize,
}

impl From<u32> for Param {
    fn from(value: u32) -> Self {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&value.to_ne_bytes());
        Self { bytes, len: 4 }
    }
}

impl From<u64> for Param {
    fn from(value: u64) -> Self {
        Self { bytes: value.to_ne_bytes(), len: 8 }
    }
}

impl<T> From<&[T]> for Param {
    fn from(values: &[T]) -> Self {
        Self::from(values.as_ptr() as u64)
    }
}

impl<T> From<&mut [T]> for Param {
    fn from(values: &mut [T]) -> Self {
        Self::from(values.as_mut_ptr() as u64)
    }
}

/// A loaded library.
pub(crate) struct Library {
    loaded: Loaded,
}

/// The kernels of `emulator/tests`, built and loaded once for each process and mode.
pub(crate) fn library(mode: Mode) -> &'static Library {
    static LIBRARIES: [OnceLock<Library>; 3] = [const { OnceLock::new() }; 3];
    LIBRARIES[mode as usize].get_or_init(|| Library::open(&path(mode)))
}

/// The file of [`library`], built where it is not up to date.
pub(crate) fn path(mode: Mode) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator");
    // For tensor.cuh and intrinsics.cuh, whose twins are tested here.
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels/include");
    emulator_build::build(&sources(), &[kernels], mode, &folder).unwrap_or_else(|error| panic!("{error}"))
}

fn sources() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("emulator/tests");
    ["correct.cu", "numbers.cu", "planted.cu", "programs.cu", "tensor.cu", "widths.cu"]
        .map(|name| folder.join(name))
        .to_vec()
}

impl Library {
    pub(crate) fn open(path: &Path) -> Self {
        // SAFETY: the library's constructors only register kernels and read its own symbol table.
        Self { loaded: unsafe { Loaded::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.unwrap() }
    }

    fn function<T: Copy>(&self, name: &str) -> T {
        // SAFETY: every caller asks for the type that include/granule_emulator.h declares.
        unsafe { *self.loaded.get::<T>(name.as_bytes()).unwrap() }
    }

    pub(crate) fn abi(&self) -> u32 {
        self.function::<extern "C" fn() -> u32>("granule_emu_abi")()
    }

    pub(crate) fn checked(&self) -> bool {
        self.function::<extern "C" fn() -> u32>("granule_emu_checked")() != 0
    }

    fn find(&self, name: &str) -> Option<&'static Kernel> {
        let name = CString::new(name).unwrap();
        let find = self.function::<Find>("granule_emu_find");
        // SAFETY: the name ends with a zero. The answer is null, or a kernel that lives as long as the library, which is never closed (-z nodelete).
        unsafe { find(name.as_ptr()).as_ref() }
    }

    /// Every kernel's name.
    pub(crate) fn names(&self) -> Vec<String> {
        let at = self.function::<extern "C" fn(u32) -> *const Kernel>("granule_emu_kernel_at");
        // SAFETY: as in `find`.
        let kernels = (0..).map_while(|index| unsafe { at(index).as_ref() });
        // SAFETY: names end with a zero.
        kernels.map(|kernel| unsafe { CStr::from_ptr(kernel.name) }.to_str().unwrap().to_owned()).collect()
    }

    pub(crate) fn param_sizes(&self, name: &str) -> Option<Vec<u32>> {
        let kernel = self.find(name)?;
        // SAFETY: param_sizes has n_params entries.
        Some(unsafe { std::slice::from_raw_parts(kernel.param_sizes, kernel.n_params as usize) }.to_vec())
    }

    pub(crate) fn run(&self, name: &str, shape: Shape, params: &[Param]) -> Result<(), Failure> {
        self.launch(name, shape, params, ptr::null())
    }

    /// Runs with a hook, which answers whether the access is allowed.
    pub(crate) fn run_watched<F: FnMut(Access) -> bool>(
        &self,
        name: &str,
        shape: Shape,
        params: &[Param],
        mut allow: F,
    ) -> Result<(), Failure> {
        extern "C" fn access<F: FnMut(Access) -> bool>(
            context: *mut c_void,
            address: u64,
            size: u32,
            write: u32,
            atomic: u32,
            at: *const Where,
        ) -> i32 {
            // SAFETY: the context is `allow` below, lent to this launch alone; `at` is valid during the call.
            let (allow, at) = unsafe { (&mut *context.cast::<F>(), *at) };
            i32::from(!allow(Access { address, size, write: write != 0, atomic: atomic != 0, at }))
        }
        let hooks = Hooks { context: (&raw mut allow).cast(), access: access::<F> };
        self.launch(name, shape, params, &raw const hooks)
    }

    fn launch(&self, name: &str, shape: Shape, params: &[Param], hooks: *const Hooks) -> Result<(), Failure> {
        let kernel = self.find(name).unwrap_or_else(|| panic!("no kernel {name}"));
        let sizes: Vec<u32> = params.iter().map(|param| param.len as u32).collect();
        assert_eq!(self.param_sizes(name).unwrap(), sizes, "{name} takes other parameters");
        let mut values: Vec<[u8; 8]> = params.iter().map(|param| param.bytes).collect();
        // A parameter's value must be aligned for its type.
        let mut aligned: Vec<u64> = values.drain(..).map(u64::from_ne_bytes).collect();
        let mut pointers: Vec<*mut c_void> =
            aligned.iter_mut().map(|value| (&raw mut *value).cast()).collect();
        let launch = Launch {
            grid: shape.grid,
            block: shape.block,
            shared_bytes: shape.shared,
            seed: shape.seed,
            params: pointers.as_mut_ptr(),
            hooks,
        };
        let mut result = Outcome::empty();
        let run = self.function::<Run>("granule_emu_run");
        // SAFETY: the parameters are as many and as large as the kernel says, and live until the launch ends.
        let code = unsafe { run(kernel, &raw const launch, &raw mut result) };
        assert_eq!(code, result.code);
        let message = result.message();
        if result.code == 0 { Ok(()) } else { Err(Failure { code: result.code, message }) }
    }
}
