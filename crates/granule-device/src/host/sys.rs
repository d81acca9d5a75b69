//! The only file that speaks to the system: memory calls of Linux, each as thin as it can be.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use crate::{Access, DevicePtr};

/// The system's page in bytes.
pub(super) fn page_size() -> usize {
    // SAFETY: sysconf only reads.
    let size = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(size).unwrap_or(4096)
}

/// A file that lives in memory, empty.
pub(super) fn memfd() -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string that lives through the call.
    let fd = unsafe { libc::memfd_create(c"granule".as_ptr(), libc::MFD_CLOEXEC) };
    check(fd)?;
    // SAFETY: the descriptor is new and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Backs a piece of the file with memory, growing the file where needed. Memory that is new reads as zeros.
pub(super) fn allocate(file: &OwnedFd, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, 0, offset, len)
}

/// The size of the system's huge pages, `None` where it has none for files in memory.
pub(super) fn huge_page_size() -> Option<u64> {
    let size = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").ok()?;
    size.trim().parse().ok().filter(|size: &u64| size.is_power_of_two())
}

/// Moves a backed piece of the file, whole huge pages long and placed so, into huge pages. Its bytes stay, whether it works
/// or not: it takes Linux 6.1, memory in one piece, and a system that does not deny it.
///
/// Asking when the piece is mapped would be no use: the system's setting for files in memory is "never" nearly everywhere.
pub(super) fn gather_pages(file: &OwnedFd, offset: u64, len: usize, huge: usize) -> io::Result<()> {
    let at = reserve(len, huge)?;
    // SAFETY: the addresses are new and nobody else's; the caller has backed the piece.
    let gathered = unsafe { map_file(at, len, file, offset, Access::ReadWrite) }
        // SAFETY: the addresses are mapped.
        .and_then(|()| check(unsafe { libc::madvise(at.as_host_ptr().cast(), len, libc::MADV_COLLAPSE) }));
    // SAFETY: as above; nobody has seen them.
    check(unsafe { libc::munmap(at.as_host_ptr().cast(), len) }).and(gathered)
}

/// Frees the memory behind a piece of the file.
pub(super) fn punch_hole(file: &OwnedFd, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, len)
}

fn fallocate(file: &OwnedFd, mode: c_int, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (file_offset(offset)?, file_offset(len)?);
    loop {
        // SAFETY: the descriptor is open as long as `file` lives.
        match check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) }) {
            // A signal came in between: nothing was changed, so simply again.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

/// Addresses without memory, aligned to `align` (a power of two, at least a page).
pub(super) fn reserve(len: usize, align: usize) -> io::Result<DevicePtr> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let padded = len.checked_add(align).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
    // SAFETY: without MAP_FIXED the system chooses addresses that are free.
    let start = mapped(unsafe { libc::mmap(std::ptr::null_mut(), padded, libc::PROT_NONE, flags, -1, 0) })?;
    let base = start.next_multiple_of(align);
    let (head, tail) = (base - start, align - (base - start));
    // Trimming the padding only gives room back; where it fails the padding stays reserved, which harms nobody.
    if head > 0 {
        // SAFETY: these pages were mapped just now and nobody knows them.
        unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(start), head) };
    }
    if tail > 0 {
        // SAFETY: as above.
        unsafe { libc::munmap(std::ptr::with_exposed_provenance_mut(base + len), tail) };
    }
    Ok(DevicePtr::new(base as u64))
}

/// Private memory, zeroed, in huge pages where the system likes.
pub(super) fn allocate_private(len: usize) -> io::Result<DevicePtr> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: without MAP_FIXED the system chooses addresses that are free.
    let start = mapped(unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) })?;
    // SAFETY: the pages are this mapping's. The advice may be refused; the memory is as good without.
    unsafe { libc::madvise(std::ptr::with_exposed_provenance_mut(start), len, libc::MADV_HUGEPAGE) };
    Ok(DevicePtr::new(start as u64))
}

