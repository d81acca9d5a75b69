//! A bank over pinned host memory: blocks for transfers, within a budget.

use std::ops::RangeBounds;

use granule_device::{
    Bytes, Device, DevicePtr, DeviceSlice, DeviceSliceMut, Error as DeviceError, Memory, Pinned,
};

use crate::bank::Goods;
use crate::{Bank, BankOptions, Charge, Error, Owner};

/// A block of pinned host memory, counted as its owner's while it lives. A [`Region`](granule_device::Region) can be made of it.
#[derive(Debug)]
pub struct PinnedBlock {
    // Given back to the system before it goes off the books.
    pinned: Pinned,
    charge: Charge,
}

impl Bank {
    /// A bank over host memory that is pinned for this device. It hands out [blocks](Bank::pinned_block) and has no granules. What
    /// the options say of caches and preparing is about granules.
    ///
    /// ```
    /// # use granule_bank::*; use granule_device::*;
    /// # let device = Device::host_with(HostOptions::new().capacity(Bytes::mib(1)))?;
    /// let bank = Bank::pinned(device, BankOptions::new().budget(Bytes::kib(100)))?;
    /// let mut block = bank.pinned_block(&Owner::new("staging"), Bytes::kib(64))?;
    /// block.slice_mut(..5)?.as_host_mut().ok_or("host memory")?.copy_from_slice(b"ready");
    /// let more = bank.pinned_block(&Owner::new("staging"), Bytes::kib(64));
    /// assert!(matches!(more, Err(Error::OutOfMemory { free, .. }) if free == Bytes::kib(36)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Device`] where no budget is given and the system does not say how much memory there is.
    pub fn pinned(device: Device, options: BankOptions) -> Result<Bank, Error> {
        let limit = match options.budget {
            Some(budget) => budget,
            // Pinned memory is taken from everybody: half of it is a lot.
            None => Bytes::new(Device::host()?.memory()?.total.get() / 2),
        };
        Bank::over(device, Goods::Pinned, limit, &options)
    }

    /// Whether it is a bank of pinned memory.
    pub fn is_pinned(&self) -> bool {
        self.inner().goods == Goods::Pinned
    }

    /// A block of pinned memory for `owner`, zeroed. Under pressure it goes as in [`Bank::take`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::TooLarge`]; [`Error::Device`], also where this bank is over granules.
    pub fn pinned_block(&self, owner: &Owner, size: Bytes) -> Result<PinnedBlock, Error> {
        self.under_pressure(owner, || self.pinned_block_now(owner, size))
    }

    /// As [`Bank::pinned_block`], without asking [reclaimers](crate::Reclaim).
    ///
    /// # Errors
    /// As [`Bank::pinned_block`].
    pub fn pinned_block_now(&self, owner: &Owner, size: Bytes) -> Result<PinnedBlock, Error> {
        self.inner().check_goods(Goods::Pinned)?;
        let charge = self.charge_now(owner, size)?;
        match self.device().alloc_pinned(size) {
            Ok(pinned) => Ok(PinnedBlock { pinned, charge }),
            Err(error) => {
                drop(charge);
                Err(self.inner().device_refused(error, owner, size, 0))
            }
        }
    }
}

impl PinnedBlock {
    /// Where it starts.
    pub fn ptr(&self) -> DevicePtr {
        self.pinned.ptr()
    }

    /// How large it is.
    pub fn len(&self) -> Bytes {
        self.charge.size()
    }

    /// Never: there is no block of zero bytes.
    pub fn is_empty(&self) -> bool {
        self.len().is_zero()
    }

    /// The bytes at `range`, to read.
    ///
    /// # Errors
    /// [`Error::Device`]: out of range.
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Result<DeviceSlice<'_>, Error> {
        Ok(self.pinned.slice(range)?)
    }

    /// The bytes at `range`, to write.
    ///
    /// # Errors
    /// [`Error::Device`]: out of range.
    pub fn slice_mut(&mut self, range: impl RangeBounds<usize>) -> Result<DeviceSliceMut<'_>, Error> {
        Ok(self.pinned.slice_mut(range)?)
    }
}

// SAFETY: its bytes are the pinned allocation's, which is memory of this kind itself and is reached through this alone.
unsafe impl Memory for PinnedBlock {
    fn device(&self) -> &Device {
        self.pinned.device()
    }

    fn readable(&self) -> Result<DeviceSlice<'_>, DeviceError> {
        self.pinned.slice(..)
    }

    fn writable(&mut self) -> Result<DeviceSliceMut<'_>, DeviceError> {
        self.pinned.slice_mut(..)
    }
}
