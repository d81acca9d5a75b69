//! Borrowed device memory: an address with a length, a lifetime, and what kind of device it is on.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Bound, Range, RangeBounds};

use crate::{Bytes, Device, DeviceKind, Error};

/// An address in a device's memory, for handing to another engine's calls. It owns nothing and keeps nothing alive;
/// no Granule function takes one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevicePtr(u64);

impl DevicePtr {
    pub(crate) const fn new(address: u64) -> DevicePtr {
        DevicePtr(address)
    }

    /// The address as a number. On the host device it is one that this process can follow.
    pub const fn addr(self) -> u64 {
        self.0
    }

    /// `bytes` further on.
    pub const fn add(self, bytes: Bytes) -> DevicePtr {
        DevicePtr(self.0.wrapping_add(bytes.get()))
    }

    /// `bytes` further on.
    pub(crate) const fn offset(self, bytes: usize) -> DevicePtr {
        DevicePtr(self.0.wrapping_add(bytes as u64))
    }

    pub(crate) fn as_host_ptr(self) -> *mut u8 {
        // Device memory comes from the system, not from Rust's allocator: its provenance is exposed by nature.
        std::ptr::with_exposed_provenance_mut(self.0 as usize)
    }
}

impl fmt::Debug for DevicePtr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DevicePtr({:#x})", self.0)
    }
}

/// Which kind of device has memory, and whether this process can address it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Home {
    pub(crate) kind: DeviceKind,
    pub(crate) host: bool,
}

impl Home {
    /// Memory of this process that no device knows of.
    pub(crate) const HOST: Home = Home { kind: DeviceKind::Host, host: true };

    /// The memory of this device itself: granules, plain buffers.
    pub fn on(device: &Device) -> Home {
        Home::of(device.kind())
    }

    /// Host memory that this device can reach: pinned, managed, registered.
    pub fn beside(device: &Device) -> Home {
        Home::shared(device.kind())
    }

    /// A device's own memory.
    pub(crate) fn of(kind: DeviceKind) -> Home {
        Home { kind, host: kind == DeviceKind::Host }
    }

    /// Host memory that a device can reach.
    pub(crate) fn shared(kind: DeviceKind) -> Home {
        Home { kind, host: true }
    }
}

/// Turns any range of bytes into `start..end` within `len`, or says why not.
pub fn checked_range(range: impl RangeBounds<usize>, len: usize) -> Result<Range<usize>, Error> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&end) => end.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => len,
    };
    if start <= end && end <= len {
        Ok(start..end)
    } else {
        Err(Error::OutOfRange { range: start..end, len })
    }
}

/// Device memory that may be read for as long as `'a`.
///
/// Made from a [`Reservation`](crate::Reservation), a [`Buffer`](crate::Buffer) or anything else that owns memory; also from a
/// `&[u8]` of this process. Cheap to copy.
#[derive(Clone, Copy)]
pub struct DeviceSlice<'a> {
    ptr: DevicePtr,
    len: usize,
    home: Home,
    memory: PhantomData<&'a [u8]>,
}

impl<'a> DeviceSlice<'a> {
    /// Memory of which only its place is known, for who cuts memory up.
    ///
    /// # Safety
    /// - `len` bytes at `ptr` stay mapped and readable for `'a`, where `home` says.
    /// - Nothing writes them during `'a`.
    pub unsafe fn from_raw(ptr: DevicePtr, len: usize, home: Home) -> DeviceSlice<'a> {
        DeviceSlice { ptr, len, home, memory: PhantomData }
    }

    /// Where it starts.
    pub fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    pub(crate) fn home(&self) -> Home {
        self.home
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True where there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The kind of device whose work can use the memory. A `&[u8]` of this process is the host's; pinned, managed and
    /// registered memory is the device's that made it, and can be looked at from here too.
    pub fn kind(&self) -> DeviceKind {
        self.home.kind
    }

    /// The bytes themselves, where this process can address them: all but a GPU's own memory.
    pub fn as_host(&self) -> Option<&'a [u8]> {
        // SAFETY: `from_raw` was promised that these bytes are readable and unwritten during 'a, by this process too where
        // its `Home` says so.
        self.home.host.then(|| unsafe { std::slice::from_raw_parts(self.ptr.as_host_ptr(), self.len) })
    }

    /// The part at `range`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where the range is not in here.
    pub fn subslice(&self, range: impl RangeBounds<usize>) -> Result<DeviceSlice<'a>, Error> {
        let range = checked_range(range, self.len)?;
        Ok(DeviceSlice { ptr: self.ptr.offset(range.start), len: range.len(), ..*self })
    }

    /// The bytes before `at`, and those from it on.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where `at` is past the end.
    pub fn split_at(&self, at: usize) -> Result<(DeviceSlice<'a>, DeviceSlice<'a>), Error> {
        Ok((self.subslice(..at)?, self.subslice(at..)?))
    }
}

impl<'a> From<&'a [u8]> for DeviceSlice<'a> {
    fn from(bytes: &'a [u8]) -> DeviceSlice<'a> {
        let ptr = DevicePtr::new(bytes.as_ptr().expose_provenance() as u64);
        DeviceSlice { ptr, len: bytes.len(), home: Home::HOST, memory: PhantomData }
    }
}

impl fmt::Debug for DeviceSlice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceSlice({:?}, {:#x}, {} bytes)", self.home.kind, self.ptr.0, self.len)
    }
}

