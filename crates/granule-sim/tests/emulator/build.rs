//! The builder: what it refuses and how it says so, and that it does nothing where nothing changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use granule_sim::emulator_build::{Error, Mode, build};

use crate::library::{Library, Shape, path};

fn write(folder: &Path, name: &str, content: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    path
}

#[test]
fn builds_only_what_changed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out with a space");
    let kernel = |by: u32| {
        format!(
            "#include \"granule_emulator_device.h\"\n#include \"by.cuh\"\n#define NAMED(x) add_##x\n\
             extern \"C\" __global__ void NAMED({by})(unsigned* to) {{ *to += BY; }}\n"
        )
    };
    let header = write(folder.path(), "by.cuh", "#define BY 1\n");
    let sources = [write(folder.path(), "one.cu", &kernel(1)), write(folder.path(), "two.cu", &kernel(2))];
    let includes = [folder.path().to_owned()];
    let again = || build(&sources, &includes, Mode::Plain, &out).unwrap_or_else(|error| panic!("{error}"));
    let modified = |name: &str| fs::metadata(out.join("plain").join(name)).unwrap().modified().unwrap();

    let library = again();
    let mut to = [0_u32];
    for name in ["add_1", "add_2"] {
        Library::open(&library).run(name, Shape::new(1, 1), &[(&mut to[..]).into()]).unwrap();
    }
    assert_eq!(to, [2]);
    let times =
        || (modified("one.o"), modified("two.o"), fs::metadata(&library).unwrap().modified().unwrap());
    let before = times();
    again();
    assert_eq!(times(), before, "nothing changed");

    write(folder.path(), "two.cu", &kernel(3));
    again();
    let after = times();
    assert!(after.0 == before.0 && after.1 > before.1 && after.2 > before.2, "one file changed");

    fs::write(&header, "#define BY 10\n").unwrap();
    again();
    let last = times();
    assert!(last.0 > after.0 && last.1 > after.1 && last.2 > after.2, "a header changed");

    // As a branch switch or a restored cache does it: other text, of a time before the objects'.
    write(folder.path(), "by.cuh", "#define BY 100\n");
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::options().write(true).open(&header).unwrap().set_modified(long_ago).unwrap();
    again();
    assert!(times().0 > last.0 && times().1 > last.1, "an older header is another one");
}

/// A folder in which the emulator's own objects are made already: they are the same wherever they lie.
fn half_built() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    fs::create_dir(&plain).unwrap();
    for made in fs::read_dir(path(Mode::Plain).with_file_name("plain")).unwrap() {
        let made = made.unwrap();
        if made.file_name().to_string_lossy().starts_with("emulator-") {
            fs::copy(made.path(), plain.join(made.file_name())).unwrap();
        }
    }
    folder
}

/// A kernel that adds `by`, alone in a file.
fn adds(folder: &Path, by: u32) -> [PathBuf; 1] {
    let content = format!(
        "#include \"granule_emulator_device.h\"\n\
         extern \"C\" __global__ void add(unsigned* to) {{ *to += {by}; }}\n"
    );
    [write(folder, "add.cu", &content)]
}

fn added(library: &Path) -> u32 {
    // A copy: the loader keeps what it has open under a name.
    let copy = tempfile::NamedTempFile::new().unwrap();
    fs::copy(library, copy.path()).unwrap();
    let mut to = [0_u32];
    Library::open(copy.path()).run("add", Shape::new(1, 1), &[(&mut to[..]).into()]).unwrap();
    to[0]
}

#[test]
fn a_library_is_linked_again_where_an_object_is_another_whatever_the_times_say() {
    let folder = half_built();
    let make = |by| build(&adds(folder.path(), by), &[], Mode::Plain, folder.path()).unwrap();
    let library = make(1);
    assert_eq!(added(&library), 1);
    // As when a clock was set back.
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
    fs::File::options().write(true).open(&library).unwrap().set_modified(later).unwrap();
    assert_eq!(added(&make(2)), 2);
}

#[test]
fn an_object_whose_making_was_cut_short_is_made_again() {
    let folder = half_built();
    let make = |sources: &[PathBuf]| build(sources, &[], Mode::Plain, folder.path());
    make(&adds(folder.path(), 1)).unwrap();
    let object = folder.path().join("plain").join("add.o");
    make(&[write(folder.path(), "add.cu", "extern \"C\" __global__ void add() { nonsense; }\n")])
        .unwrap_err();
    // What a compiler leaves that is killed halfway.
    fs::write(&object, "half an object").unwrap();
    assert_eq!(added(&make(&adds(folder.path(), 1)).unwrap()), 1, "the source is what it was before");
}

