//! Names and explanations of results. These calls cannot fail on purpose, and are not counted.

use crate::code::Code;
use std::ffi::{CStr, c_char};

fn describe(
    error: u32,
    to: *mut *const c_char,
    pick: impl Fn((&'static CStr, &'static CStr)) -> &'static CStr,
) -> u32 {
    if to.is_null() {
        return Code::INVALID_VALUE.0;
    }
    let text = Code(error).described().map(pick);
    // SAFETY: not null; the caller gives a place for one pointer.
    unsafe { to.write(text.map_or(std::ptr::null(), CStr::as_ptr)) };
    if text.is_some() { 0 } else { Code::INVALID_VALUE.0 }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(error: u32, name: *mut *const c_char) -> u32 {
    describe(error, name, |(name, _)| name)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: u32, text: *mut *const c_char) -> u32 {
    describe(error, text, |(_, text)| text)
}
