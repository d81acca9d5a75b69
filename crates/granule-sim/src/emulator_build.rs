//! Builds libraries of emulated kernels: every `.cu` through the host's g++, together with the emulator beside this crate.
//!
//! One library for each [`Mode`]. What is up to date is left alone, the rest is compiled on all cores. For each `.cu` a
//! small C++ file is generated that includes it in a namespace of its own (helpers of two files may share names) and
//! registers each `extern "C" __global__` function that the preprocessor shows.

use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// What a library of emulated kernels is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Optimized; sees barriers, warp intrinsics and faults.
    Plain,
    /// Every load and store is seen: races, uninitialized shared memory, alignment, and the caller's hook.
    Checked,
    /// Under AddressSanitizer. A process that loads it needs `LD_PRELOAD` set to [`address_sanitizer`]'s answer.
    Asan,
}

impl Mode {
    /// The library's file name.
    pub fn library(self) -> &'static str {
        match self {
            Self::Plain => "libgranule_emulated.so",
            Self::Checked => "libgranule_emulated_checked.so",
            Self::Asan => "libgranule_emulated_asan.so",
        }
    }

    fn folder(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Checked => "checked",
            Self::Asan => "asan",
        }
    }

    /// Flags for both the emulator and the kernels.
    fn define(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &[],
            Self::Checked => &["-DGRANULE_EMULATED_CHECKED"],
            Self::Asan => &["-DGRANULE_EMULATED_ASAN"],
        }
    }

    /// Flags for the kernels alone. The checked build keeps the compiler from reading what the source does not read (a
    /// load that is hoisted out of a condition would look like an access of the kernel), and from taking a vector apart
    /// before its load is seen (the parts need less alignment than the whole).
    fn kernel_flags(self) -> &'static [&'static str] {
        match self {
            Self::Plain => &["-O2"],
            Self::Checked => &[
                "-O1",
                "-fsanitize=thread",
                "--param=tsan-instrument-func-entry-exit=0",
                "--param=tsan-distinguish-volatile=1",
                "-fno-builtin-memcpy",
                "-fno-builtin-memmove",
                "-fno-builtin-memset",
                "-fno-tree-loop-distribute-patterns",
                "-fno-tree-sra",
                "-fno-tree-loop-im",
                "-fno-if-conversion",
                "-fno-tree-loop-if-convert",
            ],
            Self::Asan => &["-O1", "-fsanitize=address", "-fno-omit-frame-pointer"],
        }
    }
}

/// Why a library was not built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no g++.
    #[error("emulating kernels needs a C++20 compiler: apt install g++ (12 or later)")]
    NoCompiler,
    /// g++ refused a file.
    #[error("g++ failed on {}:\n{output}", file.display())]
    Compiler {
        /// The `.cu` or `.cpp` file, or the library.
        file: PathBuf,
        /// What g++ wrote.
        output: String,
    },
    /// A kernel that no driver call could find.
    #[error("{}: kernel {name} must be `extern \"C\" __global__`: kernels are found by their plain name", file.display())]
    NotExternC {
        /// The `.cu` file.
        file: PathBuf,
        /// The kernel.
        name: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Compiles the kernels of `sources` and links them with the emulator into `folder`, where objects are kept too.
/// `includes` are searched for headers. Answers the library's path.
///
/// # Errors
/// No compiler, a file that does not compile, a kernel that is not `extern "C"`, a file that cannot be read or written.
pub fn build(sources: &[PathBuf], includes: &[PathBuf], mode: Mode, folder: &Path) -> Result<PathBuf, Error> {
    let objects = folder.join(mode.folder());
    fs::create_dir_all(&objects).map_err(|source| Error::File { path: objects.clone(), source })?;
    // Two processes that want the same library take turns; the second finds it up to date.
    let lock = objects.join("lock");
    let locked = fs::File::create(&lock).and_then(|file| file.lock().map(|()| file));
    let _locked = locked.map_err(|source| Error::File { path: lock, source })?;
    let version = run(Command::new("g++").arg("-dumpfullversion"), Path::new("g++"))?;
    let mut units = emulator_units(&objects, mode)?;
    let stem = |source: &PathBuf| source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    for (i, source) in sources.iter().enumerate() {
        // Files of one name in two folders must not share an object, nor the name by which shared variables are found.
        let same = sources[..i].iter().filter(|other| stem(other) == stem(source)).count();
        let name = if same == 0 { stem(source) } else { format!("{}-{}", stem(source), same + 1) };
        units.push(kernel_unit(source, &name, includes, &objects, mode));
    }
    // The longest first: the emulator's files are short.
    units.reverse();

    let next = AtomicUsize::new(0);
    let done = Mutex::new(Ok(()));
    let workers = thread::available_parallelism().map_or(1, usize::from).min(units.len());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = unit.make(&version) {
                        next.store(units.len(), Ordering::Relaxed);
                        *done.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Err(error);
                    }
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())?;

    let library = folder.join(mode.library());
    let objects: Vec<PathBuf> = units.into_iter().map(|unit| unit.object).collect();
    link(&objects, mode, &version, &library)?;
    Ok(library)
}

