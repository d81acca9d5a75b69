//! Weights on their way to a device: from the mapped file into pinned memory, from there by a stream of copies, and from the
//! file's blocks into planes by a stream of kernels; all three at once, in a ring of pieces.

use granule_bank::{Bank, Charge, Owner};
use granule_device::{Buffer, DeviceSliceMut, Event, Pinned, Stream};
use granule_ops::pack_weights::{self, WeightRows};
use granule_ops::{Kernels, Threads};
use granule_plan::{LOADING_PIECES, loading_piece};

use super::wait;
use crate::engine::patiently;
use crate::error::{Error, Result};
use crate::weights::{Report, Tensor};

/// The account of what is only there while a model is loaded.
const LOADING: &str = "loading";
/// Bytes that a thread copies at a time.
const CHUNK: usize = 1 << 20;

/// One piece of the ring.
struct Piece {
    pinned: Pinned,
    staging: Buffer,
    /// Behind the last kernel that read the staging memory, and so behind the copy before it.
    packed: Option<Event>,
}

/// The ring, and the streams that it goes through.
pub(super) struct Loader<'a> {
    kernels: &'a Kernels,
    // They end before the memory that they use goes.
    copies: Stream,
    packs: Stream,
    pieces: Vec<Piece>,
    next: usize,
    _charge: Charge,
}

impl<'a> Loader<'a> {
    /// A ring for these tensors.
    pub(super) fn new<'t>(
        bank: &Bank,
        kernels: &'a Kernels,
        tensors: impl Iterator<Item = &'t Tensor>,
    ) -> Result<Self> {
        let size = loading_piece(tensors.map(Tensor::shape))?;
        let device = bank.device();
        let charge = bank.charge(&Owner::new(LOADING), size.saturating_mul(LOADING_PIECES as u64))?;
        let (copies, packs) = (device.stream()?, device.stream()?);
        let piece = |_| -> Result<Piece> {
            let (pinned, staging) = (device.alloc_pinned(size)?, device.alloc(size)?);
            Ok(Piece { pinned, staging, packed: None })
        };
        let pieces = (0..LOADING_PIECES).map(piece).collect::<Result<_>>()?;
        Ok(Self { kernels, copies, packs, pieces, next: 0, _charge: charge })
    }

    /// Fills all of the weights' memory with zeros: products read a little past the last row of a plane, and what they read there must
    /// have been written, whatever it is.
    pub(super) fn clear(&self, memory: DeviceSliceMut<'_>) -> Result<()> {
        // SAFETY: the caller keeps the memory until `finish` or the drop; what is packed there later, is by the same stream.
        Ok(unsafe { self.packs.fill_slice(memory, 0) }?)
    }

    /// Has a tensor, whose blocks are `bytes`, packed into `to`; what is given here is done by [`Loader::finish`].
    pub(super) fn load(
        &mut self,
        tensor: &Tensor,
        bytes: &[u8],
        mut to: DeviceSliceMut<'_>,
        threads: &Threads,
        report: Report<'_>,
    ) -> Result<()> {
        let (row, rows) = (row_bytes(tensor)?, tensor.rows());
        let mut done = 0;
        while done < rows {
            let piece = &mut self.pieces[self.next];
            self.next = (self.next + 1) % LOADING_PIECES;
            if let Some(packed) = piece.packed.take() {
                packed.synchronize();
            }
            let n = (piece.staging.len().to_usize().unwrap_or(0) / row.max(1)).clamp(1, rows - done);
            let from = &bytes[done * row..(done + n) * row];
            let pinned = piece.pinned.slice_mut(..from.len())?.into_host_mut();
            let pinned = pinned.ok_or_else(|| Error::Unsupported {
                what: "pinned memory that the host cannot write".into(),
            })?;
            threads.try_zip_chunks(from, CHUNK, pinned, CHUNK, &|from, to| {
                to.copy_from_slice(from);
                Ok::<_, Error>(())
            })?;
            // SAFETY: both memories are the piece's, which stays until both streams have passed all of it (`Drop` waits for
            // them) and is not touched again before the event below.
            unsafe {
                self.copies
                    .copy_slice(piece.pinned.slice(..from.len())?, piece.staging.slice_mut(..from.len())?)?;
            }
            self.packs.wait(&self.copies.record()?)?;
            let piece_rows =
                WeightRows { dtype: tensor.dtype(), rows, cols: tensor.cols(), piece: done..done + n };
            // SAFETY: as above; `to` is the caller's alone, who keeps it until `finish` or the drop, and each part is its
            // own bytes of it.
            unsafe {
                let staging = piece.staging.slice(..from.len())?;
                // Its module is loaded when a type comes for the first time.
                patiently(|| {
                    Ok(pack_weights::cuda(self.kernels, &self.packs, &piece_rows, staging, to.reborrow())?)
                })?;
            }
            piece.packed = Some(self.packs.record()?);
            done += n;
            report(from.len())?;
        }
        Ok(())
    }

    /// Waits for all of it.
    pub(super) fn finish(self) -> Result<()> {
        wait(&self.copies)?;
        wait(&self.packs)
    }
}

impl Drop for Loader<'_> {
    fn drop(&mut self) {
        // Whatever went wrong: no memory goes before the work that uses it is done. What a stream reports of it was told before,
        // or does not matter any more.
        let _ = wait(&self.copies);
        let _ = wait(&self.packs);
    }
}

/// Bytes of a row as it lies in the file.
fn row_bytes(tensor: &Tensor) -> Result<usize> {
    Ok(tensor.dtype().row_bytes(tensor.cols()).map_err(granule_ops::Error::from)?)
}
