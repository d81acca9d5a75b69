//! NVTX, as far as NVIDIA's memory checkers need it: pieces of allocations, told to the tool that is attached.
//!
//! A tool such as compute-sanitizer names its library in `NVTX_INJECTION64_PATH`. NVTX itself is nothing but headers: the
//! program loads that library, hands it tables, and the tool writes its functions into them. This is that exchange, for two
//! of the tables: the core, which makes the domain that all else happens in, and the memory extension. Numbers and shapes
//! are those of NVTX 3 (nvToolsExtMem.h, nvtxTypes.h, nvtxExtTypes.h). No tool on a GPU has confirmed it yet.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

/// One of the tool's functions, or nothing.
type Slot = *const c_void;

/// NVTX 3.
const VERSION: u16 = 3;
/// The memory extension's number, and the version of its structs.
const MEMORY_MODULE: u16 = 1;
const MEMORY_COMPATIBILITY: u16 = 0x0102;
/// How many functions the extension's table has room for, and the places of the ones that are used.
const MEMORY_SLOTS: usize = 63;
const HEAP_REGISTER: usize = 1;
const HEAP_UNREGISTER: usize = 2;
const REGIONS_REGISTER: usize = 4;
const REGIONS_UNREGISTER: usize = 6;
/// Slots with this value or less hold a state, not a function.
const LAST_STATE: usize = 4;

/// The core's tables by number, with how many places each has; 0 is none.
const CORE_TABLES: [usize; 7] = [0, 16, 9, 15, 7, 16, 7];
const DOMAINS: usize = 5;
const DOMAIN_CREATE: usize = 12;

/// Pieces may be used, the rest of the heap not.
const SUB_ALLOCATOR: u32 = 1;
const VIRTUAL_ADDRESS: u32 = 1;
const BY_POINTER: u32 = 1;

#[repr(C)]
struct Piece {
    len: usize,
    at: usize,
}

#[repr(C)]
struct Heap {
    compatibility: u16,
    size: u16,
    reserved: u32,
    usage: u32,
    kind: u32,
    range_size: usize,
    range: *const Piece,
    category: u32,
    message_kind: u32,
    message: usize,
}

#[repr(C)]
struct Pieces {
    compatibility: u16,
    size: u16,
    kind: u32,
    heap: *mut c_void,
    count: usize,
    piece_size: usize,
    pieces: *const Piece,
    handles: *mut *mut c_void,
}

#[repr(C)]
struct References {
    compatibility: u16,
    size: u16,
    kind: u32,
    count: usize,
    reference_size: usize,
    references: *const usize,
}

/// What the extension's initializer is handed.
#[repr(C)]
pub(super) struct ModuleInfo {
    version: u16,
    size: u16,
    module: u16,
    compatibility: u16,
    segments_count: usize,
    segments: *mut Segment,
    get_export: usize,
    about: usize,
}

#[repr(C)]
struct Segment {
    id: usize,
    slots_count: usize,
    slots: *mut Slot,
}

type GetExportTable = unsafe extern "C" fn(u32) -> *const c_void;
/// `InitializeInjectionNvtx2` and `InitializeInjectionNvtxExtension`: non-zero where the tool is attached.
type CoreInitializer = unsafe extern "C" fn(GetExportTable) -> c_int;
type ExtensionInitializer = unsafe extern "C" fn(*mut ModuleInfo) -> c_int;

type DomainCreate = unsafe extern "C" fn(*const c_char) -> *mut c_void;
type HeapRegister = unsafe extern "C" fn(*mut c_void, *const Heap) -> *mut c_void;
type HeapUnregister = unsafe extern "C" fn(*mut c_void, *mut c_void);
type RegionsRegister = unsafe extern "C" fn(*mut c_void, *const Pieces);
type RegionsUnregister = unsafe extern "C" fn(*mut c_void, *const References);

/// A tool that listens.
pub(super) struct Tool {
    domain: usize,
    heap_register: HeapRegister,
    heap_unregister: HeapUnregister,
    regions_register: RegionsRegister,
    regions_unregister: RegionsUnregister,
    /// Allocations with pieces in them, by where they start: the tool's handle, and how many pieces.
    heaps: Mutex<BTreeMap<u64, (usize, usize)>>,
}

