//! A GPU's lane: pinned pieces in a ring, copied by a stream.

use std::ops::Range;

use granule_device::{Bytes, Device, DeviceSlice, DeviceSliceMut, Event, Pinned, Stream};

use crate::Result;

/// Pieces of a ring: one is filled or emptied, one is on its way, one waits for its turn.
const PIECES: usize = 3;

/// The ring of one device. Between calls nothing is in use.
#[derive(Debug)]
pub(super) struct Ring {
    device: Device,
    /// Goes before the pieces, and waits for its work as it goes.
    stream: Option<Stream>,
    pieces: Vec<Piece>,
}

#[derive(Debug)]
struct Piece {
    pinned: Pinned,
    /// Behind the copy that uses it.
    copied: Option<Event>,
}

impl Ring {
    pub(super) fn new(device: &Device, piece: Bytes) -> Result<Ring> {
        let pieces = (0..PIECES).map(|_| Ok(Piece { pinned: device.alloc_pinned(piece)?, copied: None }));
        let pieces = pieces.collect::<Result<_>>()?;
        Ok(Ring { device: device.clone(), stream: Some(device.stream()?), pieces })
    }

    /// Zeros a shard.
    pub(super) fn clear(&mut self, shard: DeviceSliceMut<'_>) -> Result<()> {
        self.finished(|_, stream| {
            // SAFETY: the shard is borrowed exclusively until `finished` has waited for the stream.
            Ok(unsafe { stream.fill_slice(shard, 0) }?)
        })
    }

    /// Copies to `span` of a shard what `fill` puts into memory for each part of it; where that leaves something out, which is padding, zeros.
    pub(super) fn scatter(
        &mut self,
        span: Range<usize>,
        mut shard: DeviceSliceMut<'_>,
        is_padded: bool,
        fill: impl Fn(Range<usize>, &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        self.finished(|pieces, stream| {
            let parts = parts(pieces, span);
            for (turn, part) in parts.enumerate() {
                let piece = &mut pieces[turn % PIECES];
                if let Some(copied) = piece.copied.take() {
                    copied.synchronize();
                }
                let pinned = bytes_mut(&mut piece.pinned, part.len())?;
                if is_padded {
                    pinned.fill(0);
                }
                fill(part.clone(), pinned)?;
                // SAFETY: the piece is not touched before the event below is done, or all of the stream is; the shard is borrowed exclusively,
                // and both stay until `finished` has waited for the stream.
                unsafe {
                    let to = shard.reborrow().subslice(part.clone())?;
                    stream.copy_slice(piece.pinned.slice(..part.len())?, to)?;
                }
                piece.copied = Some(stream.record()?);
            }
            Ok(())
        })
    }

    /// Copies `span` of a shard to memory, part by part, and has `empty` take it from there.
    pub(super) fn gather(
        &mut self,
        span: Range<usize>,
        shard: DeviceSlice<'_>,
        empty: impl Fn(Range<usize>, &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.finished(|pieces, stream| {
            let mut given = parts(pieces, span.clone()).enumerate();
            let mut give = |pieces: &mut [Piece]| -> Result<()> {
                let Some((turn, part)) = given.next() else { return Ok(()) };
                let piece = &mut pieces[turn % PIECES];
                let len = part.len();
                // SAFETY: the piece is not touched before the event below is done, or all of the stream is; nothing writes the shard while it
                // is borrowed, and both stay until `finished` has waited for the stream.
                unsafe { stream.copy_slice(shard.subslice(part)?, piece.pinned.slice_mut(..len)?)? };
                piece.copied = Some(stream.record()?);
                Ok(())
            };
            for _ in 0..PIECES {
                give(pieces)?;
            }
            let parts = parts(pieces, span.clone());
            for (turn, part) in parts.enumerate() {
                let piece = &mut pieces[turn % PIECES];
                if let Some(copied) = piece.copied.take() {
                    copied.synchronize();
                }
                let len = part.len();
                empty(part, bytes_mut(&mut piece.pinned, len)?)?;
                give(pieces)?;
            }
            Ok(())
        })
    }

    /// Gives work to the stream and returns when all of it has run, also where giving it failed halfway.
    fn finished(&mut self, give: impl FnOnce(&mut [Piece], &Stream) -> Result<()>) -> Result<()> {
        let stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.device.stream()?,
        };
        let given = give(&mut self.pieces, &stream);
        let waited = stream.synchronize();
        self.pieces.iter_mut().for_each(|piece| piece.copied = None);
        // Where waiting failed the stream goes, and waits by all means; the next call has a new one.
        self.stream = waited.is_ok().then_some(stream);
        given?;
        Ok(waited?)
    }
}

/// The parts of a span that a piece has room for, in order.
fn parts(pieces: &[Piece], span: Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let len =
        pieces.iter().map(|piece| piece.pinned.len().to_usize().unwrap_or(usize::MAX)).min().unwrap_or(1);
    let end = span.end;
    span.step_by(len).map(move |start| start..start.saturating_add(len).min(end))
}

/// The first bytes of a piece.
fn bytes_mut(pinned: &mut Pinned, len: usize) -> Result<&mut [u8]> {
    let bytes = pinned.slice_mut(..len)?.into_host_mut();
    bytes.ok_or_else(|| crate::Error::Unsupported {
        what: "pinned memory that the host cannot write".to_owned(),
    })
}