/// Device memory that only its holder may read and write for as long as `'a`.
pub struct DeviceSliceMut<'a> {
    ptr: DevicePtr,
    len: usize,
    home: Home,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> DeviceSliceMut<'a> {
    /// Memory of which only its place is known, for who cuts memory up.
    ///
    /// # Safety
    /// - `len` bytes at `ptr` stay mapped, readable and writable for `'a`, where `home` says.
    /// - Nothing else reads or writes them during `'a`.
    pub unsafe fn from_raw(ptr: DevicePtr, len: usize, home: Home) -> DeviceSliceMut<'a> {
        DeviceSliceMut { ptr, len, home, memory: PhantomData }
    }

    /// Where it starts.
    pub fn ptr(&self) -> DevicePtr {
        self.ptr
    }

    pub(crate) fn home(&self) -> Home {
        self.home
    }

    /// How many bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True where there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The kind of device whose work can use the memory. A `&[u8]` of this process is the host's; pinned, managed and
    /// registered memory is the device's that made it, and can be looked at from here too.
    pub fn kind(&self) -> DeviceKind {
        self.home.kind
    }

    /// The same memory, to be read for as long as this is borrowed.
    pub fn as_slice(&self) -> DeviceSlice<'_> {
        DeviceSlice { ptr: self.ptr, len: self.len, home: self.home, memory: PhantomData }
    }

    /// The same memory, lent out for as long as this is borrowed.
    pub fn reborrow(&mut self) -> DeviceSliceMut<'_> {
        DeviceSliceMut { ptr: self.ptr, len: self.len, home: self.home, memory: PhantomData }
    }

    /// The bytes to read, where this process can address them.
    pub fn as_host(&self) -> Option<&[u8]> {
        self.as_slice().as_host()
    }

    /// The bytes to write, where this process can address them: all but a GPU's own memory.
    pub fn as_host_mut(&mut self) -> Option<&mut [u8]> {
        self.reborrow().into_host_mut()
    }

    /// The bytes to write for all of `'a`, where this process can address them.
    pub fn into_host_mut(self) -> Option<&'a mut [u8]> {
        // SAFETY: `from_raw` was promised that these bytes are writable and not touched by others during 'a, by this process
        // too where its `Home` says so; `self` is consumed, so no second slice of them can be made from it.
        self.home.host.then(|| unsafe { std::slice::from_raw_parts_mut(self.ptr.as_host_ptr(), self.len) })
    }

    /// The part at `range`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where the range is not in here.
    pub fn subslice(self, range: impl RangeBounds<usize>) -> Result<DeviceSliceMut<'a>, Error> {
        let range = checked_range(range, self.len)?;
        Ok(DeviceSliceMut { ptr: self.ptr.offset(range.start), len: range.len(), ..self })
    }

    /// The bytes before `at`, and those from it on.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] where `at` is past the end.
    pub fn split_at(self, at: usize) -> Result<(DeviceSliceMut<'a>, DeviceSliceMut<'a>), Error> {
        checked_range(at.., self.len)?;
        let (home, memory) = (self.home, PhantomData);
        let left = DeviceSliceMut { ptr: self.ptr, len: at, home, memory };
        let right = DeviceSliceMut { ptr: self.ptr.offset(at), len: self.len - at, home, memory };
        Ok((left, right))
    }
}

impl<'a> From<&'a mut [u8]> for DeviceSliceMut<'a> {
    fn from(bytes: &'a mut [u8]) -> DeviceSliceMut<'a> {
        let ptr = DevicePtr::new(bytes.as_mut_ptr().expose_provenance() as u64);
        DeviceSliceMut { ptr, len: bytes.len(), home: Home::HOST, memory: PhantomData }
    }
}

impl fmt::Debug for DeviceSliceMut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceSliceMut({:?}, {:#x}, {} bytes)", self.home.kind, self.ptr.0, self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_checked() {
        let bytes: Vec<u8> = (0..10).collect();
        let all = DeviceSlice::from(&bytes[..]);
        assert_eq!(all.subslice(2..5).unwrap().as_host().unwrap(), &[2, 3, 4]);
        assert_eq!(all.subslice(..=1).unwrap().as_host().unwrap(), &[0, 1]);
        assert!(all.subslice(10..).unwrap().is_empty());
        assert!(matches!(all.subslice(4..11), Err(Error::OutOfRange { .. })));
        assert!(matches!(all.split_at(11), Err(Error::OutOfRange { .. })));
        assert!(all.subslice(..=usize::MAX).is_err());
        #[expect(clippy::reversed_empty_ranges, reason = "what is refused")]
        let backwards = all.subslice(5..4);
        assert!(backwards.is_err());
    }

    #[test]
    fn halves_are_written_apart() {
        let mut bytes = [0u8; 8];
        let (mut left, right) = DeviceSliceMut::from(&mut bytes[..]).split_at(3).unwrap();
        left.as_host_mut().unwrap().fill(1);
        right.subslice(1..).unwrap().into_host_mut().unwrap().fill(2);
        assert_eq!(left.as_host().unwrap(), &[1, 1, 1]);
        assert_eq!(bytes, [1, 1, 1, 0, 2, 2, 2, 2]);
        assert!(DeviceSliceMut::from(&mut bytes[..]).split_at(9).is_err());
    }
}