/// The tool that is attached to this process, if one is. The driver has been initialized.
pub(super) fn tool() -> Option<&'static Tool> {
    static TOOL: OnceLock<Option<Tool>> = OnceLock::new();
    TOOL.get_or_init(load).as_ref()
}

fn load() -> Option<Tool> {
    let path = std::env::var_os("NVTX_INJECTION64_PATH")?;
    // SAFETY: this is the library that the tool which started the process wants to be loaded.
    let library = unsafe { libloading::Library::new(path) }.ok()?;
    // SAFETY: these are the functions' types, by NVTX's headers.
    let (core, extension) = unsafe {
        (
            library.get::<CoreInitializer>(b"InitializeInjectionNvtx2").ok().map(|symbol| *symbol),
            *library.get::<ExtensionInitializer>(b"InitializeInjectionNvtxExtension").ok()?,
        )
    };
    // The tool's functions are used from now on.
    std::mem::forget(library);
    // SAFETY: as above.
    unsafe { Tool::attach(core, extension) }
}

/// The core's tables: for each module as many function pointers as it has places, and pointers to them.
struct Core {
    tables: Vec<Vec<*mut Slot>>,
}

// SAFETY: the tables are written by the tool while it attaches, in the one call below, and only read afterwards.
unsafe impl Send for Core {}
// SAFETY: as above.
unsafe impl Sync for Core {}

