//! Writing a state file: beside the old one, chunk by chunk, and in its place only once it is whole and on the disk.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::error::StateError;
use super::format::{self, CHUNK, HEADER, Header, MAGIC};

/// `FILE.part`, locked; gone when dropped, unless it took the place of `FILE`.
pub(super) struct PartFile {
    file: File,
    part: PathBuf,
    target: PathBuf,
    /// The permissions of the file that is to be replaced.
    like: Option<fs::Permissions>,
    placed: bool,
}

impl PartFile {
    /// Refuses where something that is no state file, nor empty, has the name.
    pub(super) fn create(path: &Path) -> Result<PartFile, StateError> {
        // A link stays one: what it leads to is replaced.
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let like = may_be_replaced(&target)?;
        let mut part = target.clone().into_os_string();
        part.push(".part");
        let part = PathBuf::from(part);
        let failed = |source| StateError::Io { path: part.clone(), source };
        loop {
            if fs::symlink_metadata(&part).is_ok_and(|about| !about.is_file()) {
                return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, "not a plain file")));
            }
            let mut file = open_part(&part).map_err(failed)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(StateError::Busy { path: target }),
                Err(TryLockError::Error(source)) => return Err(failed(source)),
            }
            // Whoever had the lock until now may have moved the file into its place, or removed it.
            if is_at(&file, &part).map_err(failed)? {
                // What a program of ours that was ended has left, and nothing else.
                let mut begin = Vec::new();
                (&mut file).take(HEADER as u64).read_to_end(&mut begin).map_err(failed)?;
                if !begin.starts_with(&MAGIC) && begin.iter().any(|&byte| byte != 0) {
                    return Err(StateError::NotAStateFile { path: part });
                }
                keep_private(&file).map_err(failed)?;
                let mut this = PartFile { file, part: part.clone(), target, like, placed: false };
                this.file.set_len(0).and_then(|()| this.file.rewind()).map_err(failed)?;
                return Ok(this);
            }
        }
    }

    fn failed(&self) -> impl Fn(io::Error) -> StateError + use<> {
        let path = self.part.clone();
        move |source| StateError::Io { path: path.clone(), source }
    }

    /// Has the file take the place of the old one, which is there until it has, whatever happens.
    fn place(mut self) -> Result<(), StateError> {
        let failed = self.failed();
        if let Some(like) = self.like.take() {
            self.file.set_permissions(like).map_err(&failed)?;
        }
        self.file.sync_all().map_err(&failed)?;
        fs::rename(&self.part, &self.target).map_err(&failed)?;
        self.placed = true;
        sync_entry(&self.target).map_err(|source| StateError::NotSynced { path: self.target.clone(), source })
    }
}

/// Opens `FILE.part`, or makes it, for nobody else to read; never what a link of that name leads to.
fn open_part(part: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600).custom_flags(libc::O_NOFOLLOW);
    }
    options.open(part)
}

/// For nobody else to read, also where it was left by somebody who let others.
#[cfg(unix)]
fn keep_private(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o600))
}

/// New files are as their folder says there.
#[cfg(not(unix))]
fn keep_private(_: &File) -> io::Result<()> {
    Ok(())
}

/// Whether the open file is the one of that name.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let open = file.metadata()?;
    let there = fs::symlink_metadata(path);
    Ok(there.is_ok_and(|there| (there.dev(), there.ino()) == (open.dev(), open.ino())))
}

/// An open file keeps its name there.
#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> io::Result<bool> {
    path.try_exists()
}

/// Puts the name of a file onto the disk: it is data of its folder.
#[cfg(unix)]
fn sync_entry(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Folders cannot be opened as files there.
#[cfg(not(unix))]
fn sync_entry(_: &Path) -> io::Result<()> {
    Ok(())
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if !self.placed {
            // Nothing more can be done about it.
            let _ = fs::remove_file(&self.part);
        }
    }
}

/// The permissions of the state file, or the empty file, of that name; none where there is no file.
fn may_be_replaced(target: &Path) -> Result<Option<fs::Permissions>, StateError> {
    let failed = |source| StateError::Io { path: target.to_owned(), source };
    let about = match fs::metadata(target) {
        Ok(about) => about,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let other = || StateError::NotAStateFile { path: target.to_owned() };
    if !about.is_file() {
        return Err(other());
    }
    let mut begin = Vec::new();
    let file = File::open(target).map_err(failed)?;
    file.take(MAGIC.len() as u64).read_to_end(&mut begin).map_err(failed)?;
    if begin.is_empty() || begin == MAGIC { Ok(Some(about.permissions())) } else { Err(other()) }
}

/// Writes the contents, then rows, then what holds them together.
pub(super) struct Writer {
    to: PartFile,
    header: Header,
    chunk: Vec<u8>,
    sums: Vec<u8>,
}

impl Writer {
    /// `data_len` bytes of rows have to follow.
    pub(super) fn begin(path: &Path, contents: &[u8], data_len: u64) -> Result<Writer, StateError> {
        let contents_sum = format::sum(contents);
        let header = Header { contents_len: contents.len() as u64, data_len, contents_sum, table_sum: 0 };
        header.file_len().ok_or(StateError::Count)?;
        let mut to = PartFile::create(path)?;
        let failed = to.failed();
        // In the header's place until everything else is there: no state file yet.
        to.file.write_all(&[0; HEADER]).map_err(&failed)?;
        to.file.write_all(contents).map_err(&failed)?;
        Ok(Writer { to, header, chunk: Vec::with_capacity(CHUNK), sums: Vec::new() })
    }

    pub(super) fn rows(&mut self, mut bytes: &[u8]) -> Result<(), StateError> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(CHUNK - self.chunk.len()));
            self.chunk.extend_from_slice(now);
            bytes = later;
            if self.chunk.len() == CHUNK {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Answers the file's length.
    pub(super) fn finish(mut self) -> Result<u64, StateError> {
        if !self.chunk.is_empty() {
            self.flush()?;
        }
        let failed = self.to.failed();
        self.to.file.write_all(&self.sums).map_err(&failed)?;
        self.header.table_sum = format::sum(&self.sums);
        self.to.file.seek(SeekFrom::Start(0)).map_err(&failed)?;
        self.to.file.write_all(&self.header.write()).map_err(&failed)?;
        let len = self.header.file_len().unwrap_or(u64::MAX);
        self.to.place()?;
        Ok(len)
    }

    fn flush(&mut self) -> Result<(), StateError> {
        self.sums.extend(format::sum(&self.chunk).to_le_bytes());
        let failed = self.to.failed();
        self.to.file.write_all(&self.chunk).map_err(failed)?;
        self.chunk.clear();
        Ok(())
    }
}