#[test]
fn another_compiler_makes_everything_anew() {
    let folder = half_built();
    build(&adds(folder.path(), 1), &[], Mode::Plain, folder.path()).unwrap();
    let object = folder.path().join("plain").join("add.o");
    let modified = || fs::metadata(&object).unwrap().modified().unwrap();
    let real = Command::new("sh").args(["-c", "command -v g++"]).output().unwrap().stdout;
    let script = format!(
        "#!/bin/sh\n[ \"$1\" = -dumpfullversion ] && echo 99.1.0 && exit\nexec {} \"$@\"\n",
        String::from_utf8(real).unwrap().trim()
    );
    let bin = folder.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let compiler = write(&bin, "g++", &script);
    fs::set_permissions(&compiler, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let others = std::env::var("PATH").unwrap();
    for again in [false, true] {
        let before = modified();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "build::with_another_compiler"])
            .env("PATH", format!("{}:{others}", bin.display()))
            .env("GRANULE_TEST_FOLDER", folder.path())
            .status()
            .unwrap();
        assert!(status.success());
        assert_eq!(modified() > before, !again);
    }
}

#[test]
#[ignore = "needs another g++: run by another_compiler_makes_everything_anew"]
fn with_another_compiler() {
    let folder = PathBuf::from(std::env::var("GRANULE_TEST_FOLDER").unwrap());
    build(&adds(&folder, 1), &[], Mode::Plain, &folder).unwrap();
}

#[test]
fn files_of_one_name_keep_apart() {
    let folder = tempfile::tempdir().unwrap();
    let sources: Vec<PathBuf> = ["a", "b"]
        .iter()
        .map(|name| {
            let inner = folder.path().join(name);
            fs::create_dir(&inner).unwrap();
            // The same helper with another body, and a shared variable of the same name.
            let content = format!(
                "#include \"granule_emulator_device.h\"\n__device__ int helper() {{ return '{name}'; }}\n\
                 extern \"C\" __global__ void get_{name}(int* to) {{ __shared__ int value; value = helper(); *to = value; }}\n"
            );
            write(&inner, "same.cu", &content)
        })
        .collect();
    let library =
        build(&sources, &[], Mode::Checked, folder.path()).unwrap_or_else(|error| panic!("{error}"));
    for (name, expected) in [("get_a", b'a'), ("get_b", b'b')] {
        let mut to = [0_u32];
        Library::open(&library).run(name, Shape::new(1, 1), &[(&mut to[..]).into()]).unwrap();
        assert_eq!(to, [u32::from(expected)]);
    }
}

#[test]
fn says_what_does_not_compile() {
    let folder = tempfile::tempdir().unwrap();
    let source = write(folder.path(), "broken.cu", "extern \"C\" __global__ void broken() { nonsense; }\n");
    let error = build(&[source], &[], Mode::Plain, folder.path()).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Compiler { .. }), "{text}");
    assert!(text.contains("broken.cu") && text.contains("nonsense"), "{text}");
}

#[test]
fn says_which_kernel_cannot_be_found() {
    let folder = tempfile::tempdir().unwrap();
    let source = write(
        folder.path(),
        "mangled.cu",
        "__global__ void __launch_bounds__(32) mangled(int* to) { *to = 1; }\n",
    );
    let text = build(&[source], &[], Mode::Plain, folder.path()).unwrap_err().to_string();
    assert!(text.contains("mangled.cu: kernel mangled must be `extern \"C\" __global__`"), "{text}");
}

#[test]
fn says_what_to_install() {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "build::without_a_compiler"])
        .env("PATH", "")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(child.status.success() && text.contains("apt install g++"), "{text}");
}

#[test]
#[ignore = "needs an empty PATH: run by says_what_to_install"]
fn without_a_compiler() {
    let folder = tempfile::tempdir().unwrap();
    let error = build(&[], &[], Mode::Plain, folder.path()).unwrap_err();
    assert!(matches!(error, Error::NoCompiler));
    println!("{error}");
}
