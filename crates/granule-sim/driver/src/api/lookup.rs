//! `cuGetProcAddress`: finds this library's own functions by name.

use crate::code::Code;
use std::ffi::{CStr, CString, c_char, c_void};

/// Newest version of each function that has one, as programs built with a CUDA 12 header name it.
const VERSIONS: &[&str] = &["_v2", ""];

fn own_symbol(name: &CStr) -> *mut c_void {
    // SAFETY: `dladdr` fills the struct for an address of this library; its file name stays valid. The library is open
    // already, so that RTLD_NOLOAD gives a handle to it, and closing that handle leaves it open.
    unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(own_symbol as *const c_void, &mut info) == 0 {
            return std::ptr::null_mut();
        }
        let handle = libc::dlopen(info.dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD);
        if handle.is_null() {
            return std::ptr::null_mut();
        }
        let found = libc::dlsym(handle, name.as_ptr());
        libc::dlclose(handle);
        found
    }
}

fn find(symbol: *const c_char, function: *mut *mut c_void) -> u32 {
    if symbol.is_null() || function.is_null() {
        return Code::INVALID_VALUE.0;
    }
    // SAFETY: not null; the caller gives a zero-terminated name.
    let name = unsafe { CStr::from_ptr(symbol) }.to_string_lossy();
    let found = VERSIONS
        .iter()
        .filter_map(|version| CString::new(format!("{name}{version}")).ok())
        .map(|name| own_symbol(&name))
        .find(|at| !at.is_null());
    // SAFETY: not null; a place for one pointer.
    unsafe { function.write(found.unwrap_or(std::ptr::null_mut())) };
    if found.is_some() { 0 } else { Code::NOT_FOUND.0 }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetProcAddress(
    symbol: *const c_char,
    function: *mut *mut c_void,
    _version: i32,
    _flags: u64,
) -> u32 {
    find(symbol, function)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetProcAddress_v2(
    symbol: *const c_char,
    function: *mut *mut c_void,
    _version: i32,
    _flags: u64,
    status: *mut i32,
) -> u32 {
    let code = find(symbol, function);
    if !status.is_null() {
        // CU_GET_PROC_ADDRESS_SUCCESS, …_SYMBOL_NOT_FOUND.
        // SAFETY: not null; a place for one number.
        unsafe { status.write(i32::from(code != 0)) };
    }
    // "The function returns success, and the status says that nothing was found."
    if code == Code::NOT_FOUND.0 { 0 } else { code }
}
