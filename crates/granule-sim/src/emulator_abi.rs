//! The emulator's C interface as Rust sees it: `emulator/include/granule_emulator.h`, field by field.

use std::ffi::{c_char, c_int, c_void};

/// What `granule_emu_abi` answers for this interface.
pub const ABI: u32 = 1;

/// `granule_emu_kernel`.
#[repr(C)]
#[derive(Debug)]
pub struct Kernel {
    /// Ends with a zero.
    pub name: *const c_char,
    /// How many parameters it takes.
    pub n_params: u32,
    /// The bytes of each.
    pub param_sizes: *const u32,
}

/// `granule_emu_where`: which thread it was.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Where {
    /// The block's index in the grid.
    pub block: [u32; 3],
    /// The thread's index in the block.
    pub thread: [u32; 3],
}

/// Asked before an access: context, address, bytes, whether it writes, whether it is atomic, by whom. Anything but 0 ends the
/// launch.
pub type AccessHook = unsafe extern "C" fn(*mut c_void, u64, u32, u32, u32, *const Where) -> c_int;

/// `granule_emu_hooks`.
#[repr(C)]
#[derive(Debug)]
pub struct Hooks {
    /// Handed to the hook.
    pub context: *mut c_void,
    /// The hook.
    pub access: AccessHook,
}

/// `granule_emu_launch`.
#[repr(C)]
#[derive(Debug)]
pub struct Launch {
    /// Blocks.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: u32,
    /// 0: threads in order; else they are shuffled with it.
    pub seed: u64,
    /// A pointer to each parameter.
    pub params: *mut *mut c_void,
    /// Null where nobody looks.
    pub hooks: *const Hooks,
}

/// `granule_emu_result`.
#[repr(C)]
#[derive(Debug)]
pub struct Outcome {
    /// 0 where it ended well.
    pub code: i32,
    /// Ends with a zero.
    pub message: [c_char; 512],
}

impl Outcome {
    /// To be filled by a launch.
    #[must_use]
    pub const fn empty() -> Outcome {
        Outcome { code: -1, message: [0; 512] }
    }

    /// What the emulator says of a launch that did not end well.
    #[must_use]
    pub fn message(&self) -> String {
        let bytes: Vec<u8> = self.message.iter().take_while(|&&c| c != 0).map(|&c| c as u8).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// `granule_emu_find`.
pub type Find = unsafe extern "C" fn(*const c_char) -> *const Kernel;

/// `granule_emu_run`.
pub type Run = unsafe extern "C" fn(*const Kernel, *const Launch, *mut Outcome) -> i32;