/// Puts a piece of the file behind `len` bytes of addresses, in place of whatever was there.
///
/// # Safety
/// - The addresses belong to the caller, and nothing uses what is behind them.
/// - The piece of the file is backed with memory.
pub(super) unsafe fn map_file(
    at: DevicePtr,
    len: usize,
    file: &OwnedFd,
    offset: u64,
    access: Access,
) -> io::Result<()> {
    let flags = libc::MAP_SHARED | libc::MAP_FIXED;
    let offset = file_offset(offset)?;
    // SAFETY: the caller owns the addresses and nothing uses them.
    let start = unsafe {
        libc::mmap(at.as_host_ptr().cast(), len, protection(access), flags, file.as_raw_fd(), offset)
    };
    mapped(start).map(|_| ())
}

/// Fills in the system's tables for mapped memory, so that touching it costs nothing; its bytes stay.
///
/// # Safety
/// - The addresses are mapped for writing, and nothing else reads or writes them.
pub(super) unsafe fn populate(at: DevicePtr, len: usize, page: usize) -> io::Result<()> {
    // SAFETY: the caller says that the addresses are mapped.
    match check(unsafe { libc::madvise(at.as_host_ptr().cast(), len, libc::MADV_POPULATE_WRITE) }) {
        // Linux before 5.14 does not know it: the pages are touched one by one.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            for offset in (0..len).step_by(page) {
                let byte = at.offset(offset).as_host_ptr();
                // SAFETY: the caller says that the byte is mapped for writing and that nobody else touches it.
                unsafe { byte.write_volatile(byte.read_volatile()) };
            }
            Ok(())
        }
        done => done,
    }
}

/// Leaves `len` bytes of addresses reserved with nothing behind them.
///
/// # Safety
/// - The addresses belong to the caller, and nothing uses what is behind them.
pub(super) unsafe fn unmap_keeping(at: DevicePtr, len: usize) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the caller owns the addresses and nothing uses them.
    mapped(unsafe { libc::mmap(at.as_host_ptr().cast(), len, libc::PROT_NONE, flags, -1, 0) }).map(|_| ())
}

/// Changes what may be done with mapped memory.
///
/// # Safety
/// - The addresses belong to the caller, and nothing uses what is behind them.
pub(super) unsafe fn protect(at: DevicePtr, len: usize, access: Access) -> io::Result<()> {
    // SAFETY: the caller owns the addresses and nothing uses them.
    check(unsafe { libc::mprotect(at.as_host_ptr().cast(), len, protection(access)) })
}

/// Gives addresses, and private memory behind them, back.
///
/// # Safety
/// - The addresses belong to the caller, who never uses them again.
pub(super) unsafe fn release(at: DevicePtr, len: usize) -> io::Result<()> {
    // SAFETY: the caller owns the addresses and is done with them.
    check(unsafe { libc::munmap(at.as_host_ptr().cast(), len) })
}

/// Copies memory.
///
/// # Safety
/// - `len` bytes are readable at `from` and writable at `to`; they do not overlap, and nobody else writes either.
pub(super) unsafe fn copy(from: DevicePtr, to: DevicePtr, len: usize) {
    // SAFETY: as the caller says.
    unsafe { std::ptr::copy_nonoverlapping(from.as_host_ptr().cast_const(), to.as_host_ptr(), len) };
}

/// Sets memory.
///
/// # Safety
/// - `len` bytes are writable at `at`, and nobody else reads or writes them.
pub(super) unsafe fn fill(at: DevicePtr, len: usize, value: u8) {
    // SAFETY: as the caller says.
    unsafe { std::ptr::write_bytes(at.as_host_ptr(), value, len) };
}

/// Keeps memory from being paged out, and backs it at once.
///
/// # Safety
/// - The addresses are mapped.
pub(super) unsafe fn lock(at: DevicePtr, len: usize) -> io::Result<()> {
    // SAFETY: the caller says that the addresses are mapped.
    check(unsafe { libc::mlock(at.as_host_ptr().cast(), len) })
}

/// How much memory this process may lock, in bytes.
pub(super) fn lock_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is ours to be filled.
    match unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) } {
        0 => limit.rlim_cur,
        _ => 0,
    }
}

