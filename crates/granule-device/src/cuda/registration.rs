//! Registering memory of this process with the driver.

use super::backend::{Cuda, PORTABLE};
use super::context::{attribute, lock};
use super::release::Leftover;
use crate::registered::Keep;
use crate::{Access, Bytes, DevicePtr, Error};

const READ_ONLY: u32 = 8;

impl Cuda {
    /// Registers memory that the device will only read.
    ///
    /// # Safety
    /// - As [`Backend::register`](crate::backend::Backend::register).
    pub(super) unsafe fn register_read_only(&self, at: DevicePtr, len: Bytes) -> Result<(), Error> {
        let is_writable = || {
            let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
            is_writable(&maps, at.addr(), len.get())
        };
        let known = self.context().driver.has(attribute::READ_ONLY_HOST_REGISTER, self.context().device)?;
        let Some(flags) = flags(Access::ReadOnly, known, is_writable) else {
            let why = "the driver does not register memory that may only be read";
            return Err(Error::Unsupported { what: "registering read-only memory", why });
        };
        // SAFETY: the caller's promise.
        unsafe { self.register_with(at, len, flags) }
    }

    /// Registers memory that the device may write.
    ///
    /// # Safety
    /// - As [`Backend::register`](crate::backend::Backend::register).
    pub(crate) unsafe fn register_writable(&self, at: DevicePtr, len: Bytes) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe { self.register_with(at, len, PORTABLE) }
    }

    /// Unregisters memory, and lets go of what keeps it in place once that is done.
    ///
    /// # Safety
    /// - As [`Backend::unregister`](crate::backend::Backend::unregister).
    pub(crate) unsafe fn unregister_kept(&self, at: DevicePtr, keep: Keep) {
        self.context().release(Leftover::Registered(at));
        lock(&self.context().kept).push((at, keep));
        self.let_go();
    }

    /// Lets go of what was kept for memory that is no longer registered.
    pub(super) fn let_go(&self) {
        let context = self.context();
        if lock(&context.kept).is_empty() {
            return;
        }
        let waiting = |at: DevicePtr| {
            let is = |leftover: &Leftover| matches!(leftover, Leftover::Registered(other) if *other == at);
            lock(&context.leftovers).iter().any(is)
        };
        let gone: Vec<_> = lock(&context.kept).extract_if(.., |(at, _)| !waiting(*at)).collect();
        // What is dropped with it may do anything, so no lock is held here.
        drop(gone);
    }

    /// # Safety
    /// - As above.
    unsafe fn register_with(&self, at: DevicePtr, len: Bytes, flags: u32) -> Result<(), Error> {
        let context = self.context();
        context.refuse_in_capture("registering memory")?;
        self.let_go();
        let size = self.length(len)?;
        let _bound = context.bind()?;
        let driver = &context.driver;
        let host = at.as_host_ptr().cast();
        let mut device = 0;
        // SAFETY: the caller says that the memory is mapped and stays so.
        unsafe {
            driver.cuMemHostRegister_v2(host, size, flags)?;
            let known = driver.cuMemHostGetDevicePointer_v2(&raw mut device, host, 0);
            if known.is_ok() && device == at.addr() {
                return Ok(());
            }
            context.release(Leftover::Registered(at));
            known?;
        }
        let why = "the device reaches registered memory at another address than the host";
        Err(Error::Unsupported { what: "registering memory", why })
    }
}

/// What to tell the driver; `None` where it has no way to register the memory.
fn flags(access: Access, read_only_known: bool, is_writable: impl FnOnce() -> bool) -> Option<u32> {
    match access {
        Access::ReadOnly if read_only_known => Some(PORTABLE | READ_ONLY),
        Access::ReadOnly => is_writable().then_some(PORTABLE),
        Access::ReadWrite => Some(PORTABLE),
    }
}

/// Whether /proc/self/maps says that all of some memory is mapped to be written.
fn is_writable(maps: &str, at: u64, len: u64) -> bool {
    let mut next = at;
    let end = at.saturating_add(len);
    for line in maps.lines() {
        let mut parts = line.split_whitespace();
        let Some((from, to)) = parts.next().and_then(|range| range.split_once('-')) else { continue };
        let number = |text| u64::from_str_radix(text, 16).ok();
        let (Some(from), Some(to), Some(access)) = (number(from), number(to), parts.next()) else { continue };
        if from <= next && next < to && access.starts_with("rw") {
            next = to;
        }
        if next >= end {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAPS: &str = "1000-2000 r--p 00000000 00:00 0 /weights\n\
                        2000-4000 rw-p 00000000 00:00 0\n\
                        4000-5000 rw-s 00000000 00:00 0 /shared\n\
                        5000-6000 r--p 00000000 00:00 0\n";

    #[test]
    fn memory_is_writable_where_all_of_it_is() {
        for (at, len, expected) in [
            (0x2000, 0x2000, true),
            (0x2ff0, 0x1020, true),
            (0x4000, 0x1000, true),
            (0x4000, 0x1001, false),
            (0x1fff, 2, false),
            (0x1000, 8, false),
            (0x9000, 8, false),
        ] {
            assert_eq!(is_writable(MAPS, at, len), expected, "{at:x} {len:x}");
        }
        let mut own = [0_u8; 64];
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        assert_eq!(is_writable(&maps, own.as_mut_ptr().addr() as u64, 64), cfg!(target_os = "linux"));
        static CONSTANT: [u8; 64] = [1; 64];
        assert!(!is_writable(&maps, CONSTANT.as_ptr().addr() as u64, 64));
    }

    #[test]
    fn an_old_driver_takes_writable_memory_to_be_read() {
        assert_eq!(flags(Access::ReadOnly, true, || false), Some(PORTABLE | READ_ONLY));
        assert_eq!(flags(Access::ReadOnly, false, || true), Some(PORTABLE));
        assert_eq!(flags(Access::ReadOnly, false, || false), None);
        assert_eq!(flags(Access::ReadWrite, false, || false), Some(PORTABLE));
    }
}
