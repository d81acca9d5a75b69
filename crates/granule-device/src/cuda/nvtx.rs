//! NVTX, as far as Granule needs it: ranges of time, told to a profiler that is attached, and pieces of allocations, told to a
//! memory checker.
//!
//! Such a tool names its library in `NVTX_INJECTION64_PATH`. NVTX itself is nothing but headers: the program loads that library,
//! hands it tables, and the tool writes its functions into them. This is that exchange, for two of the tables: the core, with
//! domains and ranges, and the memory extension. Numbers and shapes are those of NVTX 3 (nvToolsExt.h, nvtxTypes.h,
//! nvToolsExtMem.h, nvtxExtTypes.h). No tool on a GPU has confirmed it yet.
//!
//! compute-sanitizer's library wants nothing before the driver is initialized. So where a tool is named, the driver is loaded and
//! initialized before the tool is asked in, if there is one; where none is named, nothing is.

mod memory;
mod ranges;

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

pub(super) use self::memory::tool;
pub use self::ranges::NvtxRange;
use self::ranges::{RangePop, RangePush};

/// One of the tool's functions, or nothing.
type Slot = *const c_void;

/// NVTX 3.
const VERSION: u16 = 3;
/// Slots with this value or less hold a state, not a function.
const LAST_STATE: usize = 4;

/// The core's tables by number, with how many places each has; 0 is none.
const CORE_TABLES: [usize; 7] = [0, 16, 9, 15, 7, 16, 7];
const DOMAINS: usize = 5;
const RANGE_PUSH: usize = 4;
const RANGE_POP: usize = 5;
const DOMAIN_CREATE: usize = 12;

type GetExportTable = unsafe extern "C" fn(u32) -> *const c_void;
/// `InitializeInjectionNvtx2`: non-zero where the tool is attached.
type Initializer = unsafe extern "C" fn(GetExportTable) -> c_int;
type DomainCreate = unsafe extern "C" fn(*const c_char) -> *mut c_void;

/// Where a tool names its library.
const VARIABLE: &str = "NVTX_INJECTION64_PATH";

/// The library of the tool that started this process, if one did: it stays loaded.
fn library() -> Option<&'static libloading::Library> {
    static LIBRARY: OnceLock<Option<libloading::Library>> = OnceLock::new();
    let load = || {
        let path = std::env::var_os(VARIABLE)?;
        // SAFETY: this is the library that the tool which started the process wants to be loaded.
        unsafe { libloading::Library::new(path) }.ok()
    };
    LIBRARY.get_or_init(load).as_ref()
}

/// A tool that has taken the core's tables.
#[derive(Debug)]
struct Core {
    domain: usize,
    /// Both or none.
    ranges: Option<(RangePush, RangePop)>,
}

/// The tool that listens to the core, if one does. One load where that is known.
#[inline]
fn core() -> Option<&'static Core> {
    static CORE: OnceLock<Option<Core>> = OnceLock::new();
    CORE.get_or_init(|| {
        if std::env::var_os(VARIABLE).is_some() {
            // A tool can also listen where there is no driver.
            let _ = super::library::library();
        }
        // SAFETY: this is the function's type, by NVTX's headers; the tool's functions are used from now on, and stay.
        unsafe {
            let initializer = *library()?.get::<Initializer>(b"InitializeInjectionNvtx2").ok()?;
            Core::attach(initializer)
        }
    })
    .as_ref()
}

impl Core {
    /// # Safety
    /// - The function is a tool's, of NVTX 3.
    unsafe fn attach(initializer: Initializer) -> Option<Core> {
        // SAFETY: the caller's promise; the tables live as long as the process, and the tool has put functions of these types into
        // these places, or left them empty.
        unsafe {
            if initializer(export_table) == 0 {
                return None;
            }
            let slot = |place: usize| {
                let function: Slot = *tables().of[DOMAINS][place];
                (function.addr() > LAST_STATE).then_some(function)
            };
            let create = std::mem::transmute::<Slot, DomainCreate>(slot(DOMAIN_CREATE)?);
            let ranges = slot(RANGE_PUSH).zip(slot(RANGE_POP)).map(|(push, pop)| {
                (std::mem::transmute::<Slot, RangePush>(push), std::mem::transmute::<Slot, RangePop>(pop))
            });
            Some(Core { domain: create(c"granule".as_ptr()).expose_provenance(), ranges })
        }
    }

    fn domain(&self) -> *mut c_void {
        std::ptr::with_exposed_provenance_mut(self.domain)
    }
}

/// The core's tables: for each module as many function pointers as it has places, and pointers to them.
struct Tables {
    of: Vec<Vec<*mut Slot>>,
}

// SAFETY: the tables are written by the tool while it attaches, in the one call below, and only read afterwards.
unsafe impl Send for Tables {}
// SAFETY: as above.
unsafe impl Sync for Tables {}

fn tables() -> &'static Tables {
    static TABLES: OnceLock<Tables> = OnceLock::new();
    TABLES.get_or_init(|| {
        let tables = CORE_TABLES.iter().map(|&places| {
            let slots: &'static mut [Slot] = Vec::leak(vec![std::ptr::null(); places]);
            slots.iter_mut().map(|slot| &raw mut *slot).collect()
        });
        Tables { of: tables.collect() }
    })
}

#[repr(C)]
struct Callbacks {
    size: usize,
    table: unsafe extern "C" fn(c_int, *mut *const *mut Slot, *mut c_uint) -> c_int,
}

#[repr(C)]
struct VersionInfo {
    size: usize,
    version: u32,
    reserved: u32,
    set_tool_version: extern "C" fn(u32),
}

extern "C" fn set_tool_version(_: u32) {}

/// # Safety
/// - Each pointer is null or may be written.
unsafe extern "C" fn module_table(module: c_int, table: *mut *const *mut Slot, size: *mut c_uint) -> c_int {
    let found = usize::try_from(module).ok().and_then(|module| tables().of.get(module));
    let Some(found) = found.filter(|places| !places.is_empty()) else { return 0 };
    // SAFETY: the caller's promise.
    unsafe {
        if !table.is_null() {
            *table = found.as_ptr();
        }
        if !size.is_null() {
            *size = c_uint::try_from(found.len()).unwrap_or(0);
        }
    }
    1
}

unsafe extern "C" fn export_table(id: u32) -> *const c_void {
    static CALLBACKS: Callbacks = Callbacks { size: size_of::<Callbacks>(), table: module_table };
    static VERSIONS: VersionInfo = VersionInfo {
        size: size_of::<VersionInfo>(),
        version: VERSION as u32,
        reserved: 0,
        set_tool_version,
    };
    match id {
        1 => (&raw const CALLBACKS).cast(),
        3 => (&raw const VERSIONS).cast(),
        _ => std::ptr::null(),
    }
}

#[cfg(test)]
mod tests;
