//! Whether a real GPU is here, asked of the program that every CUDA run begins with: the probe.

use std::ffi::{c_int, c_uint};

use anyhow::{Context, Result, bail};

use super::binaries::{self, Binary};

/// A GPU, or why there is none.
pub(crate) enum Gpu {
    Here(String),
    None(String),
}

/// Tests of what needs NVIDIA's cuBLAS stand in modules of this name.
const CUBLAS: &str = "cublas::";
/// The oldest version of it that granule-device looks for.
const OLDEST_CUBLAS: c_int = 12;

/// Takes out the tests that a machine without cuBLAS cannot run; answers how many.
pub(crate) fn without_cublas(names: &mut Vec<String>) -> usize {
    if cublas_names(driver().unwrap_or(0) / 1000).iter().any(|name| is_cublas(name)) {
        return 0;
    }
    let all = names.len();
    names.retain(|name| !name.contains(CUBLAS));
    all - names.len()
}

/// What granule-device looks for, in its order, where the driver is of this major version of CUDA.
fn cublas_names(major: c_int) -> Vec<String> {
    let versions = (OLDEST_CUBLAS..=major.max(OLDEST_CUBLAS)).rev();
    versions.map(|version| format!("libcublas.so.{version}")).chain(["libcublas.so".to_owned()]).collect()
}

fn is_cublas(name: &str) -> bool {
    // SAFETY: this runs the initializers of what is named like NVIDIA's library in the system's library path; the symbol is only
    // looked up, as an address.
    unsafe {
        let library = libloading::Library::new(name);
        library.is_ok_and(|library| library.get::<*const ()>(b"cublasGemmEx").is_ok())
    }
}

/// The driver's version, 12040 for CUDA 12.4.
fn driver() -> Option<c_int> {
    let mut version = 0;
    // SAFETY: this runs the initializers of what is named like NVIDIA's driver in the system's library path; this is the function's
    // signature, and it may be called before cuInit.
    let code = unsafe {
        let library = libloading::Library::new("libcuda.so.1").ok()?;
        let get_version =
            library.get::<unsafe extern "C" fn(*mut c_int) -> c_uint>(b"cuDriverGetVersion").ok()?;
        let code = get_version(&raw mut version);
        // It is not unloaded: a driver may have begun threads.
        std::mem::forget(library);
        code
    };
    (code == 0).then_some(version)
}

/// The GPU's name, or an error where there is none.
pub(crate) fn require(binaries: &[Binary]) -> Result<String> {
    match find(binaries)? {
        Gpu::Here(name) => Ok(name),
        Gpu::None(why) => bail!("a GPU is required and none is here: {why}"),
    }
}

/// Asks the probe, which takes the simulated driver for no GPU.
pub(crate) fn find(binaries: &[Binary]) -> Result<Gpu> {
    let probe = binaries::program(binaries, "probe")?;
    let output = probe.command().arg("--name").output().context("the probe does not start")?;
    let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ok(match output.status.success() {
        true => Gpu::Here(said(&output.stdout)),
        false => Gpu::None(said(&output.stderr).trim_start_matches("error: ").to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cublas_of_the_drivers_own_version_is_asked_for_first() {
        assert_eq!(cublas_names(0), ["libcublas.so.12", "libcublas.so"]);
        assert_eq!(cublas_names(13), ["libcublas.so.13", "libcublas.so.12", "libcublas.so"]);
        assert!(!is_cublas("libc.so.6") && !is_cublas("libgranule_no_such.so"));
    }
}