/// What `LD_PRELOAD` must name where a library of [`Mode::Asan`] is loaded.
///
/// # Errors
/// No compiler.
pub fn address_sanitizer() -> Result<PathBuf, Error> {
    let name = run(Command::new("g++").arg("-print-file-name=libasan.so"), Path::new("libasan.so"))?;
    Ok(PathBuf::from(name.trim()))
}

/// The folder of the emulator's own sources.
fn emulator() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("emulator")
}

/// One object file and how it is made.
struct Unit {
    source: PathBuf,
    object: PathBuf,
    /// Arguments of g++ but for the file's own.
    flags: Vec<String>,
    /// The source is a `.cu`: what is compiled is generated from it.
    kernels: bool,
}

fn common_flags(mode: Mode) -> Vec<String> {
    let flags = [
        "-std=c++20",
        // Version 4: binutils' addr2line takes the first included file of version 5 for the file itself.
        "-gdwarf-4",
        "-g1",
        "-fPIC",
        "-fvisibility=hidden",
        "-fno-exceptions",
        "-fno-rtti",
        "-ffp-contract=off",
        "-fno-strict-aliasing",
        "-fno-gnu-unique",
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",
        "-Wno-unused-function",
    ];
    let include = format!("-I{}", emulator().join("include").display());
    flags.iter().chain(mode.define()).map(|flag| (*flag).to_owned()).chain([include]).collect()
}

fn emulator_units(objects: &Path, mode: Mode) -> Result<Vec<Unit>, Error> {
    let folder = emulator().join("src");
    let unreadable = |source| Error::File { path: folder.clone(), source };
    let mut units = Vec::new();
    for entry in fs::read_dir(&folder).map_err(unreadable)? {
        let source = entry.map_err(unreadable)?.path();
        let (Some(stem), Some("cpp")) = (source.file_stem(), source.extension().and_then(|it| it.to_str()))
        else {
            continue;
        };
        if stem == "watch" && mode != Mode::Checked {
            continue;
        }
        let mut flags = common_flags(mode);
        flags.push("-O2".to_owned());
        let object = objects.join(format!("emulator-{}.o", stem.to_string_lossy()));
        units.push(Unit { source, object, flags, kernels: false });
    }
    units.sort_by(|a, b| a.source.cmp(&b.source));
    Ok(units)
}

fn kernel_unit(source: &Path, name: &str, includes: &[PathBuf], objects: &Path, mode: Mode) -> Unit {
    let mut flags = common_flags(mode);
    flags.extend(mode.kernel_flags().iter().map(|flag| (*flag).to_owned()));
    flags.push("-DGRANULE_EMULATED".to_owned());
    flags.push(format!("-I{}", emulator().join("src").display()));
    flags.extend(includes.iter().map(|include| format!("-I{}", include.display())));
    Unit { source: source.to_owned(), object: objects.join(format!("{name}.o")), flags, kernels: true }
}

impl Unit {
    fn make(&self, version: &str) -> Result<(), Error> {
        let command = format!("g++ {version}{}", self.flags.join("\n"));
        if self.is_up_to_date(&command) {
            return Ok(());
        }
        // What is written from here on is nothing that was made before, whatever ends this process.
        let made_of = self.object.with_extension("made-of");
        if made_of.exists() {
            fs::remove_file(&made_of).map_err(|source| Error::File { path: made_of.clone(), source })?;
        }
        let compiled = if self.kernels { self.generate()? } else { self.source.clone() };
        let dependencies = self.object.with_extension("d");
        let mut compiler = Command::new("g++");
        compiler.args(&self.flags).arg("-MD").arg("-MF").arg(&dependencies).arg("-c").arg(&compiled);
        run(compiler.arg("-o").arg(&self.object), &self.source)?;
        write(&made_of, &self.made_of(&command).unwrap_or_default())
    }

    /// The same compiler and flags as last time, and the same text in every file that went into the object. Times of files say
    /// nothing: a branch switch or a restored cache puts old sources beside new objects.
    fn is_up_to_date(&self, command: &str) -> bool {
        let made_of = fs::read_to_string(self.object.with_extension("made-of"));
        self.object.exists() && made_of.is_ok_and(|then| self.made_of(command).is_some_and(|now| now == then))
    }

