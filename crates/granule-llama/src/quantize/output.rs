//! The file that is written: beside its place, which it takes only once it is whole and on the disk.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Gathered before the system is called; tensors come in larger pieces.
const BUFFER: usize = 1 << 20;

/// A file that is being written; gone when dropped, unless it took its place.
pub(super) struct Output {
    out: BufWriter<File>,
    unfinished: PathBuf,
    target: PathBuf,
    /// Bytes of the whole file, for whoever has to make room.
    needed: u64,
    placed: bool,
}

/// Where [`quantize`](crate::quantize) writes until the file is whole: `OUT.quantizing`, beside `output`.
#[must_use]
pub fn unfinished_path(output: &Path) -> PathBuf {
    // A link stays one: what it leads to is replaced.
    let target = fs::canonicalize(output).unwrap_or_else(|_| output.to_owned());
    let mut name = target.into_os_string();
    name.push(".quantizing");
    name.into()
}

impl Output {
    /// Refuses before anything is written: a file that is there, unless `force` is set; one of `inputs`; what is no plain file.
    pub(super) fn check(path: &Path, inputs: &[PathBuf], force: bool) -> Result<()> {
        let about = match fs::metadata(path) {
            Ok(about) => about,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(Error::Io { action: "write", path: path.to_owned(), source }),
        };
        if inputs.iter().any(|input| is_same(path, input)) {
            return Err(Error::OutputIsInput { path: path.to_owned() });
        }
        if !about.is_file() {
            let source = io::Error::new(io::ErrorKind::AlreadyExists, "not a plain file");
            return Err(Error::Io { action: "write", path: path.to_owned(), source });
        }
        if force { Ok(()) } else { Err(Error::OutputExists { path: path.to_owned() }) }
    }

    /// Begins a file of `needed` bytes. What a program that was ended has left of one is overwritten.
    pub(super) fn create(path: &Path, needed: u64) -> Result<Self> {
        let unfinished = unfinished_path(path);
        let failed = |source| Error::Io { action: "write", path: unfinished.clone(), source };
        if fs::symlink_metadata(&unfinished).is_ok_and(|about| !about.is_file()) {
            return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, "not a plain file")));
        }
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).open(&unfinished).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::OutputBusy { path: unfinished }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        // Whoever had the lock may have put this very file in its place, or removed it, before it was ours.
        if !is_at(&file, &unfinished) {
            return Err(Error::OutputBusy { path: unfinished });
        }
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let out = BufWriter::with_capacity(BUFFER, file);
        let output = Self { out, unfinished, target, needed, placed: false };
        output.out.get_ref().set_len(0).map_err(|source| output.failed(source))?;
        Ok(output)
    }

    /// Writes through `write`, and says what an error of it means.
    pub(super) fn write(&mut self, write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> Result<()> {
        write(&mut self.out).map_err(|source| self.failed(source))
    }

    /// Has the file take its place, where an earlier one stays until then; without `force`, there must be none.
    pub(super) fn place(mut self, force: bool) -> Result<()> {
        self.write(|out| out.flush())?;
        self.out.get_ref().sync_all().map_err(|source| self.failed(source))?;
        if !force {
            match fs::hard_link(&self.unfinished, &self.target) {
                // The other name goes when this is dropped.
                Ok(()) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    return Err(Error::OutputExists { path: self.target.clone() });
                }
                // A file system without links.
                Err(_) => {}
            }
        }
        fs::rename(&self.unfinished, &self.target).map_err(|source| self.failed(source))?;
        self.placed = true;
        Ok(())
    }

    fn failed(&self, source: io::Error) -> Error {
        let path = self.target.clone();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Error::NoRoom { path, needed: self.needed, source }
            }
            _ => Error::Io { action: "write", path, source },
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.placed {
            // Nothing more can be done about it.
            let _ = fs::remove_file(&self.unfinished);
        }
    }
}

/// Whether a file is the one that this path leads to.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |about: fs::Metadata| (about.dev(), about.ino());
    file.metadata().is_ok_and(|own| fs::symlink_metadata(path).is_ok_and(|there| id(own) == id(there)))
}

/// Whether a file is the one that this path leads to.
#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

/// Whether two paths lead to one file.
#[cfg(unix)]
fn is_same(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let id = |path| fs::metadata(path).map(|about| (about.dev(), about.ino())).ok();
    id(a).is_some_and(|a| id(b) == Some(a))
}

/// Whether two paths lead to one file.
#[cfg(not(unix))]
fn is_same(a: &Path, b: &Path) -> bool {
    fs::canonicalize(a).is_ok_and(|a| fs::canonicalize(b).is_ok_and(|b| a == b))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_named() {
        let out = File::options().write(true).open("/dev/full").unwrap();
        let path = PathBuf::from("model.gguf");
        let out = BufWriter::with_capacity(1, out);
        let unfinished = PathBuf::from("no-such.quantizing");
        let mut output = Output { out, unfinished, target: path, needed: 12345, placed: false };
        let error = output.write(|out| out.write_all(&[0; 100])).unwrap_err();
        assert!(matches!(error, Error::NoRoom { needed: 12345, .. }), "{error}");
        assert!(error.to_string().contains("model.gguf") && error.to_string().contains("12345"), "{error}");
    }

    #[test]
    fn nobody_writes_into_the_file_of_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.gguf");
        let first = Output::create(&path, 1).unwrap();
        assert!(matches!(Output::create(&path, 1), Err(Error::OutputBusy { .. })));
        drop(first);
        let mut second = Output::create(&path, 1).unwrap();
        second.write(|out| out.write_all(b"x")).unwrap();
        second.place(false).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"x");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // A file that appears meanwhile stays, unless force is asked for.
        for (force, left) in [(false, &b"x"[..]), (true, b"y")] {
            let mut third = Output::create(&path, 1).unwrap();
            third.write(|out| out.write_all(b"y")).unwrap();
            assert_eq!(third.place(force).is_ok(), force);
            assert_eq!(fs::read(&path).unwrap(), left);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }
}
