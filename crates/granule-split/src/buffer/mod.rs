//! One tensor in the memory of several devices.

#[cfg(feature = "cuda")]
mod cuda;
mod lanes;

use std::ops::Range;

use granule_bank::{Growable, Growth, Owner, grow_together};
use granule_device::{Bytes, DeviceSlice, DeviceSliceMut};

pub use lanes::{Lanes, LanesOptions};

use crate::plan::{BufferPlan, check, check_rows};
use crate::{Error, Result};
use lanes::Target;

/// One logical tensor of which every rank has a shard, in a growable of its device's bank. With the buffer goes the memory.
///
/// It begins as zeros, padding included, and padding stays zeros. What is scattered and gathered are the ggml bytes of the whole tensor's rows,
/// as a file has them.
///
/// ```
/// use granule_bank::{Bank, BankOptions, Owner};
/// use granule_device::{Bytes, Device, HostOptions};
/// use granule_quant::DType;
/// use granule_split::{BufferPlan, Lanes, LanesOptions, Padding, Split, SplitBuffer, TensorSplit};
///
/// let bank = || -> Result<Bank, Box<dyn std::error::Error>> {
///     let options = HostOptions::new().granule(Bytes::kib(64)).capacity(Bytes::mib(1));
///     Ok(Bank::new(Device::host_with(options)?, BankOptions::new())?)
/// };
/// let (near, far) = (bank()?, bank()?);
///
/// // 100 rows of 256 numbers: three quarters of the rows here, one quarter there, every row at a multiple of 64 bytes.
/// let tensor = TensorSplit::new(DType::Q8_0, 100, 256, Split::Column, vec![0..75, 75..100])?;
/// let plan = BufferPlan::new(tensor, Padding { row_align: 64, rows_multiple: 16 })?;
/// assert_eq!((plan.bytes(0)?, plan.bytes(1)?), (80 * 320, 32 * 320)); // known before anything is taken
///
/// let mut lanes = Lanes::new(&[near.clone(), far.clone()], LanesOptions::default())?;
/// let mut buffer = SplitBuffer::new(&mut lanes, &Owner::new("weights"), plan)?;
/// assert_eq!(far.stats().held, buffer.plan().held(1, far.granule())?);
///
/// let file = vec![7; 100 * 272];
/// buffer.scatter(&mut lanes, &file)?;
/// assert_eq!(buffer.shard(1)?.as_host().map(|bytes| (bytes[271], bytes[272])), Some((7, 0)));
/// let mut back = vec![0; 100 * 272];
/// buffer.gather(&mut lanes, &mut back)?;
/// assert_eq!(back, file);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct SplitBuffer {
    plan: BufferPlan,
    shards: Vec<Growable>,
}

impl SplitBuffer {
    /// The memory for a tensor, counted as `owner`'s with the bank of each lane, and all zeros: on every device, or an error, and on none.
    ///
    /// # Errors
    /// [`Error::Size`] where there are not as many lanes as ranks, [`Error::Bank`], [`Error::Device`].
    pub fn new(lanes: &mut Lanes, owner: &Owner, plan: BufferPlan) -> Result<SplitBuffer> {
        check("lanes", lanes.len(), plan.tensor().ranks())?;
        let sizes = (0..lanes.len()).map(|rank| Ok(Bytes::from_usize(plan.bytes(rank)?)));
        let sizes = sizes.collect::<Result<Vec<_>>>()?;
        let shards = lanes.banks().zip(&sizes).map(|(bank, &size)| bank.growable(owner, size));
        let mut shards = shards.collect::<Result<Vec<_>, _>>()?;
        let growths = shards.iter_mut().zip(&sizes).map(|(shard, &size)| Growth::of(shard, size));
        grow_together(&mut growths.collect::<Vec<_>>())?;
        let mut buffer = SplitBuffer { plan, shards };
        let shards = buffer.shards.iter_mut().map(|shard| Ok(shard.slice_mut(..)?));
        lanes.each(shards.collect::<Result<Vec<_>>>()?, |lane, shard| lane.clear(shard))?;
        Ok(buffer)
    }

    /// What lies where.
    #[must_use]
    pub fn plan(&self) -> &BufferPlan {
        &self.plan
    }

