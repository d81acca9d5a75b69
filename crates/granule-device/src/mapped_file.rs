//! `MappedFile`: a file as memory that is read, which stays readable when the file is cut short.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::host::Guard;
use crate::{Bytes, DeviceSlice, Error};

/// A whole file, mapped to be read.
///
/// Where another process makes the file shorter, plain mapped memory ends the process at the next access. Here the missing
/// bytes read as zeros and [`MappedFile::check`] says so from then on: call it after having read, before believing it.
/// Another process that writes to the file changes what is read here, as it does for everyone who maps files.
///
/// The guard is a handler of SIGBUS, set when the first file is mapped; it passes on every signal that is not about a file
/// mapped here.
#[derive(Debug)]
pub struct MappedFile {
    // Dropped before the mapping.
    guard: Option<Guard>,
    map: memmap2::Mmap,
    file: File,
    path: PathBuf,
}

impl MappedFile {
    /// Maps the file at `path`, which may be empty.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be opened or mapped or is no plain file; [`Error::TooManyMappedFiles`];
    /// [`Error::Unsupported`] on other systems than Linux.
    pub fn open(path: impl AsRef<Path>) -> Result<MappedFile, Error> {
        let path = path.as_ref().to_owned();
        let failed = |source| Error::File { path: path.clone(), source };
        let file = File::open(&path).map_err(failed)?;
        let about = file.metadata().map_err(failed)?;
        if about.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        if !about.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a plain file")));
        }
        // SAFETY: the mapping is only read. Bytes that another process changes or takes away are plain numbers either
        // way, and what is taken away is covered by the guard.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(failed)?;
        let guard = match map.len() {
            0 => None,
            len => Some(Guard::watch(map.as_ptr().expose_provenance(), len)?),
        };
        Ok(MappedFile { guard, map, file, path })
    }

    /// Which file it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How long the file was when it was mapped.
    pub fn len(&self) -> Bytes {
        Bytes::from_usize(self.map.len())
    }

    /// True for an empty file.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// The file's bytes, as host memory.
    pub fn slice(&self) -> DeviceSlice<'_> {
        DeviceSlice::from(self.bytes())
    }

    /// Reads these bytes of the file into memory and keeps them there, with the pages that they begin and end in.
    ///
    /// # Errors
    /// [`Error::LockLimit`].
    pub fn lock(&self, range: Range<usize>) -> Result<(), Error> {
        crate::host::lock_bytes(self.map.get(range).unwrap_or_default())
    }

    /// Gives back the memory behind the whole pages of these bytes: who reads them again has them read from the file again,
    /// which costs little while the system still has its pages. What is locked stays.
    pub fn let_go(&self, range: Range<usize>) {
        crate::host::let_go(&self.map, range);
    }

    /// Says whether all that was read so far was the file's.
    ///
    /// # Errors
    /// [`Error::FileCutShort`] once the file is shorter than it was, or bytes of it could not be read.
    pub fn check(&self) -> Result<(), Error> {
        let cut = self.guard.as_ref().is_some_and(Guard::was_cut);
        // Inside its last page a file can shrink without a signal.
        let len =
            self.file.metadata().map_err(|source| Error::File { path: self.path.clone(), source })?.len();
        if cut || Bytes::new(len) < self.len() {
            return Err(Error::FileCutShort { path: self.path.clone() });
        }
        Ok(())
    }
}