    /// The flags, and a hash of each file that the compiler says it read; `None` where it said nothing yet, or one is gone.
    fn made_of(&self, command: &str) -> Option<String> {
        let rule = fs::read_to_string(self.object.with_extension("d")).ok()?;
        let needed = rule.split_once(": ")?.1.replace("\\\n", " ").replace("\\ ", "\0");
        let mut text = command.to_owned();
        for path in needed.split_ascii_whitespace().map(|path| path.replace('\0', " ")) {
            text += &format!("\n{path} {:016x}", hash(Path::new(&path))?);
        }
        Some(text)
    }

    /// Writes the C++ file for a `.cu`; answers its path.
    fn generate(&self) -> Result<PathBuf, Error> {
        let mut compiler = Command::new("g++");
        compiler.args(&self.flags).args(["-DGRANULE_EMULATED_SCAN", "-E", "-P", "-x", "c++"]);
        let text =
            run(compiler.arg("-include").arg("granule_emulator_device.h").arg(&self.source), &self.source)?;
        let mut registrations = String::new();
        for name in kernels_in(&text).map_err(|name| Error::NotExternC { file: self.source.clone(), name })? {
            registrations += &format!("GRANULE_EMU_KERNEL({name})\n");
        }
        let source = fs::canonicalize(&self.source)
            .map_err(|source| Error::File { path: self.source.clone(), source })?;
        let generated = self.object.with_extension("emulated.cpp");
        let content = format!(
            "// Generated: the kernels of one file, and their names.\n#include \"granule_emulator_device.h\"\n\
             #include \"register.h\"\nnamespace {{\n#include \"{}\"\n}}\n{registrations}",
            source.display()
        );
        write(&generated, &content)?;
        Ok(generated)
    }
}

/// Names of the kernels in a preprocessed file, in which a marker stands for `__global__`. A template is no kernel; its
/// instances are called from kernels. The error is the name of a kernel that is not `extern "C"`.
fn kernels_in(text: &str) -> Result<BTreeSet<String>, String> {
    let mut names = BTreeSet::new();
    let mut pieces = text.split("__granule_emulated_kernel__");
    let mut before = pieces.next().unwrap_or_default();
    for after in pieces {
        let declaration = before.rsplit([';', '{', '}']).next().unwrap_or_default();
        let head = after.split('{').next().unwrap_or_default();
        // The name stands before the first parenthesis that is not an attribute's.
        let mut rest = head;
        let name = loop {
            let Some((left, right)) = rest.split_once('(') else { break None };
            let word =
                left.trim_end().rsplit(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
            if word != "__attribute__" && word != "alignas" {
                break Some(word.to_owned());
            }
            let mut depth = 1;
            let end = right.find(|c| {
                depth += i32::from(c == '(') - i32::from(c == ')');
                depth == 0
            });
            rest = end.map_or("", |end| &right[end + 1..]);
        };
        if let Some(name) = name
            && !declaration.contains("template")
        {
            if !declaration.contains("extern \"C\"") {
                return Err(name);
            }
            names.insert(name);
        }
        before = after;
    }
    Ok(names)
}

/// A hash of a file's bytes; `None` where it cannot be read.
fn hash(path: &Path) -> Option<u64> {
    let mut hash = DefaultHasher::new();
    fs::read(path).ok()?.hash(&mut hash);
    Some(hash.finish())
}

/// Links into a new file and puts it in place, so that a process that has the old one loaded keeps it; unless it was
/// made of objects with these very bytes.
fn link(objects: &[PathBuf], mode: Mode, version: &str, library: &Path) -> Result<(), Error> {
    let list = library.with_extension("made-of");
    let mut made_of = format!("g++ {version}");
    for object in objects {
        let hash = hash(object).unwrap_or_default();
        made_of += &format!("{} {hash:016x}\n", object.display());
    }
    if library.exists() && fs::read_to_string(&list).is_ok_and(|then| then == made_of) {
        return Ok(());
    }
    let fresh = library.with_extension(format!("new-{}", std::process::id()));
    let mut compiler = Command::new("g++");
    compiler.args(["-shared", "-Wl,-z,nodelete"]);
    compiler.arg(if mode == Mode::Asan { "-fsanitize=address" } else { "-Wl,-z,defs" });
    run(compiler.args(objects).arg("-o").arg(&fresh), library)?;
    fs::rename(&fresh, library).map_err(|source| Error::File { path: library.to_owned(), source })?;
    write(&list, &made_of)
}

/// Runs a compiler that works on `file`; answers its standard output.
fn run(command: &mut Command, file: &Path) -> Result<String, Error> {
    let output = command.output().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::NoCompiler,
        _ => Error::File { path: PathBuf::from("g++"), source },
    })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Compiler {
        file: file.to_owned(),
        output: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn write(path: &Path, content: &str) -> Result<(), Error> {
    fs::write(path, content).map_err(|source| Error::File { path: path.to_owned(), source })
}