    /// A rank's shard as it lies on its device, padding included: [`BufferPlan::bytes`] long.
    ///
    /// # Errors
    /// [`Error::NoRank`].
    pub fn shard(&self, rank: usize) -> Result<DeviceSlice<'_>> {
        let ranks = self.shards.len();
        Ok(self.shards.get(rank).ok_or(Error::NoRank { rank, ranks })?.slice(..)?)
    }

    /// As [`SplitBuffer::shard`], to be written. Its padding is then the writer's.
    ///
    /// # Errors
    /// [`Error::NoRank`].
    pub fn shard_mut(&mut self, rank: usize) -> Result<DeviceSliceMut<'_>> {
        let ranks = self.shards.len();
        Ok(self.shards.get_mut(rank).ok_or(Error::NoRank { rank, ranks })?.slice_mut(..)?)
    }

    /// Brings the whole tensor to its devices, to all at the same time, and returns when all have it.
    ///
    /// # Errors
    /// [`Error::Size`] where `whole` is not the tensor's bytes, [`Error::Device`]; also where the lanes are of other devices than the buffer.
    /// After a failure of a device the shards' rows may be old, new, or partly so.
    pub fn scatter(&mut self, lanes: &mut Lanes, whole: &[u8]) -> Result<()> {
        self.scatter_rows(lanes, 0..self.plan.tensor().rows(), whole)
    }

    /// As [`SplitBuffer::scatter`], of some of the whole tensor's rows: `from` is those.
    ///
    /// # Errors
    /// As [`SplitBuffer::scatter`].
    pub fn scatter_rows(&mut self, lanes: &mut Lanes, rows: Range<usize>, from: &[u8]) -> Result<()> {
        self.check(lanes, &rows, from.len())?;
        let plan = &self.plan;
        let mut work = Vec::with_capacity(self.shards.len());
        for (rank, shard) in self.shards.iter_mut().enumerate() {
            let span = plan.span(rank, &plan.tensor().shard(rank)?, &rows)?;
            work.push((rank, span, shard.slice_mut(..)?));
        }
        lanes.each(work, |lane, (rank, span, shard)| match span {
            Some(span) => lane.scatter(plan, rank, span, (rows.start, from), shard),
            None => Ok(()),
        })
    }

    /// Puts the whole tensor together again, from all devices at the same time; of what several ranks have, from the first.
    ///
    /// # Errors
    /// As [`SplitBuffer::scatter`]; after a failure of a device `whole` may be anything.
    pub fn gather(&self, lanes: &mut Lanes, whole: &mut [u8]) -> Result<()> {
        self.gather_rows(lanes, 0..self.plan.tensor().rows(), whole)
    }

    /// As [`SplitBuffer::gather`], of some of the whole tensor's rows, which `to` is long enough for.
    ///
    /// # Errors
    /// As [`SplitBuffer::gather`].
    pub fn gather_rows(&self, lanes: &mut Lanes, rows: Range<usize>, to: &mut [u8]) -> Result<()> {
        self.check(lanes, &rows, to.len())?;
        let (plan, target) = (&self.plan, &Target::new(to));
        let mut work = Vec::with_capacity(self.shards.len());
        for (rank, shard) in self.shards.iter().enumerate() {
            let span = plan.span(rank, &plan.tensor().first_held(rank)?, &rows)?;
            work.push((rank, span, shard.slice(..)?));
        }
        lanes.each(work, |lane, (rank, span, shard)| match span {
            // SAFETY: each element of the tensor has one first holder, whose runs alone lead to its bytes; and they lie in the bytes of `rows`,
            // which `check` has seen `to` to be.
            Some(span) => unsafe { lane.gather(plan, rank, span, (rows.start, target), shard) },
            None => Ok(()),
        })
    }

    /// Whether lanes, rows and so many bytes of them are this buffer's.
    fn check(&self, lanes: &Lanes, rows: &Range<usize>, bytes: usize) -> Result<()> {
        let tensor = self.plan.tensor();
        check("lanes", lanes.len(), self.shards.len())?;
        check_rows(rows, tensor.rows())?;
        check("the bytes of the tensor's rows", bytes, rows.len() * tensor.row_bytes_whole())?;
        let mut pairs = lanes.banks().zip(&self.shards);
        if pairs.all(|(bank, shard)| bank.device().is_same(shard.bank().device())) {
            Ok(())
        } else {
            Err(granule_device::Error::OtherDevice { what: "a lane" }.into())
        }
    }
}
