//! Writes a file so that it is there whole, or is what it was before.

use std::fs::{self, File};
use std::io::{ErrorKind, Result, Write};
use std::path::{Path, PathBuf};

/// True where both names lead to one file that is there.
pub(crate) fn same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    let identity = |path| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path).map(|file| (file.dev(), file.ino()))
    };
    #[cfg(not(unix))]
    let identity = fs::canonicalize;
    matches!((identity(a), identity(b)), (Ok(a), Ok(b)) if a == b)
}

/// Writes it beside its place and puts it there when it is on the disk. What is no ordinary file is written to as it is.
pub(crate) fn whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let path = match fs::metadata(path) {
        Ok(there) if !there.is_file() => return fs::write(path, bytes),
        // Where a link leads, so that the link stays.
        Ok(_) => fs::canonicalize(path)?,
        Err(_) => path.to_owned(),
    };
    let (part, mut out) = beside(&path)?;
    let written = out.write_all(bytes).and_then(|()| out.sync_all());
    drop(out);
    let placed = written.and_then(|()| fs::rename(&part, &path));
    if placed.is_err() {
        // Why it was not placed says more than why it stays.
        let _ = fs::remove_file(&part);
    }
    placed
}

/// A new file beside a path.
fn beside(path: &Path) -> Result<(PathBuf, File)> {
    let mut number = 0_u32;
    loop {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}.{number}.part", std::process::id()));
        let part = PathBuf::from(name);
        match File::create_new(&part) {
            Ok(file) => return Ok((part, file)),
            // Left by a program that was killed.
            Err(error) if error.kind() == ErrorKind::AlreadyExists && number < 100 => number += 1,
            Err(error) => return Err(error),
        }
    }
}
