//! A tool that the tests are themselves: what it hears.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::Mutex;

use super::memory::{Heap, ModuleInfo, Pieces, References, Tool};
use super::ranges::Attributes;
use super::{Callbacks, Core, GetExportTable, NvtxRange, VersionInfo};

/// What a tool heard.
static HEARD: Mutex<Vec<String>> = Mutex::new(Vec::new());

fn hear(what: String) {
    HEARD.lock().unwrap().push(what);
}

extern "C" fn domain_create(name: *const c_char) -> *mut c_void {
    // SAFETY: a domain's name is a C string.
    let name = unsafe { CStr::from_ptr(name) };
    hear(format!("domain {}", name.to_string_lossy()));
    std::ptr::without_provenance_mut(0xD0)
}

extern "C" fn range_push(domain: *mut c_void, range: *const Attributes) -> c_int {
    // SAFETY: the description lives through the call, and its name is a C string.
    let (range, name) = unsafe { (&*range, CStr::from_ptr((*range).message)) };
    assert_eq!((range.version, range.size, range.payload_kind, range.message_kind), (3, 48, 1, 1));
    hear(format!("range {:#x} {} {}", domain.addr(), name.to_string_lossy(), range.payload));
    0
}

extern "C" fn range_pop(domain: *mut c_void) -> c_int {
    hear(format!("end {:#x}", domain.addr()));
    0
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
    assert_eq!((usize::from(pieces.size), pieces.kind, pieces.count, pieces.reference_size), (32, 1, 1, 8));
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
        // A tool may ask for one of the two alone.
        let (mut again, mut places) = (std::ptr::null(), 0);
        assert_eq!((callbacks.table)(5, &raw mut again, std::ptr::null_mut()), 1);
        assert_eq!((callbacks.table)(5, std::ptr::null_mut(), &raw mut places), 1);
        assert_eq!((again, places), (table, size));
        **table.add(12) = domain_create as *const c_void;
        **table.add(4) = range_push as *const c_void;
        **table.add(5) = range_pop as *const c_void;
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

unsafe extern "C" fn does_not_listen(_: GetExportTable) -> c_int {
    0
}

unsafe extern "C" fn knows_nothing(info: *mut ModuleInfo) -> c_int {
    // SAFETY: as above; 1 stands for "switched off".
    unsafe { *(*(*info).segments).slots.add(1) = std::ptr::without_provenance(1) };
    1
}

#[test]
fn a_tool_hears_of_ranges_and_of_pieces_of_allocations() {
    // SAFETY: the functions above have the right types.
    let core: &'static Core = Box::leak(Box::new(unsafe { Core::attach(core_initializer) }.unwrap()));
    let step = NvtxRange::of(Some(core), c"step", 2);
    drop(NvtxRange::of(Some(core), c"layer", 7));
    drop(step);
    // SAFETY: as above.
    let tool = unsafe { Tool::attach(core.domain, extension) }.unwrap();
    tool.register(&(0x1000..0x3000), 0x1000, 256);
    tool.register(&(0x1000..0x3000), 0x1400, 64);
    tool.unregister(0x1000, 0x1000);
    tool.unregister(0x1000, 0x1400);
    let heard = std::mem::take(&mut *HEARD.lock().unwrap());
    let expected = [
        "domain granule",
        "range 0xd0 step 2",
        "range 0xd0 layer 7",
        "end 0xd0",
        "end 0xd0",
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
        assert!(Tool::attach(0, refuses).is_none());
        assert!(Tool::attach(0, knows_nothing).is_none());
        assert!(Core::attach(does_not_listen).is_none());
    }
    // Where nobody listens, or not to ranges.
    drop(NvtxRange::of(None, c"step", 0));
    let deaf: &'static Core = Box::leak(Box::new(Core { domain: 0, ranges: None }));
    drop(NvtxRange::of(Some(deaf), c"step", 0));
}
