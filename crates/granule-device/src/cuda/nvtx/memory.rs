//! The memory extension: pieces of allocations, told to a memory checker such as compute-sanitizer.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::{LAST_STATE, Slot, VERSION};

/// The memory extension's number, and the version of its structs.
const MEMORY_MODULE: u16 = 1;
const MEMORY_COMPATIBILITY: u16 = 0x0102;
/// How many functions the extension's table has room for, and the places of the ones that are used.
const MEMORY_SLOTS: usize = 63;
const HEAP_REGISTER: usize = 1;
const HEAP_UNREGISTER: usize = 2;
const REGIONS_REGISTER: usize = 4;
const REGIONS_UNREGISTER: usize = 6;

/// Pieces may be used, the rest of the heap not.
const SUB_ALLOCATOR: u32 = 1;
const VIRTUAL_ADDRESS: u32 = 1;
const BY_POINTER: u32 = 1;

#[repr(C)]
pub(super) struct Piece {
    pub(super) len: usize,
    pub(super) at: usize,
}

#[repr(C)]
pub(super) struct Heap {
    pub(super) compatibility: u16,
    pub(super) size: u16,
    pub(super) reserved: u32,
    pub(super) usage: u32,
    pub(super) kind: u32,
    pub(super) range_size: usize,
    pub(super) range: *const Piece,
    pub(super) category: u32,
    pub(super) message_kind: u32,
    pub(super) message: usize,
}

#[repr(C)]
pub(super) struct Pieces {
    pub(super) compatibility: u16,
    pub(super) size: u16,
    pub(super) kind: u32,
    pub(super) heap: *mut c_void,
    pub(super) count: usize,
    pub(super) piece_size: usize,
    pub(super) pieces: *const Piece,
    pub(super) handles: *mut *mut c_void,
}

#[repr(C)]
pub(super) struct References {
    pub(super) compatibility: u16,
    pub(super) size: u16,
    pub(super) kind: u32,
    pub(super) count: usize,
    pub(super) reference_size: usize,
    pub(super) references: *const usize,
}

/// What the extension's initializer is handed.
#[repr(C)]
pub(super) struct ModuleInfo {
    pub(super) version: u16,
    pub(super) size: u16,
    pub(super) module: u16,
    pub(super) compatibility: u16,
    pub(super) segments_count: usize,
    pub(super) segments: *mut Segment,
    pub(super) get_export: usize,
    pub(super) about: usize,
}

#[repr(C)]
pub(super) struct Segment {
    pub(super) id: usize,
    pub(super) slots_count: usize,
    pub(super) slots: *mut Slot,
}

/// `InitializeInjectionNvtxExtension`: non-zero where the tool is attached.
pub(super) type Initializer = unsafe extern "C" fn(*mut ModuleInfo) -> c_int;

type HeapRegister = unsafe extern "C" fn(*mut c_void, *const Heap) -> *mut c_void;
type HeapUnregister = unsafe extern "C" fn(*mut c_void, *mut c_void);
type RegionsRegister = unsafe extern "C" fn(*mut c_void, *const Pieces);
type RegionsUnregister = unsafe extern "C" fn(*mut c_void, *const References);

/// A checker that listens.
pub(in crate::cuda) struct Tool {
    domain: usize,
    heap_register: HeapRegister,
    heap_unregister: HeapUnregister,
    regions_register: RegionsRegister,
    regions_unregister: RegionsUnregister,
    /// Allocations with pieces in them, by where they start: the tool's handle, and how many pieces.
    heaps: Mutex<BTreeMap<u64, (usize, usize)>>,
}

/// The checker that is attached to this process, if one is. The driver has been initialized.
pub(in crate::cuda) fn tool() -> Option<&'static Tool> {
    static TOOL: OnceLock<Option<Tool>> = OnceLock::new();
    TOOL.get_or_init(|| {
        // SAFETY: this is the function's type, by NVTX's headers; the tool's functions are used from now on, and stay.
        unsafe {
            let initializer =
                *super::library()?.get::<Initializer>(b"InitializeInjectionNvtxExtension").ok()?;
            Tool::attach(super::core().map_or(0, |core| core.domain), initializer)
        }
    })
    .as_ref()
}

impl Tool {
    /// # Safety
    /// - The function is a tool's, of NVTX 3, and the domain is the same tool's, or 0.
    pub(super) unsafe fn attach(domain: usize, extension: Initializer) -> Option<Tool> {
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
                domain,
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
    pub(in crate::cuda) fn register(&self, allocation: &Range<u64>, at: u64, len: usize) {
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
    pub(in crate::cuda) fn unregister(&self, allocation: u64, at: u64) {
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
