//! Ranges of time, told to a profiler such as Nsight Systems, which draws them above the work that was given meanwhile.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;

use super::{Core, VERSION, core};

pub(super) type RangePush = unsafe extern "C" fn(*mut c_void, *const Attributes) -> c_int;
pub(super) type RangePop = unsafe extern "C" fn(*mut c_void) -> c_int;

const UNSIGNED: i32 = 1;
const ASCII: i32 = 1;

/// `nvtxEventAttributes_t`.
#[repr(C)]
pub(super) struct Attributes {
    pub(super) version: u16,
    pub(super) size: u16,
    category: u32,
    color_kind: i32,
    color: u32,
    pub(super) payload_kind: i32,
    reserved: i32,
    pub(super) payload: u64,
    pub(super) message_kind: i32,
    pub(super) message: *const c_char,
}

/// A range of this thread's time, in the domain "granule", for the profiler that the process was started with: from when it is made
/// until it is dropped. Ranges of a thread end in the order opposite to that in which they began.
///
/// It is told through NVTX: a profiler names its library in `NVTX_INJECTION64_PATH`, which is looked at once. Where there is none,
/// a range is one load and nothing else. Where one is named, the first range loads and initializes the CUDA driver, if there is one,
/// before the profiler's library: some tools want it so. Needs no CUDA device.
///
/// ```
/// # use granule_device::NvtxRange;
/// let _layer = NvtxRange::new(c"layer", 3);
/// // … work that shows below "layer" …
/// ```
#[derive(Debug)]
#[must_use = "it ends when it is dropped"]
pub struct NvtxRange {
    core: Option<&'static Core>,
    /// It ends on the thread where it began.
    thread: PhantomData<*const ()>,
}

impl NvtxRange {
    /// Begins a range: what it is called, and a number that the profiler shows beside that.
    #[inline]
    pub fn new(name: &CStr, number: u64) -> NvtxRange {
        NvtxRange::of(core(), name, number)
    }

    #[inline]
    pub(super) fn of(core: Option<&'static Core>, name: &CStr, number: u64) -> NvtxRange {
        if let Some((core, (push, _))) = core.and_then(|core| Some((core, core.ranges?))) {
            let attributes = Attributes {
                version: VERSION,
                size: size_of::<Attributes>() as u16,
                category: 0,
                color_kind: 0,
                color: 0,
                payload_kind: UNSIGNED,
                reserved: 0,
                payload: number,
                message_kind: ASCII,
                message: name.as_ptr(),
            };
            // SAFETY: the tool's own domain and function; the description lives through the call.
            unsafe { push(core.domain(), &raw const attributes) };
        }
        NvtxRange { core, thread: PhantomData }
    }
}

impl Drop for NvtxRange {
    #[inline]
    fn drop(&mut self) {
        if let Some((core, (_, pop))) = self.core.and_then(|core| Some((core, core.ranges?))) {
            // SAFETY: as above; a range of this thread was begun.
            unsafe { pop(core.domain()) };
        }
    }
}
