//! The memory of the simulated devices: the only code that maps, moves and protects bytes.
//!
//! Each *store* (one per device, one for granules on the host) is a sparse `memfd`, mapped twice as a whole. The *back*
//! is readable and writable and belongs to the simulator: copies, fills and checks go through it. The *front* is what
//! device pointers point into; it has no access at all, so that host code which follows a device pointer dies, except
//! while a kernel runs. Virtual memory maps pieces of the same file elsewhere, which is what makes aliases.
//!
//! An [`Extent`] is the proof that bytes may be touched. It comes from a back, which is never unmapped, or from a
//! pointer that the program handed to the driver and thereby vouched for.

use std::io;
use std::ptr;

/// Bytes of this process that the simulator may read and write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    at: u64,
    len: u64,
}

impl Extent {
    /// Memory of the program.
    ///
    /// # Safety
    /// - `len` bytes at `at` are mapped, and stay so until the operation that was given them has run: what CUDA asks
    ///   of the caller for every pointer.
    /// - They are writable where the operation writes.
    pub(crate) unsafe fn of_program(at: u64, len: u64) -> Extent {
        Extent { at, len }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn address(&self) -> u64 {
        self.at
    }

    /// `len` bytes from byte `from`; cut where this extent ends.
    pub(crate) fn part(&self, from: u64, len: u64) -> Extent {
        let from = from.min(self.len);
        Extent { at: self.at + from, len: len.min(self.len - from) }
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: an extent's bytes are mapped (see the type); the global lock keeps the simulator's own writes apart,
        // and a program that writes its memory during a copy from it gets torn bytes, as on a device.
        unsafe { std::slice::from_raw_parts(self.at as *const u8, self.len as usize) }
    }

    /// A copy of the bytes.
    pub(crate) fn load(&self) -> Vec<u8> {
        self.bytes().to_vec()
    }

    /// The first byte that is not `byte`, counted from the start.
    pub(crate) fn first_other_than(&self, byte: u8) -> Option<u64> {
        self.bytes().iter().position(|&b| b != byte).map(|n| n as u64)
    }

    /// A hash that changes when the bytes do, but for one chance in 2^64.
    pub(crate) fn checksum(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ self.len;
        let mut chunks = self.bytes().chunks_exact(8);
        for chunk in &mut chunks {
            let word = chunk.iter().rev().fold(0, |word, &b| word << 8 | u64::from(b));
            hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
        chunks.remainder().iter().fold(hash, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
    }

    /// Copies `from` here; the shorter of the two lengths counts.
    pub(crate) fn copy_from(&self, from: &Extent) {
        // SAFETY: both are mapped (see the type), this one writable; `copy` allows overlap.
        unsafe { ptr::copy(from.at as *const u8, self.at as *mut u8, self.len.min(from.len) as usize) }
    }

    /// Writes `bytes` at the start, as far as they fit.
    pub(crate) fn store(&self, bytes: &[u8]) {
        // SAFETY: mapped and writable (see the type); `bytes` is memory of the simulator.
        unsafe { ptr::copy(bytes.as_ptr(), self.at as *mut u8, bytes.len().min(self.len as usize)) }
    }

    /// Repeats `pattern` over the extent, from its start; a last part of it where the length is no multiple.
    pub(crate) fn fill(&self, pattern: &[u8]) {
        if let [byte] = pattern {
            // SAFETY: mapped and writable (see the type).
            return unsafe { ptr::write_bytes(self.at as *mut u8, *byte, self.len as usize) };
        }
        let step = pattern.len().max(1) as u64;
        for from in (0..self.len).step_by(step as usize) {
            self.part(from, step).store(pattern);
        }
    }
}

/// A function of the program that runs in stream order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostFunction {
    function: unsafe extern "C" fn(*mut libc::c_void),
    data: usize,
}

impl HostFunction {
    /// # Safety
    /// `function` may be called once per launch with `data`, from any thread, while the call that launched it is no
    /// longer running: what `cuLaunchHostFunc` asks of its caller.
    pub(crate) unsafe fn new(function: unsafe extern "C" fn(*mut libc::c_void), data: usize) -> HostFunction {
        HostFunction { function, data }
    }

    pub(crate) fn call(&self) {
        // SAFETY: promised by whoever made it (see `new`).
        unsafe { (self.function)(self.data as *mut libc::c_void) }
    }
}

struct Store {
    file: i32,
    front: u64,
    back: u64,
}

/// The stores, and the address space around them.
pub(crate) struct Machine {
    stores: Vec<Store>,
    opened: Vec<(u64, u64)>,
}

impl Machine {
    /// Addresses of each store; offsets are handed out once and never again, so this is also how much a process can
    /// allocate on one device over its life.
    pub(crate) const STORE: u64 = 1 << 40;
    pub(crate) const PAGE: u64 = 4096;

    pub(crate) fn new(stores: usize) -> io::Result<Machine> {
        let stores = (0..stores).map(|_| Store::new()).collect::<io::Result<_>>()?;
        Ok(Machine { stores, opened: Vec::new() })
    }

    /// Whether an address lies in the front of a store.
    pub(crate) fn is_front(&self, store: usize, at: u64) -> bool {
        let front = self.stores[store].front;
        (front..front + Self::STORE).contains(&at)
    }

    /// The device address of a byte of a store.
    pub(crate) fn front(&self, store: usize, offset: u64) -> u64 {
        self.stores[store].front + offset
    }

    /// `len` bytes of a store.
    pub(crate) fn extent(&self, store: usize, offset: u64, len: u64) -> Extent {
        let offset = offset.min(Self::STORE);
        Extent { at: self.stores[store].back + offset, len: len.min(Self::STORE - offset) }
    }

    /// Gives the pages back to the system; they read as zero afterwards. Parts of pages stay.
    pub(crate) fn discard(&self, store: usize, offset: u64, len: u64) {
        let start = offset.next_multiple_of(Self::PAGE);
        let end = (offset + len) / Self::PAGE * Self::PAGE;
        if start < end {
            let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
            // SAFETY: punches a hole into our own file; a failure leaves the pages in memory and nothing else.
            unsafe { libc::fallocate64(self.stores[store].file, mode, start as i64, (end - start) as i64) };
        }
    }

    /// An address range with nothing behind it; `align` is a power of two of at least a page.
    pub(crate) fn reserve(&mut self, len: u64, align: u64) -> Option<u64> {
        let whole = len.checked_add(align)?;
        let at = map(
            0,
            whole,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
        .ok()?;
        let start = at.next_multiple_of(align);
        unmap(at, start - at);
        unmap(start + len, at + whole - (start + len));
        Some(start)
    }

    /// Gives addresses that [`Machine::reserve`] took back to the system.
    pub(crate) fn unreserve(&mut self, at: u64, len: u64) {
        unmap(at, len);
    }

    /// Puts `len` bytes of a store at `at`, inside a reservation, without access.
    pub(crate) fn map(&mut self, at: u64, len: u64, store: usize, offset: u64) -> bool {
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_NORESERVE;
        map(at, len, libc::PROT_NONE, flags, self.stores[store].file, offset).is_ok()
    }

    /// Puts nothing back at `at`, inside a reservation: its memory is gone, its addresses stay ours.
    pub(crate) fn unmap(&mut self, at: u64, len: u64) {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // A refusal leaves the old pages without access: the model knows that nothing is mapped there.
        let _ = map(at, len, libc::PROT_NONE, flags, -1, 0);
    }

    /// Memory that program and devices share, whole pages, zero-filled, not more than this machine has;
    /// [`Machine::unmap`] and [`Machine::unreserve`] take it back.
    pub(crate) fn host_memory(&mut self, len: u64) -> Option<Extent> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: asks the system for a number.
        let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
        let most = u64::try_from(pages).unwrap_or(0).saturating_mul(Self::PAGE);
        let len = len.checked_next_multiple_of(Self::PAGE).filter(|len| *len <= most)?;
        let at = map(0, len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0).ok()?;
        Some(Extent { at, len })
    }

    /// Lets the host itself reach a mapping: `CUmemAccess_flags`, 0 nothing, 1 read, 3 read and write.
    pub(crate) fn let_host_in(&mut self, at: u64, len: u64, flags: u8) {
        let access = match flags {
            0 => libc::PROT_NONE,
            1 => libc::PROT_READ,
            _ => libc::PROT_READ | libc::PROT_WRITE,
        };
        protect(at, len, access);
    }

    /// Lets a kernel reach these ranges (address, length, writable) until [`Machine::close`]; pages that they touch
    /// are opened whole.
    pub(crate) fn open(&mut self, ranges: impl IntoIterator<Item = (u64, u64, bool)>) {
        for (at, len, writable) in ranges {
            let start = at / Self::PAGE * Self::PAGE;
            let len = (at + len).next_multiple_of(Self::PAGE) - start;
            let access = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
            protect(start, len, access);
            self.opened.push((start, len));
        }
    }

    /// Device pointers lead nowhere again.
    pub(crate) fn close(&mut self) {
        for (at, len) in self.opened.drain(..) {
            protect(at, len, libc::PROT_NONE);
        }
    }
}

impl Store {
    fn new() -> io::Result<Store> {
        // SAFETY: a name that lives on, and no pointer kept.
        let file = unsafe { libc::memfd_create(c"granule-sim".as_ptr(), libc::MFD_CLOEXEC) };
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: our own file.
        if unsafe { libc::ftruncate64(file, Machine::STORE as i64) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
        let front = map(0, Machine::STORE, libc::PROT_NONE, flags, file, 0)?;
        let back = map(0, Machine::STORE, libc::PROT_READ | libc::PROT_WRITE, flags, file, 0)?;
        for at in [front, back] {
            // SAFETY: our own mapping; it only keeps a terabyte of holes out of core dumps.
            unsafe { libc::madvise(at as *mut libc::c_void, Machine::STORE as usize, libc::MADV_DONTDUMP) };
        }
        Ok(Store { file, front, back })
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        unmap(self.front, Machine::STORE);
        unmap(self.back, Machine::STORE);
        // SAFETY: our own file, closed once.
        unsafe { libc::close(self.file) };
    }
}

fn map(at: u64, len: u64, access: i32, flags: i32, file: i32, offset: u64) -> io::Result<u64> {
    // SAFETY: either the kernel chooses the place, or the place lies in a range of ours (callers within this file).
    let got =
        unsafe { libc::mmap64(at as *mut libc::c_void, len as usize, access, flags, file, offset as i64) };
    if got == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(got as u64) }
}

fn unmap(at: u64, len: u64) {
    if len > 0 {
        // SAFETY: ranges of ours (callers within this file).
        unsafe { libc::munmap(at as *mut libc::c_void, len as usize) };
    }
}

fn protect(at: u64, len: u64, access: i32) {
    // SAFETY: ranges of ours: stores' fronts and reservations.
    unsafe { libc::mprotect(at as *mut libc::c_void, len as usize, access) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_sees_what_was_written_through_the_store() {
        let mut machine = Machine::new(1).unwrap();
        let at = machine.reserve(1 << 16, 1 << 16).unwrap();
        assert_eq!(at % (1 << 16), 0);
        assert!(machine.map(at, 8192, 0, 1 << 20));
        machine.extent(0, (1 << 20) + 4, 3).store(b"abc");
        machine.open([(at, 8192, true)]);
        // SAFETY: mapped and opened just now.
        let seen = unsafe { Extent::of_program(at + 4, 3) };
        assert_eq!(seen.load(), b"abc");
        seen.fill(&[1, 2]);
        assert_eq!(machine.extent(0, (1 << 20) + 4, 4).load(), [1, 2, 1, 0]);
        machine.close();
        machine.unmap(at, 8192);
        machine.discard(0, 1 << 20, 8192);
        assert_eq!(machine.extent(0, (1 << 20) + 4, 2).load(), [0, 0]);
        machine.unreserve(at, 1 << 16);
    }

    #[test]
    fn a_changed_byte_changes_the_checksum() {
        let machine = Machine::new(1).unwrap();
        let extent = machine.extent(0, 0, 100);
        let before = extent.checksum();
        for n in 0..100 {
            extent.part(n, 1).store(&[1]);
            assert_ne!(extent.checksum(), before, "byte {n}");
            extent.part(n, 1).store(&[0]);
        }
        assert_eq!(extent.checksum(), before);
        assert_eq!(extent.first_other_than(0), None);
        extent.part(7, 1).store(&[9]);
        assert_eq!(extent.first_other_than(0), Some(7));
    }
}
