//! Weights that are packed for the CPU at hand, when the model is loaded: one piece of memory for all of them, in huge pages.
//! Floats are copied as they are: in the pages of a mapped file, a tenth to a quarter of their speed would be lost.

use std::ops::Range;

use granule_bank::{Bank, Charge, Owner};
use granule_device::{Buffer, Bytes, DeviceSliceMut, Pinned};
use granule_ops::Threads;
use granule_quant::PANEL_ROWS;

use crate::error::{Error, Result};
use crate::weights::{Files, Tensor};

/// The account that packed weights are held on.
const PACKED_WEIGHTS: &str = "packed weights";
/// What each tensor begins at a multiple of: a page, so that no two of them share one.
const ALIGNMENT: usize = 4096;
/// Panels that a thread packs at a time.
const PANELS: usize = 4;

/// Where in the packed weights a tensor lies.
pub(crate) type Place = Range<usize>;

/// All packed weights of a model.
pub(crate) struct Packed {
    memory: Memory,
    charge: Charge,
}

enum Memory {
    Plain(Buffer),
    Locked(Pinned),
}

impl Packed {
    /// Packs these tensors, or copies those that are not packed, and tells each where it lies; `packed` is called behind each, with
    /// the bytes that it has in its file. None of them: none.
    pub(crate) fn new(
        files: &Files,
        bank: &Bank,
        threads: &Threads,
        tensors: &mut [&mut Tensor],
        lock: bool,
        packed: &mut dyn FnMut(&Tensor, usize) -> Result<()>,
    ) -> Result<Option<Self>> {
        let (places, size) = places(tensors.iter().map(|tensor| &**tensor))?;
        if size.is_zero() {
            return Ok(None);
        }
        let charge = bank.charge(&Owner::new(PACKED_WEIGHTS), size)?;
        let mut memory = if lock {
            Memory::Locked(bank.device().alloc_pinned(size)?)
        } else {
            Memory::Plain(bank.device().alloc(size)?)
        };
        for (tensor, place) in tensors.iter_mut().zip(places) {
            let out = memory.bytes_mut()?.get_mut(place.clone()).unwrap_or_default();
            let bytes = files.bytes_of(tensor)?;
            pack(tensor, &bytes, out, threads)?;
            tensor.set_packed(place);
            packed(tensor, bytes.len())?;
        }
        Ok(Some(Self { memory, charge }))
    }

    /// The bytes of a tensor.
    pub(crate) fn bytes(&self, place: &Place) -> Result<&[u8]> {
        let all = match &self.memory {
            Memory::Plain(buffer) => buffer.slice(place.clone()),
            Memory::Locked(buffer) => buffer.slice(place.clone()),
        };
        all?.as_host().ok_or_else(|| Error::Unsupported { what: "weights that the host cannot read".into() })
    }

    /// All of it.
    pub(crate) fn size(&self) -> Bytes {
        self.charge.size()
    }
}

/// Where these tensors lie packed, and what all of them take.
pub(crate) fn places<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> Result<(Vec<Place>, Bytes)> {
    let (mut places, mut len) = (Vec::new(), 0_usize);
    for tensor in tensors {
        let end = len.checked_add(tensor.packed_bytes(tensor.rows())?);
        let end =
            end.ok_or_else(|| Error::Unsupported { what: "weights that are too large to be packed".into() })?;
        places.push(len..end);
        len = end.next_multiple_of(ALIGNMENT);
    }
    Ok((places, Bytes::from_usize(len)))
}

impl Memory {
    fn bytes_mut(&mut self) -> Result<&mut [u8]> {
        let all: DeviceSliceMut<'_> = match self {
            Self::Plain(buffer) => buffer.slice_mut(..)?,
            Self::Locked(buffer) => buffer.slice_mut(..)?,
        };
        all.into_host_mut()
            .ok_or_else(|| Error::Unsupported { what: "weights that the host cannot write".into() })
    }
}

/// Packs one tensor, its panels spread over the threads.
fn pack(tensor: &Tensor, bytes: &[u8], out: &mut [u8], threads: &Threads) -> Result<()> {
    let (k, rows) = (tensor.cols(), PANEL_ROWS * PANELS);
    let from = bytes.len() / tensor.rows().max(1) * rows;
    threads
        .try_zip_chunks(bytes, from, out, tensor.packed_bytes(rows)?, &|bytes, out| {
            match tensor.packing() {
                Some(packing) => packing.pack(bytes, k, out)?,
                None => out.copy_from_slice(bytes),
            }
            Ok::<_, granule_quant::Error>(())
        })
        .map_err(granule_ops::Error::from)?;
    Ok(())
}
