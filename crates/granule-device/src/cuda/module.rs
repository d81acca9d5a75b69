//! Modules of kernels, loaded from PTX by the driver's compiler, and the kernels in them.

use std::collections::BTreeMap;
use std::ffi::{CString, c_int, c_void};
use std::fmt;
use std::sync::{Arc, Mutex};

use cudarc::driver::sys::{
    self, CUfunction, CUfunction_attribute_enum as Attribute, CUjit_option_enum as Jit,
};

use super::context::{Context, Raw, lock};
use super::errors;
use super::release::Leftover;
use crate::live::{Counted, Thing};
use crate::{Bytes, Device, Error};

/// How much of the compiler's words is kept.
const LOG: usize = 4096;

/// A module on a device. Cheap to clone; it is unloaded when the last of its handles, [`Function`]s and launches is done.
#[derive(Clone)]
pub struct Module {
    pub(super) inner: Arc<Loaded>,
}

pub(super) struct Loaded {
    module: Raw<sys::CUmod_st>,
    context: Arc<Context>,
    owner: Counted,
    /// By the driver's handle, which is one for all that ask for a kernel.
    shared: Mutex<BTreeMap<usize, Arc<Shared>>>,
}

/// How much dynamic shared memory a kernel may be launched with, as far as the driver was told: it keeps one figure for each
/// kernel. `None` until it is first asked for; it only grows.
#[derive(Default)]
struct Shared(Mutex<Option<u32>>);

/// A kernel of a module. Cheap to clone; it keeps the module.
#[derive(Clone)]
pub struct Function {
    pub(super) raw: Raw<sys::CUfunc_st>,
    pub(super) module: Module,
    name: Arc<str>,
    shared: Arc<Shared>,
}

/// What a kernel takes, as the driver compiled it for this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FunctionAttributes {
    /// Registers a thread.
    pub registers: u32,
    /// Shared memory a block, not counting what a launch asks for.
    pub shared: Bytes,
    /// Memory a thread for what does not fit in registers: spills, and arrays of its own.
    pub local: Bytes,
    /// Constant memory.
    pub constant: Bytes,
    /// The most threads a block can have.
    pub max_threads: u32,
}

impl Module {
    /// Loads a module from PTX, which the driver compiles for the device (and keeps compiled, in its own cache).
    ///
    /// # Errors
    /// [`Error::Module`] with what the compiler said; [`Error::Unsupported`] on the host; [`Error::Capturing`].
    pub fn load(device: &Device, ptx: &str) -> Result<Module, Error> {
        let context = device.cuda_context("a module of kernels")?;
        context.refuse_in_capture("loading a module")?;
        let Ok(image) = CString::new(ptx) else {
            return Err(refused(context, errors::error("cuModuleLoadDataEx", errors::INVALID_IMAGE), &[]));
        };
        let mut log = vec![0_u8; LOG];
        let mut options = [Jit::CU_JIT_ERROR_LOG_BUFFER, Jit::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(LOG)];
        let mut module = std::ptr::null_mut();
        let bound = context.bind()?;
        // SAFETY: the image ends in a zero; options and values are as many as said, the log as long as said; the answer
        // is written into a local.
        let loaded = unsafe {
            context.driver.cuModuleLoadDataEx(
                &raw mut module,
                image.as_ptr().cast(),
                2,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        drop(bound);
        loaded.map_err(|error| refused(context, error, &log))?;
        let owner = Counted::new(device, Thing::Module);
        let (context, shared) = (Arc::clone(context), Mutex::default());
        let loaded = Loaded { module: Raw(module), context, owner, shared };
        Ok(Module { inner: Arc::new(loaded) })
    }

    /// The device it is loaded on.
    pub fn device(&self) -> &Device {
        self.inner.owner.device()
    }

    /// A kernel of this module.
    ///
    /// # Errors
    /// [`Error::NoSuchKernel`]; [`Error::Driver`].
    pub fn function(&self, name: &str) -> Result<Function, Error> {
        let missing = || Error::NoSuchKernel { name: name.to_owned() };
        let symbol = CString::new(name).map_err(|_| missing())?;
        let context = &self.inner.context;
        let _bound = context.bind()?;
        let mut function: CUfunction = std::ptr::null_mut();
        // SAFETY: the module is loaded, the name ends in a zero; the answer is written into a local.
        let found = unsafe {
            context.driver.cuModuleGetFunction(&raw mut function, self.inner.module.0, symbol.as_ptr())
        };
        match found {
            Err(error) if errors::code(&error) == Some(errors::NOT_FOUND) => return Err(missing()),
            found => found?,
        }
        let (raw, module) = (Raw(function), self.clone());
        let shared = Arc::clone(lock(&self.inner.shared).entry(function.addr()).or_default());
        Ok(Function { raw, module, name: name.into(), shared })
    }
}

/// A driver's refusal of a module; other errors as they are.
fn refused(context: &Context, source: Error, log: &[u8]) -> Error {
    match source {
        source @ Error::Driver { .. } => {
            let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
            let said = String::from_utf8_lossy(&log[..end]);
            let said = said.trim();
            let log = if said.is_empty() { String::new() } else { format!("\n{said}") };
            Error::Module { device: context.name.clone(), source: Box::new(source), log }
        }
        other => other,
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.context.release(Leftover::Module(self.module));
    }
}

impl Function {
    /// Its name in the module.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The module it is from.
    pub fn module(&self) -> &Module {
        &self.module
    }

    /// The device it runs on.
    pub fn device(&self) -> &Device {
        self.module.device()
    }

    /// What it takes.
    ///
    /// # Errors
    /// [`Error::Driver`].
    pub fn attributes(&self) -> Result<FunctionAttributes, Error> {
        let context = self.context();
        let _bound = context.bind()?;
        let get = |attribute| self.attribute(attribute);
        let bytes = |attribute| get(attribute).map(|value| Bytes::new(u64::from(value)));
        Ok(FunctionAttributes {
            registers: get(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
            shared: bytes(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?,
            local: bytes(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
            constant: bytes(Attribute::CU_FUNC_ATTRIBUTE_CONST_SIZE_BYTES)?,
            max_threads: get(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        })
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.module.inner.context
    }

    fn attribute(&self, attribute: Attribute) -> Result<u32, Error> {
        let mut value: c_int = 0;
        // SAFETY: the function's module is loaded; the answer is written into a local.
        unsafe { self.context().driver.cuFuncGetAttribute(&raw mut value, attribute, self.raw.0)? };
        Ok(u32::try_from(value).unwrap_or(0))
    }

    /// Tells the driver that launches will ask for so much dynamic shared memory: where it is more than 48 KiB together with
    /// what the kernel declares, it wants to know. The context is current.
    pub(super) fn allow_shared(&self, bytes: u32) -> Result<(), Error> {
        const UNASKED: u32 = 48 << 10;
        if bytes == 0 {
            return Ok(());
        }
        // Held over the call: of two threads, the one that asks for less must not come last.
        let mut allowed = lock(&self.shared.0);
        let known = match *allowed {
            Some(known) => known,
            None => UNASKED.saturating_sub(self.attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?),
        };
        *allowed = Some(known);
        if bytes > known {
            let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let value = c_int::try_from(bytes).unwrap_or(c_int::MAX);
            // SAFETY: the function's module is loaded.
            unsafe { self.context().driver.cuFuncSetAttribute(self.raw.0, attribute, value)? };
            *allowed = Some(bytes);
        }
        Ok(())
    }
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Module({})", self.device().name())
    }
}

impl fmt::Debug for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Function({}, {})", self.device().name(), self.name)
    }
}