fn core() -> &'static Core {
    static CORE: OnceLock<Core> = OnceLock::new();
    CORE.get_or_init(|| {
        let tables = CORE_TABLES.iter().map(|&places| {
            let slots: &'static mut [Slot] = Vec::leak(vec![std::ptr::null(); places]);
            slots.iter_mut().map(|slot| &raw mut *slot).collect()
        });
        Core { tables: tables.collect() }
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
/// - Both pointers may be written.
unsafe extern "C" fn module_table(module: c_int, table: *mut *const *mut Slot, size: *mut c_uint) -> c_int {
    let found = usize::try_from(module).ok().and_then(|module| core().tables.get(module));
    let Some(found) = found.filter(|places| !places.is_empty()) else { return 0 };
    // SAFETY: the caller's promise.
    unsafe {
        *table = found.as_ptr();
        *size = c_uint::try_from(found.len()).unwrap_or(0);
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

impl Tool {
    /// # Safety
    /// - The functions are a tool's, of NVTX 3.
    unsafe fn attach(
        core_initializer: Option<CoreInitializer>,
        extension: ExtensionInitializer,
    ) -> Option<Tool> {
        let mut domain = std::ptr::null_mut();
        // SAFETY: the caller's promise; the tables live as long as the process.
        unsafe {
            if core_initializer.is_some_and(|initialize| initialize(export_table) != 0) {
                let create = *core().tables[DOMAINS][DOMAIN_CREATE];
                if !create.is_null() {
                    domain = std::mem::transmute::<Slot, DomainCreate>(create)(c"granule".as_ptr());
                }
            }
        }
        // What the tool was handed it may look at again later.
        let slots: &'static mut [Slot] = Vec::leak(vec![std::ptr::null(); MEMORY_SLOTS]);
        let slots = slots.as_mut_ptr();
        let segment = Box::leak(Box::new(Segment { id: 1, slots_count: MEMORY_SLOTS, slots }));
        let info = Box::leak(Box::new(ModuleInfo {
            version: VERSION,
            size: size_of::<ModuleInfo>() as u16,
            module: MEMORY_MODULE,
            compatibility: MEMORY_COMPATIBILITY,
            segments_count: 1,
            segments: segment,
            get_export: 0,
            about: 0,
        }));
        // SAFETY: the caller's promise.
        if unsafe { extension(info) } == 0 {
            return None;
        }
        let slot = |place: usize| {
            // SAFETY: the place is one of the table's.
            let function = unsafe { *slots.add(place) };
            (function.addr() > LAST_STATE).then_some(function)
        };
        // SAFETY: the tool has put functions of these types into these places.
        unsafe {
            Some(Tool {
                domain: domain.expose_provenance(),
                heap_register: std::mem::transmute::<Slot, HeapRegister>(slot(HEAP_REGISTER)?),
                heap_unregister: std::mem::transmute::<Slot, HeapUnregister>(slot(HEAP_UNREGISTER)?),
                regions_register: std::mem::transmute::<Slot, RegionsRegister>(slot(REGIONS_REGISTER)?),
                regions_unregister: std::mem::transmute::<Slot, RegionsUnregister>(slot(REGIONS_UNREGISTER)?),
                heaps: Mutex::default(),
            })
        }
    }

    fn domain(&self) -> *mut c_void {
        std::ptr::with_exposed_provenance_mut(self.domain)
    }

    /// Tells of a piece of an allocation; with the first one, of the allocation.
    pub(super) fn register(&self, allocation: &Range<u64>, at: u64, len: usize) {
        let mut heaps = self.heaps.lock().unwrap_or_else(PoisonError::into_inner);
        let (handle, pieces) = match heaps.entry(allocation.start) {
            Entry::Occupied(heap) => heap.into_mut(),
            Entry::Vacant(heap) => {
                let whole = Piece {
                    len: (allocation.end - allocation.start) as usize,
                    at: allocation.start as usize,
                };
                let described = Heap {
                    compatibility: MEMORY_COMPATIBILITY,
                    size: size_of::<Heap>() as u16,
                    reserved: 0,
                    usage: SUB_ALLOCATOR,
                    kind: VIRTUAL_ADDRESS,
                    range_size: size_of::<Piece>(),
                    range: &raw const whole,
                    category: 0,
                    message_kind: 0,
                    message: 0,
                };
                // SAFETY: the description lives through the call.
                let handle = unsafe { (self.heap_register)(self.domain(), &raw const described) };
                heap.insert((handle.expose_provenance(), 0))
            }
        };
        *pieces += 1;
        let piece = Piece { len, at: at as usize };
        let described = Pieces {
            compatibility: MEMORY_COMPATIBILITY,
            size: size_of::<Pieces>() as u16,
            kind: VIRTUAL_ADDRESS,
            heap: std::ptr::with_exposed_provenance_mut(*handle),
            count: 1,
            piece_size: size_of::<Piece>(),
            pieces: &raw const piece,
            handles: std::ptr::null_mut(),
        };
        // SAFETY: the description lives through the call.
        unsafe { (self.regions_register)(self.domain(), &raw const described) };
    }

    /// Takes back a piece; with the last one, the allocation.
    pub(super) fn unregister(&self, allocation: u64, at: u64) {
        let mut heaps = self.heaps.lock().unwrap_or_else(PoisonError::into_inner);
        let reference = at as usize;
        let described = References {
            compatibility: MEMORY_COMPATIBILITY,
            size: size_of::<References>() as u16,
            kind: BY_POINTER,
            count: 1,
            reference_size: size_of::<usize>(),
            references: &raw const reference,
        };
        // SAFETY: the description lives through the call.
        unsafe { (self.regions_unregister)(self.domain(), &raw const described) };
        if let Entry::Occupied(mut heap) = heaps.entry(allocation) {
            heap.get_mut().1 -= 1;
            if heap.get().1 == 0 {
                let handle = std::ptr::with_exposed_provenance_mut(heap.remove().0);
                // SAFETY: the handle is the tool's own.
                unsafe { (self.heap_unregister)(self.domain(), handle) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a tool heard.
    static HEARD: Mutex<Vec<String>> = Mutex::new(Vec::new());

    fn hear(what: String) {
        HEARD.lock().unwrap().push(what);
    }

    extern "C" fn domain_create(name: *const c_char) -> *mut c_void {
        // SAFETY: a domain's name is a C string.
        let name = unsafe { std::ffi::CStr::from_ptr(name) };
        hear(format!("domain {}", name.to_string_lossy()));
        std::ptr::without_provenance_mut(0xD0)
    }

    extern "C" fn heap_register(domain: *mut c_void, heap: *const Heap) -> *mut c_void {
        // SAFETY: the description lives through the call.
        let (heap, range) = unsafe { (&*heap, &*(*heap).range) };
        assert_eq!((heap.compatibility, usize::from(heap.size), heap.range_size), (0x0102, 48, 16));
        assert_eq!((heap.usage, heap.kind), (1, 1));
        hear(format!("heap {:#x} {:#x}+{}", domain.addr(), range.at, range.len));
        std::ptr::without_provenance_mut(0x4EA0)
    }

    extern "C" fn heap_unregister(domain: *mut c_void, heap: *mut c_void) {
        hear(format!("no heap {:#x} {:#x}", domain.addr(), heap.addr()));
    }

    extern "C" fn regions_register(domain: *mut c_void, pieces: *const Pieces) {
        // SAFETY: the description lives through the call.
        let (pieces, piece) = unsafe { (&*pieces, &*(*pieces).pieces) };
        assert_eq!((usize::from(pieces.size), pieces.count, pieces.piece_size), (48, 1, 16));
        hear(format!("piece {:#x} {:#x} {:#x}+{}", domain.addr(), pieces.heap.addr(), piece.at, piece.len));
    }

    extern "C" fn regions_unregister(domain: *mut c_void, pieces: *const References) {
        // SAFETY: the description lives through the call.
        let (pieces, at) = unsafe { (&*pieces, *(*pieces).references) };
        assert_eq!(
            (usize::from(pieces.size), pieces.kind, pieces.count, pieces.reference_size),
            (32, 1, 1, 8)
        );
        hear(format!("no piece {:#x} {at:#x}", domain.addr()));
    }

    unsafe extern "C" fn core_initializer(get: GetExportTable) -> c_int {
        // SAFETY: these are NVTX's shapes.
        unsafe {
            let versions = &*get(3).cast::<VersionInfo>();
            assert_eq!((versions.size, versions.version), (24, 3));
            assert!(get(7).is_null());
            let callbacks = &*get(1).cast::<Callbacks>();
            let (mut table, mut size) = (std::ptr::null(), 0);
            assert_eq!((callbacks.table)(0, &raw mut table, &raw mut size), 0);
            assert_eq!((callbacks.table)(5, &raw mut table, &raw mut size), 1);
            assert_eq!(size, 16);
            **table.add(12) = domain_create as *const c_void;
        }
        1
    }

    unsafe extern "C" fn extension(info: *mut ModuleInfo) -> c_int {
        // SAFETY: these are NVTX's shapes.
        unsafe {
            let info = &*info;
            assert_eq!((info.version, info.size, info.module, info.compatibility), (3, 40, 1, 0x0102));
            let segment = &*info.segments;
            assert_eq!((info.segments_count, segment.id, segment.slots_count), (1, 1, 63));
            *segment.slots.add(1) = heap_register as *const c_void;
            *segment.slots.add(2) = heap_unregister as *const c_void;
            *segment.slots.add(4) = regions_register as *const c_void;
            *segment.slots.add(6) = regions_unregister as *const c_void;
        }
        1
    }

    unsafe extern "C" fn refuses(_: *mut ModuleInfo) -> c_int {
        0
    }

    unsafe extern "C" fn knows_nothing(info: *mut ModuleInfo) -> c_int {
        // SAFETY: as above; 1 stands for "switched off".
        unsafe { *(*(*info).segments).slots.add(1) = std::ptr::without_provenance(1) };
        1
    }

    #[test]
    fn a_tool_hears_of_allocations_and_their_pieces() {
        // SAFETY: the functions above have the right types.
        let tool = unsafe { Tool::attach(Some(core_initializer), extension) }.unwrap();
        tool.register(&(0x1000..0x3000), 0x1000, 256);
        tool.register(&(0x1000..0x3000), 0x1400, 64);
        tool.unregister(0x1000, 0x1000);
        tool.unregister(0x1000, 0x1400);
        let heard = std::mem::take(&mut *HEARD.lock().unwrap());
        let expected = [
            "domain granule",
            "heap 0xd0 0x1000+8192",
            "piece 0xd0 0x4ea0 0x1000+256",
            "piece 0xd0 0x4ea0 0x1400+64",
            "no piece 0xd0 0x1000",
            "no piece 0xd0 0x1400",
            "no heap 0xd0 0x4ea0",
        ];
        assert_eq!(heard, expected);
    }

    #[test]
    fn a_tool_that_does_not_take_part_is_left_alone() {
        // SAFETY: the functions above have the right types.
        unsafe {
            assert!(Tool::attach(None, refuses).is_none());
            assert!(Tool::attach(None, knows_nothing).is_none());
        }
    }
}
