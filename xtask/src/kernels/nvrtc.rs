//! NVRTC, loaded at run time: CUDA C++ in, PTX out, with no header, no linker and no toolkit.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;

use anyhow::{Context, Result, bail, ensure};
use libloading::Library;

type Status = c_int;
type Program = *mut c_void;
type Texts = *const *const c_char;
type Create = unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, Texts, Texts) -> Status;
type Compile = unsafe extern "C" fn(Program, c_int, Texts) -> Status;
type Size = unsafe extern "C" fn(Program, *mut usize) -> Status;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> Status;
type Destroy = unsafe extern "C" fn(*mut Program) -> Status;
type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status;
type Explain = unsafe extern "C" fn(Status) -> *const c_char;

/// Its functions. Signatures are those of nvrtc.h 12.4; NVRTC may be called from several threads.
pub(super) struct Nvrtc {
    create: Create,
    compile: Compile,
    log_size: Size,
    log: Get,
    ptx_size: Size,
    ptx: Get,
    destroy: Destroy,
    explain: Explain,
    /// Keeps the functions where they are.
    _library: Library,
}

/// A program, destroyed on drop.
struct Held<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // SAFETY: `create` made the program, and nobody else has it.
        unsafe { (self.nvrtc.destroy)(&mut self.program) };
    }
}

impl Nvrtc {
    /// Loads the library at `path` and checks that it is version 12.4.
    pub(super) fn load(path: &Path) -> Result<Nvrtc> {
        let load = || -> Result<(Nvrtc, Version), libloading::Error> {
            // SAFETY: the library is the pinned one; it runs no code on load that touches this program. The types are
            // those of its header.
            unsafe {
                let library = Library::new(path)?;
                let version = *library.get::<Version>(c"nvrtcVersion")?;
                let nvrtc = Nvrtc {
                    create: *library.get(c"nvrtcCreateProgram")?,
                    compile: *library.get(c"nvrtcCompileProgram")?,
                    log_size: *library.get(c"nvrtcGetProgramLogSize")?,
                    log: *library.get(c"nvrtcGetProgramLog")?,
                    ptx_size: *library.get(c"nvrtcGetPTXSize")?,
                    ptx: *library.get(c"nvrtcGetPTX")?,
                    destroy: *library.get(c"nvrtcDestroyProgram")?,
                    explain: *library.get(c"nvrtcGetErrorString")?,
                    _library: library,
                };
                Ok((nvrtc, version))
            }
        };
        let (nvrtc, version) = load().with_context(|| path.display().to_string())?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both numbers are there to be written.
        nvrtc.done("nvrtcVersion", unsafe { version(&mut major, &mut minor) })?;
        ensure!((major, minor) == (12, 4), "this is NVRTC {major}.{minor}, and 12.4 is pinned");
        Ok(nvrtc)
    }

    /// PTX for `compute_<arch>` of `kernels/<op>.cu`, with warnings as errors.
    pub(super) fn compile(
        &self,
        op: &str,
        text: &str,
        headers: &[(String, String)],
        arch: &str,
    ) -> Result<String> {
        let (text, name) = (CString::new(text)?, CString::new(format!("{op}.cu"))?);
        let header_texts = strings(headers.iter().map(|(_, text)| text.clone()))?;
        let header_names = strings(headers.iter().map(|(name, _)| name.clone()))?;
        let (texts, names) = (pointers(&header_texts), pointers(&header_names));
        let mut program = ptr::null_mut();
        // SAFETY: all strings end with a zero byte and live until the call returns; it copies them.
        let made = unsafe {
            let count = c_int::try_from(headers.len())?;
            (self.create)(&mut program, text.as_ptr(), name.as_ptr(), count, texts.as_ptr(), names.as_ptr())
        };
        self.done("nvrtcCreateProgram", made)?;
        let held = Held { nvrtc: self, program };

        let options = [format!("--gpu-architecture=compute_{arch}")].into_iter();
        let options = strings(options.chain(super::nvcc::EXACT.iter().map(|&option| option.to_owned())))?;
        let list = pointers(&options);
        // SAFETY: the program is alive, the options live until the call returns.
        let compiled = unsafe { (self.compile)(program, c_int::try_from(list.len())?, list.as_ptr()) };
        let log = self.text(&held, "nvrtcGetProgramLog", self.log_size, self.log)?;
        if compiled != 0 || !log.trim().is_empty() {
            bail!("NVRTC says (a warning counts as an error):\n{log}");
        }
        self.text(&held, "nvrtcGetPTX", self.ptx_size, self.ptx)
    }

    fn text(&self, held: &Held<'_>, call: &str, size: Size, get: Get) -> Result<String> {
        let mut len = 0;
        // SAFETY: the program is alive, the number is there to be written.
        self.done(call, unsafe { size(held.program, &mut len) })?;
        let mut bytes = vec![0u8; len + 1];
        // SAFETY: the buffer has the room that the library asked for, its closing zero included, and one byte more.
        self.done(call, unsafe { get(held.program, bytes.as_mut_ptr().cast()) })?;
        let text = CStr::from_bytes_until_nul(&bytes).context("text without an end")?;
        Ok(text.to_str()?.to_owned())
    }

    fn done(&self, call: &str, status: Status) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the function answers with a string that lives as long as the library, for any number.
        let why = unsafe { CStr::from_ptr((self.explain)(status)) };
        bail!("{call}: {}", why.to_string_lossy());
    }
}

fn strings(texts: impl Iterator<Item = String>) -> Result<Vec<CString>> {
    Ok(texts.map(CString::new).collect::<Result<_, _>>()?)
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).collect()
}
