//! Modules, functions and launches.

use super::enter::{State, driver, put, take};
use crate::code::Code;
use crate::emulator::Shape;
use crate::model::{Caller, Result};
use std::ffi::{CStr, c_char, c_void};

/// The bytes of a module image up to its zero byte; of a binary image only the mark that says what it is.
///
/// # Safety
/// `image` is null or points to a zero-terminated text or to a binary image.
unsafe fn image(image: *const c_void) -> Result<Vec<u8>> {
    if image.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: every kind of image has at least four bytes, or ends with a zero before that.
    let text = unsafe { CStr::from_ptr(image.cast()) };
    Ok(text.to_bytes().to_vec())
}

/// # Safety
/// `name` is null or zero-terminated.
unsafe fn name<'a>(name: *const c_char) -> Result<&'a str> {
    if name.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: not null, and the caller's promise.
    unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| Code::NOT_FOUND)
}

/// Copies the parameters of a launch.
///
/// # Safety
/// `parameters` points to as many pointers as the function has parameters, each to a value of its size.
unsafe fn values(
    state: &mut State,
    caller: &Caller,
    function: u64,
    parameters: *const *const u8,
) -> Result<Vec<Vec<u8>>> {
    let sizes = state.sim.parameter_sizes(caller, function)?;
    if parameters.is_null() && !sizes.is_empty() {
        return Err(Code::INVALID_VALUE);
    }
    let value = |(n, size): (usize, &u32)| {
        // SAFETY: the caller's promise, for each of the function's parameters.
        unsafe {
            let at = take(parameters.add(n))?;
            if at.is_null() {
                return Err(Code::INVALID_VALUE);
            }
            Ok(std::slice::from_raw_parts(at, *size as usize).to_vec())
        }
    };
    sizes.iter().enumerate().map(value).collect()
}

/// `CUlaunchConfig`.
#[repr(C)]
pub struct LaunchConfig {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    stream: u64,
    attributes: *const c_void,
    attribute_count: u32,
}

driver! {
    cuModuleLoadData(module: *mut u64, data: *const c_void) = Initialized, |state, caller| {
        // SAFETY: the caller's pointers.
        unsafe {
            let loaded = state.sim.load_module(caller, &image(data)?)?;
            put(module, loaded)
        }
    };

    cuModuleLoadDataEx(module: *mut u64, data: *const c_void, _count: u32, _options: *const i32, _values: *const *const c_void)
        = Initialized, |state, caller| {
        // SAFETY: the caller's pointers.
        unsafe {
            let loaded = state.sim.load_module(caller, &image(data)?)?;
            put(module, loaded)
        }
    };

    cuModuleLoad(module: *mut u64, path: *const c_char) = Initialized, |state, caller| {
        // SAFETY: the caller's pointers.
        unsafe {
            let mut bytes = std::fs::read(name(path)?).map_err(|_| Code::FILE_NOT_FOUND)?;
            if bytes.last() == Some(&0) {
                bytes.pop();
            }
            let loaded = state.sim.load_module(caller, &bytes)?;
            put(module, loaded)
        }
    };

    cuModuleUnload(module: u64) = Release, |state, caller| state.sim.unload_module(caller, module);

    cuModuleGetFunction(function: *mut u64, module: u64, text: *const c_char) = Initialized, |state, caller| {
        // SAFETY: the caller's pointers.
        unsafe {
            let found = state.sim.get_function(caller, module, name(text)?)?;
            put(function, found)
        }
    };

    cuModuleGetGlobal_v2(_pointer: *mut u64, _len: *mut usize, _module: u64, _name: *const c_char) = Initialized,
    |state, caller| {
        // Variables of a module are not simulated: an emulated kernel has its own, in its library.
        Err(Code::NOT_FOUND)
    };

    cuModuleGetLoadingMode(mode: *mut i32) = Initialized, |state, caller| {
        // SAFETY: the caller's pointer.
        unsafe { put(mode, 2) }
    };

    cuFuncGetAttribute(value: *mut i32, attribute: i32, function: u64) = Initialized, |state, caller| {
        let found = state.sim.function_attribute(caller, function, attribute)?;
        // SAFETY: the caller's pointer.
        unsafe { put(value, found) }
    };

    cuFuncSetAttribute(function: u64, attribute: i32, value: i32) = Initialized, |state, caller| {
        state.sim.set_function_attribute(caller, function, attribute, value)
    };

    cuFuncSetCacheConfig(function: u64, _config: i32) = Initialized, |state, caller| {
        state.sim.parameter_sizes(caller, function).map(|_| ())
    };

    cuFuncGetParamInfo(function: u64, index: usize, offset: *mut usize, size: *mut usize) = Initialized,
    |state, caller| {
        let sizes = state.sim.parameter_sizes(caller, function)?;
        let mut at = 0;
        for (n, &bytes) in sizes.iter().enumerate() {
            let bytes = bytes as usize;
            at = usize::next_multiple_of(at, bytes.clamp(1, 8).next_power_of_two());
            if n == index {
                // SAFETY: the caller's pointers; the size's may be null.
                return unsafe {
                    put(offset, at).and_then(|()| if size.is_null() { Ok(()) } else { put(size, bytes) })
                };
            }
            at += bytes;
        }
        Err(Code::INVALID_VALUE)
    };

    cuLaunchKernel(
        function: u64,
        grid_x: u32, grid_y: u32, grid_z: u32,
        block_x: u32, block_y: u32, block_z: u32,
        shared: u32, stream: u64, parameters: *const *const u8, extra: *const *const c_void
    ) = Initialized, |state, caller| {
        if !extra.is_null() {
            return Err(Code::NOT_SUPPORTED);
        }
        let shape = Shape { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], shared };
        let stream = state.sim.stream_of(caller, stream)?;
        // SAFETY: the caller's promise to a launch.
        let values = unsafe { values(state, caller, function, parameters) }?;
        state.sim.launch(caller, stream, function, shape, values, false)
    };

    cuLaunchCooperativeKernel(
        function: u64,
        grid_x: u32, grid_y: u32, grid_z: u32,
        block_x: u32, block_y: u32, block_z: u32,
        shared: u32, stream: u64, parameters: *const *const u8
    ) = Initialized, |state, caller| {
        let shape = Shape { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], shared };
        let stream = state.sim.stream_of(caller, stream)?;
        // SAFETY: the caller's promise to a launch.
        let values = unsafe { values(state, caller, function, parameters) }?;
        state.sim.launch(caller, stream, function, shape, values, true)
    };

    cuLaunchKernelEx(config: *const LaunchConfig, function: u64, parameters: *const *const u8, extra: *const *const c_void)
        = Initialized, |state, caller| {
        // SAFETY: the caller's pointer.
        let config = unsafe { config.as_ref() }.ok_or(Code::INVALID_VALUE)?;
        // Attributes change how a launch is placed (clusters, programmatic order): none is simulated.
        if !extra.is_null() || config.attribute_count > 0 && !config.attributes.is_null() {
            return Err(Code::NOT_SUPPORTED);
        }
        let shape = Shape { grid: config.grid, block: config.block, shared: config.shared };
        let stream = state.sim.stream_of(caller, config.stream)?;
        // SAFETY: the caller's promise to a launch.
        let values = unsafe { values(state, caller, function, parameters) }?;
        state.sim.launch(caller, stream, function, shape, values, false)
    };
}
