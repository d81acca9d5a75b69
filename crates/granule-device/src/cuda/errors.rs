//! What the driver's codes mean, in our own words: nothing here calls the driver, which may be missing or broken.

use crate::Error;

pub(super) const INVALID_VALUE: u32 = 1;
pub(super) const OUT_OF_MEMORY: u32 = 2;
pub(super) const STUB_LIBRARY: u32 = 34;
pub(super) const NO_DEVICE: u32 = 100;
pub(super) const INVALID_DEVICE: u32 = 101;
pub(super) const INVALID_IMAGE: u32 = 200;
pub(super) const NOT_MAPPED: u32 = 211;
pub(super) const NOT_FOUND: u32 = 500;
pub(super) const NOT_READY: u32 = 600;
pub(super) const PEER_ACCESS_ALREADY_ENABLED: u32 = 704;
pub(super) const NOT_PERMITTED: u32 = 800;
pub(super) const NOT_SUPPORTED: u32 = 801;
/// Answers where a further context is not to be had, however much memory there is: the device is somebody's own, this process may not,
/// the driver does not, MPS serves no more clients or connections.
pub(super) const MAKES_NO_CONTEXT: [u32; 5] = [46, NOT_PERMITTED, NOT_SUPPORTED, 808, 809];

/// Code, name as in cuda.h, and what it means for the person who must act.
const TABLE: &[(u32, &str, &str)] = &[
    (1, "CUDA_ERROR_INVALID_VALUE", "an argument is out of range"),
    (2, "CUDA_ERROR_OUT_OF_MEMORY", "the device, or the host memory the driver needs, is full"),
    (3, "CUDA_ERROR_NOT_INITIALIZED", "the driver was not initialized"),
    (4, "CUDA_ERROR_DEINITIALIZED", "the driver is shutting down with the process"),
    (
        34,
        "CUDA_ERROR_STUB_LIBRARY",
        "the library that was loaded is the toolkit's stub for linking; put the real driver's folder before the toolkit's in the library path",
    ),
    (36, "CUDA_ERROR_CALL_REQUIRES_NEWER_DRIVER", "the installed driver lacks this call: update it"),
    (46, "CUDA_ERROR_DEVICE_UNAVAILABLE", "another process has the device for itself, or it is being reset"),
    (100, "CUDA_ERROR_NO_DEVICE", "the driver sees no device; CUDA_VISIBLE_DEVICES may hide them"),
    (101, "CUDA_ERROR_INVALID_DEVICE", "there is no device of that number"),
    (102, "CUDA_ERROR_DEVICE_NOT_LICENSED", "the device needs a licence (vGPU)"),
    (200, "CUDA_ERROR_INVALID_IMAGE", "the module is neither PTX nor a cubin that the driver knows"),
    (201, "CUDA_ERROR_INVALID_CONTEXT", "the context is gone, or none is current"),
    (205, "CUDA_ERROR_MAP_FAILED", "the memory could not be mapped"),
    (206, "CUDA_ERROR_UNMAP_FAILED", "the memory could not be unmapped"),
    (208, "CUDA_ERROR_ALREADY_MAPPED", "something is mapped there already"),
    (209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "the module holds nothing for this device's compute capability"),
    (211, "CUDA_ERROR_NOT_MAPPED", "nothing is mapped there"),
    (214, "CUDA_ERROR_ECC_UNCORRECTABLE", "the device's memory is damaged: see nvidia-smi -q -d ECC"),
    (216, "CUDA_ERROR_CONTEXT_ALREADY_IN_USE", "another thread uses the context"),
    (217, "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED", "the two devices cannot reach each other's memory"),
    (218, "CUDA_ERROR_INVALID_PTX", "the driver's compiler refused the PTX"),
    (220, "CUDA_ERROR_NVLINK_UNCORRECTABLE", "the NVLink connection failed"),
    (
        221,
        "CUDA_ERROR_JIT_COMPILER_NOT_FOUND",
        "the driver's PTX compiler (libnvidia-ptxjitcompiler) is missing",
    ),
    (222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION", "the PTX is newer than the driver: update the driver"),
    (223, "CUDA_ERROR_JIT_COMPILATION_DISABLED", "CUDA_DISABLE_PTX_JIT forbids compiling PTX"),
    (300, "CUDA_ERROR_INVALID_SOURCE", "the module's source is not valid"),
    (302, "CUDA_ERROR_SHARED_OBJECT_SYMBOL_NOT_FOUND", "a library that the driver needs lacks a symbol"),
    (303, "CUDA_ERROR_SHARED_OBJECT_INIT_FAILED", "a library that the driver needs failed to start"),
    (304, "CUDA_ERROR_OPERATING_SYSTEM", "the operating system refused a call of the driver's"),
    (400, "CUDA_ERROR_INVALID_HANDLE", "a handle is not, or no longer, valid"),
    (401, "CUDA_ERROR_ILLEGAL_STATE", "something is not in the state that the call needs"),
    (500, "CUDA_ERROR_NOT_FOUND", "no symbol of that name"),
    (600, "CUDA_ERROR_NOT_READY", "work is still running"),
    (
        700,
        "CUDA_ERROR_ILLEGAL_ADDRESS",
        "a kernel or copy touched memory that is not there; the context is lost and the process has to end",
    ),
    (
        701,
        "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
        "the launch asks for more registers or shared memory than a multiprocessor has: use smaller blocks",
    ),
    (
        702,
        "CUDA_ERROR_LAUNCH_TIMEOUT",
        "a kernel ran longer than the display's time limit; the context is lost",
    ),
    (704, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "access between the two devices is on already"),
    (705, "CUDA_ERROR_PEER_ACCESS_NOT_ENABLED", "access between the two devices is off"),
    (709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "the context was destroyed by somebody else"),
    (710, "CUDA_ERROR_ASSERT", "an assertion in a kernel failed; the context is lost"),
    (711, "CUDA_ERROR_TOO_MANY_PEERS", "the device has no room for another peer"),
    (712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "the host memory is registered already"),
    (713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "the host memory is not registered"),
    (714, "CUDA_ERROR_HARDWARE_STACK_ERROR", "a kernel's call stack broke; the context is lost"),
    (
        715,
        "CUDA_ERROR_ILLEGAL_INSTRUCTION",
        "a kernel met an instruction the device lacks; the context is lost",
    ),
    (716, "CUDA_ERROR_MISALIGNED_ADDRESS", "a kernel made a misaligned access; the context is lost"),
    (
        717,
        "CUDA_ERROR_INVALID_ADDRESS_SPACE",
        "a kernel used an address of the wrong kind; the context is lost",
    ),
    (718, "CUDA_ERROR_INVALID_PC", "a kernel's program counter left its code; the context is lost"),
    (719, "CUDA_ERROR_LAUNCH_FAILED", "a kernel failed; the context is lost and the process has to end"),
    (
        720,
        "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE",
        "the cooperative launch does not fit on the device at once",
    ),
    (800, "CUDA_ERROR_NOT_PERMITTED", "not allowed here, for instance in a function that runs on a stream"),
    (801, "CUDA_ERROR_NOT_SUPPORTED", "the device or driver does not have this"),
    (
        802,
        "CUDA_ERROR_SYSTEM_NOT_READY",
        "the system is not ready: on NVSwitch machines start nvidia-fabricmanager",
    ),
    (
        803,
        "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        "libcuda and the kernel module are of different versions: reboot or reload the module",
    ),
    (
        804,
        "CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE",
        "the forward-compatibility libcuda does not support this device: remove it from the library path",
    ),
    (805, "CUDA_ERROR_MPS_CONNECTION_FAILED", "the MPS server cannot be reached"),
    (807, "CUDA_ERROR_MPS_SERVER_NOT_READY", "the MPS server is not ready"),
    (808, "CUDA_ERROR_MPS_MAX_CLIENTS_REACHED", "the MPS server has no room for another process"),
    (900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "a stream that is being captured cannot do this"),
    (901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "something that a capture cannot hold has spoilt it"),
    (902, "CUDA_ERROR_STREAM_CAPTURE_MERGE", "two captures would be merged"),
    (903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "the capture was not begun on this stream"),
    (904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED", "another stream joined the capture and was not joined back"),
    (905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "the capture would depend on work outside it"),
    (906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "the default stream would be drawn into a capture"),
    (907, "CUDA_ERROR_CAPTURED_EVENT", "the event belongs to a capture"),
    (908, "CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD", "the capture was begun by another thread"),
    (909, "CUDA_ERROR_TIMEOUT", "the driver gave up waiting"),
    (999, "CUDA_ERROR_UNKNOWN", "the driver does not say why; its kernel module may be missing (see dmesg)"),
];

/// The driver's answer to `call` as a result.
pub(super) fn check(call: &'static str, code: u32) -> Result<(), Error> {
    if code == 0 { Ok(()) } else { Err(error(call, code)) }
}

pub(super) fn error(call: &'static str, code: u32) -> Error {
    let known = TABLE.iter().find(|&&(known, ..)| known == code);
    let (name, explanation) = known.map_or(
        ("an error", "cuda.h of a newer toolkit knows the code, this version of granule-device does not"),
        |&(_, name, explanation)| (name, explanation),
    );
    Error::Driver { call, code, name, explanation }
}

/// The driver's code, where the error is one of the driver's.
pub(super) fn code(error: &Error) -> Option<u32> {
    match error {
        Error::Driver { code, .. } => Some(*code),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_said_in_words() {
        assert!(TABLE.is_sorted_by_key(|&(code, ..)| code));
        let said = error("cuMemCreate", OUT_OF_MEMORY).to_string();
        assert_eq!(
            said,
            "cuMemCreate failed: CUDA_ERROR_OUT_OF_MEMORY (2): the device, or the host memory the driver needs, is full"
        );
        assert!(error("cuInit", 12345).to_string().contains("an error (12345)"));
        assert_eq!(code(&error("cuInit", NO_DEVICE)), Some(100));
        assert!(check("cuInit", 0).is_ok());
    }
}