fn protection(access: Access) -> c_int {
    match access {
        Access::ReadOnly => libc::PROT_READ,
        Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
    }
}

fn check(code: c_int) -> io::Result<()> {
    if code < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The address an mmap answered, its provenance exposed.
fn mapped(start: *mut libc::c_void) -> io::Result<usize> {
    if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(start.expose_provenance()) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    const HUGE: usize = 2 << 20;

    /// So many bytes, every eight of which say where they are.
    fn words(first: u64, len: usize) -> Vec<u8> {
        (first..).flat_map(u64::to_le_bytes).take(len).collect()
    }

    /// A file of three huge pages' size with [`words`] in it, and the hand that looks at it without mapping it.
    fn file() -> (OwnedFd, File) {
        let file = memfd().unwrap();
        allocate(&file, 0, 3 * HUGE as u64).unwrap();
        let look = File::from(file.try_clone().unwrap());
        look.write_all_at(&words(0, 3 * HUGE), 0).unwrap();
        (file, look)
    }

    fn bytes(look: &File) -> Vec<u8> {
        let mut bytes = vec![0xEE; look.metadata().unwrap().len() as usize];
        look.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn is_mapped(look: &File) -> bool {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let inode = look.metadata().unwrap().ino().to_string();
        let mut files = maps.lines().filter(|line| line.contains("memfd:granule"));
        files.any(|line| line.split_whitespace().nth(4) == Some(&inode))
    }

    /// Whether the system has huge pages is its own affair: what is asserted holds whatever it answers.
    #[test]
    fn gathered_pages_keep_their_bytes() {
        let (file, look) = file();
        let held = look.metadata().unwrap().blocks();
        for (first, pages) in [(1, 1), (1, 1), (0, 2), (0, 3)] {
            let _ = gather_pages(&file, (first * HUGE) as u64, pages * HUGE, HUGE);
            assert!(bytes(&look) == words(0, 3 * HUGE), "{pages} from {first}");
            assert_eq!(look.metadata().unwrap().blocks(), held);
            assert!(!is_mapped(&look));
        }
    }

    #[test]
    fn a_mapping_stays_when_its_pages_are_gathered() {
        let (file, look) = file();
        let at = reserve(3 * HUGE, HUGE).unwrap();
        // SAFETY: the addresses are new and nobody else's; the file is backed.
        unsafe { map_file(at, 3 * HUGE, &file, 0, Access::ReadWrite) }.unwrap();
        assert!(is_mapped(&look));
        for round in 0..2 {
            let _ = gather_pages(&file, HUGE as u64, HUGE, HUGE);
            // SAFETY: mapped until the test's end, and nobody else's.
            let seen = unsafe { std::slice::from_raw_parts_mut(at.as_host_ptr(), 3 * HUGE) };
            assert!(seen[..] == words(round, 3 * HUGE), "round {round}");
            // What is written there is in the file: it is the same memory still.
            seen.copy_from_slice(&words(round + 1, 3 * HUGE));
            assert!(bytes(&look) == words(round + 1, 3 * HUGE), "round {round}");
        }
        // SAFETY: nobody uses them again.
        unsafe { release(at, 3 * HUGE) }.unwrap();
    }

    #[test]
    fn what_cannot_be_gathered_is_left_as_it_is() {
        let (file, look) = file();
        let (page, huge) = (page_size() as u64, HUGE as u64);
        // No page begins there, no file is so long, nothing is asked for.
        for (offset, len, code) in
            [(1, HUGE, libc::EINVAL), (u64::MAX, HUGE, libc::EFBIG), (0, 0, libc::EINVAL)]
        {
            let refused = gather_pages(&file, offset, len, HUGE).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(code), "{len} bytes at {offset}");
        }
        // Between huge pages, a part of one, behind the end: the system may answer as it likes.
        for (offset, len) in [(page, HUGE), (0, HUGE / 2), (huge, HUGE + HUGE / 2), (3 * huge, HUGE)] {
            let _ = gather_pages(&file, offset, len, HUGE);
        }
        assert!(bytes(&look) == words(0, 3 * HUGE));
        assert!(!is_mapped(&look));
    }
}
