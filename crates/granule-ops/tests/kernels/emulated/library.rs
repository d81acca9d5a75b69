//! A library of emulated kernels, called through its C interface (`granule_emulator.h` in granule-sim).

use std::ffi::{CString, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use granule_sim::emulator_abi::{ABI, Find, Hooks, Kernel, Launch, Outcome, Run, Where};
use granule_sim::emulator_build::{self, Mode};
use libloading::Library;

type Number = unsafe extern "C" fn() -> u32;

/// Emulated kernels.
pub(crate) struct Emulated {
    find: Find,
    run: Run,
    _library: Library,
}

/// One parameter of a kernel.
#[derive(Clone, Copy)]
pub(crate) enum Param {
    U64(u64),
}

/// Memory that a kernel may touch in a checked run, and whether it may write it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allowed {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) write: bool,
}

/// What a checked run is allowed, and the first access that was not.
struct Watch<'a> {
    allowed: &'a [Allowed],
    strayed: Option<(u64, u32, bool)>,
}

extern "C" fn watch(
    context: *mut c_void,
    address: u64,
    size: u32,
    write: u32,
    _: u32,
    _: *const Where,
) -> c_int {
    // SAFETY: `Emulated::launch` hands over its own `Watch` and touches it again only after the launch.
    let watch = unsafe { &mut *context.cast::<Watch<'_>>() };
    let inside = |allowed: &Allowed| {
        let end = address.saturating_add(size.into());
        address >= allowed.start && end <= allowed.start + allowed.len && (allowed.write || write == 0)
    };
    let strayed = !watch.allowed.iter().any(inside);
    if strayed {
        watch.strayed = Some((address, size, write != 0));
    }
    c_int::from(strayed)
}

impl Emulated {
    /// Builds what is not up to date and loads it.
    pub(crate) fn build(mode: Mode) -> Emulated {
        let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../kernels");
        let mut sources: Vec<PathBuf> =
            std::fs::read_dir(&kernels).unwrap().map(|entry| entry.unwrap().path()).collect();
        sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
        // What reads weights by itself, for the test of that.
        sources.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/emulated/weights.cu"));
        sources.sort();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulated");
        let path = emulator_build::build(&sources, &[kernels.join("include")], mode, &folder).unwrap();
        // SAFETY: the library is our own and has no code that runs on load beyond its own registration; the types are those
        // of its header.
        unsafe {
            let library = Library::new(path).unwrap();
            let number = |name: &str| library.get::<Number>(name).unwrap()();
            assert_eq!(number("granule_emu_abi"), ABI);
            assert_eq!(number("granule_emu_checked"), u32::from(mode == Mode::Checked));
            let find = *library.get::<Find>("granule_emu_find").unwrap();
            let run = *library.get::<Run>("granule_emu_run").unwrap();
            Emulated { find, run, _library: library }
        }
    }

    /// Runs a kernel to its end. With `allowed`, on a checked library, every access of it has to be inside.
    pub(crate) fn launch(
        &self,
        name: &str,
        grid: [u32; 3],
        seed: u64,
        params: &[Param],
        allowed: Option<&[Allowed]>,
    ) -> Result<(), String> {
        let kernel = self.kernel(name)?;
        // SAFETY: the kernel's description lives as long as the library.
        let sizes = unsafe { std::slice::from_raw_parts(kernel.param_sizes, kernel.n_params as usize) };
        assert_eq!(sizes, vec![8; params.len()], "{name}: every parameter has 8 bytes");
        let values: Vec<u64> = params.iter().map(|Param::U64(value)| *value).collect();
        let pointers: Vec<*const u8> = values.iter().map(|value| ptr::from_ref(value).cast()).collect();
        self.run(name, kernel, (grid, 0), seed, pointers, allowed)
    }

    /// [`Emulated::launch`] of a kernel whose one parameter is a struct, with dynamic shared memory.
    pub(crate) fn launch_struct(
        &self,
        name: &str,
        grid: [u32; 3],
        shared: u32,
        seed: u64,
        param: &[u8],
        allowed: Option<&[Allowed]>,
    ) -> Result<(), String> {
        let kernel = self.kernel(name)?;
        // SAFETY: as above.
        let sizes = unsafe { std::slice::from_raw_parts(kernel.param_sizes, kernel.n_params as usize) };
        assert_eq!(sizes, [param.len() as u32], "{name}: one struct");
        self.run(name, kernel, (grid, shared), seed, vec![param.as_ptr()], allowed)
    }

    fn kernel(&self, name: &str) -> Result<&'static Kernel, String> {
        let c_name = CString::new(name).unwrap();
        // SAFETY: the name ends with a zero; a kernel lives as long as the library, which is kept.
        unsafe { (self.find)(c_name.as_ptr()).as_ref() }.ok_or_else(|| "no such kernel".to_owned())
    }

    /// The parameters are as many and as large as the kernel says.
    fn run(
        &self,
        name: &str,
        kernel: &Kernel,
        (grid, shared_bytes): ([u32; 3], u32),
        seed: u64,
        params: Vec<*const u8>,
        allowed: Option<&[Allowed]>,
    ) -> Result<(), String> {
        let mut pointers: Vec<*mut c_void> = params.into_iter().map(|at| at.cast_mut().cast()).collect();
        let mut watching = Watch { allowed: allowed.unwrap_or_default(), strayed: None };
        let hooks = Hooks { context: ptr::from_mut(&mut watching).cast(), access: watch };
        let launch = Launch {
            grid,
            block: [granule_kernels::THREADS, 1, 1],
            shared_bytes,
            seed,
            params: pointers.as_mut_ptr(),
            hooks: if allowed.is_some() { &hooks } else { ptr::null() },
        };
        let mut outcome = Outcome::empty();
        // SAFETY: parameters are as many and as large as the kernel says; the memory they point to belongs to the caller.
        let code = unsafe { (self.run)(kernel, &launch, &mut outcome) };
        if let Some((address, size, write)) = watching.strayed {
            let what = if write { "writes" } else { "reads" };
            return Err(format!("{name} {what} {size} bytes at {address:#x}, outside {allowed:x?}"));
        }
        if code == 0 {
            return Ok(());
        }
        Err(format!("{name}: {} (code {code})", outcome.message()))
    }
}
