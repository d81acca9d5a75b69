//! Modules and functions: PTX that the driver takes, and the emulated kernels behind its entries.

use super::call::Call;
use super::ptx::{self, Entry};
use super::report::Kind;
use super::{Caller, Result, Simulation};
use crate::code::Code;
use crate::emulator::Kernel;

#[derive(Debug)]
pub(crate) struct Module {
    pub(crate) context: u64,
    pub(crate) made: Call,
    ptx: ptx::Module,
}

#[derive(Debug, Clone)]
pub(crate) struct Function {
    pub(crate) context: u64,
    module: u64,
    pub(crate) name: String,
    pub(crate) entry: Entry,
    /// Missing where the program runs without emulated kernels.
    pub(crate) kernel: Option<Kernel>,
    target: u32,
    /// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
    pub(crate) most_dynamic_shared: u32,
}

impl Simulation {
    /// Takes PTX as the driver's compiler would: not newer than the driver, not for another device.
    pub(crate) fn load_module(&mut self, caller: &Caller, image: &[u8]) -> Result<u64> {
        let context = self.context(caller)?;
        self.forbid_while_capturing(caller)?;
        let binary = image.starts_with(b"\x7fELF") || image.starts_with(&[0x50, 0xed, 0x55, 0xba]);
        if binary {
            return Err(Code::INVALID_IMAGE);
        }
        let text = std::str::from_utf8(image).map_err(|_| Code::INVALID_IMAGE)?;
        let ptx = ptx::parse(text).map_err(|_| Code::INVALID_PTX)?;
        if ptx.version > ptx::newest_version(self.config.driver) {
            return Err(Code::UNSUPPORTED_PTX_VERSION);
        }
        let (major, minor) = self.config.compute_capability;
        let device = (major * 10 + minor) as u32;
        if ptx.target > device || ptx.exact && ptx.target != device {
            return Err(Code::NO_BINARY_FOR_GPU);
        }
        let handle = self.new_handle();
        self.modules.insert(handle, Module { context, made: caller.call, ptx });
        Ok(handle)
    }

    pub(crate) fn unload_module(&mut self, caller: &Caller, module: u64) -> Result<()> {
        self.context(caller)?;
        if self.modules.remove(&module).is_none() {
            return self.bad_handle(caller, "module", module);
        }
        self.functions.retain(|_, f| f.module != module);
        Ok(())
    }

    pub(crate) fn get_function(&mut self, caller: &Caller, module: u64, name: &str) -> Result<u64> {
        let Some(m) = self.modules.get(&module) else { return self.bad_handle(caller, "module", module) };
        let entry = m.ptx.entries.get(name).ok_or(Code::NOT_FOUND)?.clone();
        let (context, target) = (m.context, m.ptx.target);
        let known = self.functions.iter().find(|(_, f)| f.module == module && f.name == name);
        if let Some((&handle, _)) = known {
            return Ok(handle);
        }
        let kernel = self.kernels.find(name);
        match &kernel {
            None if self.kernels.is_empty() => {}
            None => {
                let message = format!("{}: no library of emulated kernels has {name}", caller.call);
                self.reports.add(Kind::BadArguments, message);
                return Err(Code::NOT_FOUND);
            }
            Some(kernel) if kernel.parameter_sizes() != entry.parameters => {
                let message = format!(
                    "{}: {name} takes parameters of {:?} bytes in the PTX and of {:?} in the emulated kernel: they were \
                     not built from the same source",
                    caller.call,
                    entry.parameters,
                    kernel.parameter_sizes()
                );
                self.reports.add(Kind::BadArguments, message);
                return Err(Code::INVALID_IMAGE);
            }
            Some(_) => {}
        }
        let handle = self.new_handle();
        let function = Function {
            context,
            module,
            name: name.to_owned(),
            entry,
            kernel,
            target,
            most_dynamic_shared: Self::SHARED_MEMORY,
        };
        self.functions.insert(handle, function);
        Ok(handle)
    }

    pub(crate) fn function(&mut self, caller: &Caller, handle: u64) -> Result<&mut Function> {
        if !self.functions.contains_key(&handle) {
            return self.bad_handle(caller, "function", handle);
        }
        self.functions.get_mut(&handle).ok_or(Code::INVALID_HANDLE)
    }

    pub(crate) fn function_attribute(
        &mut self,
        caller: &Caller,
        function: u64,
        attribute: i32,
    ) -> Result<i32> {
        let (major, minor) = self.config.compute_capability;
        let f = self.function(caller, function)?;
        Ok(match attribute {
            0 => f.entry.most_threads.unwrap_or(1024) as i32,
            1 => f.entry.shared as i32,
            // The real compiler decides; the simulator has none. `cargo xtask kernels` has the real numbers.
            4 => 32,
            5 => f.target as i32,
            6 => major * 10 + minor,
            8 => f.most_dynamic_shared as i32,
            9 => -1,
            2 | 3 | 7 | 10..=15 => 0,
            _ => return Err(Code::INVALID_VALUE),
        })
    }

    pub(crate) fn set_function_attribute(
        &mut self,
        caller: &Caller,
        function: u64,
        attribute: i32,
        value: i32,
    ) -> Result<()> {
        let f = self.function(caller, function)?;
        match attribute {
            8 => {
                let value = u32::try_from(value).map_err(|_| Code::INVALID_VALUE)?;
                if value.saturating_add(f.entry.shared) > Self::SHARED_MEMORY_OPT_IN {
                    return Err(Code::INVALID_VALUE);
                }
                f.most_dynamic_shared = value;
                Ok(())
            }
            9 if (-1..=100).contains(&value) => Ok(()),
            _ => Err(Code::INVALID_VALUE),
        }
    }
}
