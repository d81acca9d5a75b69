//! The compilers of the CUDA kernels: pinned wheels in cargo's target folder.

use std::path::PathBuf;

use anyhow::Result;

use crate::wheels::Wheels;

const WHEELS: Wheels = Wheels {
    chore: "kernels",
    what: "the CUDA compilers",
    megabytes: 125,
    elsewhere: "the committed PTX in kernels/ptx runs anywhere",
    pins: &[
        // The baseline's compiler: the newest whose PTX drivers as old as CUDA 12.4's take.
        (
            "nvidia-cuda-nvrtc-cu12",
            "12.4.127",
            "a178759ebb095827bd30ef56598ec182b85547f1508941a3d560eb7ea1fbf338",
        ),
        // nvcc, ptxas; what nvcc calls; the headers that it includes by itself.
        ("nvidia-cuda-nvcc", "13.0.88", "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03"),
        ("nvidia-nvvm", "13.0.88", "c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0"),
        ("nvidia-cuda-crt", "13.0.88", "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4"),
        (
            "nvidia-cuda-runtime",
            "13.0.96",
            "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        ),
    ],
    programs: &["nvidia/cu13/bin", "nvidia/cu13/nvvm/bin"],
};

/// Where the compilers are.
pub(super) struct Toolchain {
    folder: PathBuf,
}

impl Toolchain {
    /// The compilers as pinned, fetched where they are not there yet.
    pub(super) fn ready() -> Result<Toolchain> {
        let folder = crate::target_dir()?.join("cuda-toolchain");
        WHEELS.ready(&folder)?;
        Ok(Toolchain { folder })
    }

    /// The NVRTC library.
    pub(super) fn nvrtc(&self) -> PathBuf {
        self.folder.join("nvidia/cuda_nvrtc/lib/libnvrtc.so.12")
    }

    /// A program of the toolkit.
    pub(super) fn tool(&self, name: &str) -> PathBuf {
        self.folder.join("nvidia/cu13/bin").join(name)
    }
}
